"""Numbers in sentences: one row, two rows."""

import re
from typing import Any


def counted(n: int, noun: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def agreed(n: int, text: str) -> str:
    """A text of ours in which every [one|many] is chosen by the number that stands before it:
    [row|rows] that [repeats|repeat]."""
    return re.sub(r"\[([^|\]]*)\|([^|\]]*)\]", r"\1" if n == 1 else r"\2", text)


class Count(int):
    """A number that a template may write with its noun: {rows:row}."""

    def __format__(self, spec: str) -> str:
        return (
            counted(int(self), spec)
            if spec.replace(" ", "").isalpha()
            else int.__format__(int(self), spec)
        )


class Word(str):
    """The same for what is no number, such as `over 128`."""

    def __format__(self, spec: str) -> str:
        return (
            f"{self} {spec}s"
            if spec.replace(" ", "").isalpha()
            else str.__format__(str(self), spec)
        )


def field_of(value: Any) -> Any:
    """A template's field, which may be written with a noun."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Count(value)
    return Word(value) if isinstance(value, str) else value

"""Words for groups, exchanged in a text: an answer should not change with them."""

import re

PAIRS = (
    "he/she, him/her, his/her, himself/herself, man/woman, men/women, boy/girl, boys/girls, "
    "male/female, father/mother, son/daughter, "
    "brother/sister, husband/wife, mr/mrs, gay/straight, homosexual/heterosexual, black/white, "
    "african/european, muslim/christian, "
    "jewish/catholic, old/young, mexican/american"
)
"""Exchanged where the option `swap_terms` names none: a small English list, for a first look and no
more."""


class Swap:
    """Exchanges the words of each pair in a text, whole words only, capital letters kept."""

    def __init__(self, pairs: str) -> None:
        self._other: dict[str, str] = {}
        for pair in pairs.split(","):
            a, b = (word.strip().lower() for word in pair.split("/"))
            self._other.setdefault(a, b)
            self._other.setdefault(b, a)
        longest_first = sorted(self._other, key=len, reverse=True)
        self._pattern = re.compile(
            rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE
        )

    def __call__(self, text: str) -> str:
        return self._pattern.sub(lambda m: _cased_like(m[0], self._other[m[0].lower()]), text)


def _cased_like(model: str, word: str) -> str:
    return (
        word.upper()
        if model.isupper() and len(model) > 1
        else word.capitalize()
        if model[0].isupper()
        else word
    )

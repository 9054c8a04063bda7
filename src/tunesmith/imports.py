"""How torch and transformers are imported where somebody waits for it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

is_own_process = False
"""Set by the programs of this package: nobody else's code imports anything there."""


@contextmanager
def quickly(library: str, without: str) -> Iterator[None]:
    """Inside, a large library is imported in three quarters of the time or less.

    Imports make a million objects and no garbage, so the collector only costs. And libraries take
    others along that nobody asked for; in a process of our own, `library` does not see the one
    `without` which it is to do, unless one of them is there already (`None` in sys.modules is
    Python's word for a module that is not installed).
    """
    was_enabled = gc.isenabled()
    hides = is_own_process and not {library, without} & sys.modules.keys()
    gc.disable()
    if hides:
        sys.modules[without] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides:
            sys.modules.pop(without, None)
        if was_enabled:
            gc.enable()

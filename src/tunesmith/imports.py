"""How torch and transformers are imported where somebody waits for it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

is_own_process = False
"""Set by the programs of this package: nobody else's code imports anything there."""


@contextmanager
def quickly() -> Iterator[None]:
    """Inside, the large libraries are imported in three quarters of the time.

    Imports make a million objects and no garbage, so the collector only costs. And transformers
    takes SciPy along where it is installed, for losses of object detection alone; in a process of
    our own it does not see it (`None` in sys.modules: Python's word for a module that is not
    there).
    """
    was_enabled = gc.isenabled()
    hides = is_own_process and not {"scipy", "transformers"} & sys.modules.keys()
    gc.disable()
    if hides:
        sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides:
            sys.modules.pop("scipy", None)
        if was_enabled:
            gc.enable()

"""How torch and transformers are imported where somebody waits for it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quickly() -> Iterator[None]:
    """Inside, the large libraries are imported in three quarters of the time.

    Imports make a million objects and no garbage, so the collector only costs. And transformers
    takes SciPy along where it is installed, for losses of object detection alone; it does not see
    it here (`None` in sys.modules: Python's own word for a module that is not there).
    """
    was_enabled, hides = gc.isenabled(), "scipy" not in sys.modules
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

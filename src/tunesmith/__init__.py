"""Tunesmith: fine-tune models where your tables are.

`connect` opens a DuckDB database with FINETUNE and COMPLETE in it, `Tunesmith` is the same in
Python, `tunesmith` the same in a shell. Importing this module imports no torch.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Job",
    "JobStatus",
    "Options",
    "TextClassifier",
    "Tunesmith",
    "TunesmithError",
    "connect",
]

if TYPE_CHECKING:
    from tunesmith.errors import TunesmithError
    from tunesmith.interfaces.duckdb import connect
    from tunesmith.interfaces.sklearn import TextClassifier
    from tunesmith.jobs import Job, JobStatus
    from tunesmith.options import Options
    from tunesmith.service import Tunesmith

_HOME = {
    "Job": "tunesmith.jobs",
    "JobStatus": "tunesmith.jobs",
    "Options": "tunesmith.options",
    "TextClassifier": "tunesmith.interfaces.sklearn",
    "Tunesmith": "tunesmith.service",
    "TunesmithError": "tunesmith.errors",
    "connect": "tunesmith.interfaces.duckdb",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `tunesmith --help` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

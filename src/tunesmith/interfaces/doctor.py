"""What works on this machine. Looks at versions and files; imports no torch."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from tunesmith import durable
from tunesmith.errors import WorkerAtWork
from tunesmith.repair import Mismatch, mismatches, repair
from tunesmith.settings import Settings, processors
from tunesmith.store import JobStore
from tunesmith.worker import is_alive

OPTIONAL = (
    ("scikit-learn", "audit", "linear model in the audit, the quote and the verdict"),
    ("lingua-language-detector", "audit", "languages in the audit"),
    ("psycopg", "postgresql", "store in PostgreSQL"),
)
"""Package, the extra that brings it, and what is missing without it."""
FREE_MB = 1024  # below it a job of a small base may have to wait for space


def mend() -> list[Mismatch]:
    """Reconcile rows and files, as after a restore; WorkerAtWork while jobs run."""
    settings = Settings.read()
    if is_alive(settings.home):
        raise WorkerAtWork(home=str(settings.home))
    durable.open_home(settings.home)
    return repair(settings, JobStore(settings.store_url))


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    advice: str = ""


def examine() -> list[Check]:
    settings = Settings.read()
    return [*_places(settings), *_packages(), *_torch()]


def _places(settings: Settings) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "")
    try:
        durable.open_home(settings.home)
        durable.write_json(settings.home / "tmp" / "doctor.json", {"fsync": True})
        (settings.home / "tmp" / "doctor.json").unlink()
        yield Check("home", True, str(settings.home))
    except OSError as e:
        yield Check("home", False, str(settings.home), f"cannot be written ({e}); set TUNESMITH_HOME to a folder of your own")
        return
    store = JobStore(settings.store_url)
    yield Check("store", True, f"{settings.store_url.split('://')[0]}, SQLite {sqlite3.sqlite_version} with the rollback journal")
    apart = list(mismatches(settings, store, read=False))
    yield Check("files", not apart, f"{len(apart)} rows and folders do not belong together" if apart else "every row has its folder",
                "tunesmith doctor --repair says which, and mends it" if apart else "")  # fmt: skip
    own = settings.home / "prices.toml"
    yield Check(
        "prices",
        True,
        str(own) if own.exists() else "the shipped table, nobody's prices",
        "" if own.exists() else f"write your own into {own}",
    )
    free = shutil.disk_usage(settings.home).free >> 20
    yield Check("disk", free > FREE_MB, f"{free:,} MB free", "" if free > FREE_MB else "free some space: jobs will wait")
    yield Check("worker", True, "alive" if is_alive(settings.home) else "none; one starts with the next job")


def _packages() -> Iterator[Check]:
    for name in ("duckdb", "sqlalchemy", "tokenizers"):
        yield Check(name, True, version(name))
    for name in ("torch", "transformers", "peft", "pyarrow", "llguidance"):
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            advice = "torch for the CPU first (PyTorch's install page, choice CPU), then pip install 'tunesmith[train]'"
            yield Check(name, False, "not installed: no job can run here", advice)
    for name, extra, gives in OPTIONAL:
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, True, f"not installed: no {gives}", f"pip install 'tunesmith[{extra}]' if you want it")


def _torch() -> Iterator[Check]:
    if (
        find_spec("torchvision") is not None
        and subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode
    ):
        yield Check(
            "torchvision",
            False,
            "installed but cannot be imported; it breaks transformers too",
            "pip uninstall torchvision: Tunesmith needs none",
        )
    flags = _cpu_flags()
    fast = [f for f in ("avx2", "avx512f", "amx_bf16") if f in flags]
    yield Check("processor", True, f"{processors()} usable, " + (", ".join(fast) or "no AVX2: slow"))


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as f:
            return next((set(line.split()) for line in f if line.startswith("flags")), set())
    except OSError:
        return set()

"""What works on this machine. Looks at versions and files; imports no torch."""

import re
import shutil
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tunesmith import catalog, durable
from tunesmith import repair as repairs
from tunesmith.errors import TunesmithError, WorkerAtWork
from tunesmith.home import open_store, separate
from tunesmith.repair import Mismatch, at_rest, last_repair, mismatches
from tunesmith.schema import REVISION
from tunesmith.settings import UNCLAIMED, Settings, processors
from tunesmith.store import BootClock, JobStore
from tunesmith.words import counted
from tunesmith.worker import is_alive

OPTIONAL = (
    ("scikit-learn", "audit", "linear model in the audit, the quote and the verdict"),
    ("lingua-language-detector", "audit", "languages in the audit"),
    ("psycopg", "postgresql", "store or source in PostgreSQL"),
)
"""Package, the extra that brings it, and what is missing without it."""
SYNCS = 5
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "ceph"}
BUILT = 2026  # no clock is before it
FREE_MB = 1024  # below it a job of a small base may have to wait for space


def plan() -> list[Mismatch]:
    """What a repair would do; WorkerAtWork while jobs run."""
    settings, store = _at_rest()
    return list(mismatches(settings, store, read=True))


def mend(found: Sequence[Mismatch]) -> Path | None:
    """Reconcile rows and files, as after a restore: do what was planned; where it was written
    down."""
    settings, store = _at_rest()
    return repairs.repair(settings, store, found)


def undo() -> list[str]:
    """Take the newest repair back."""
    return repairs.undo(*_at_rest())


def as_copy(*, unseen: bool = False) -> tuple[int, Path | None]:
    """Make a copied home one of its own; how many unfinished jobs were cancelled in it, and where
    folders are whose rows stay the other home's, in a store that both share."""
    settings = Settings.read()
    if is_alive(settings.home):
        raise WorkerAtWork(home=str(settings.home))
    cancelled = separate(settings, unseen=unseen)
    store = open_store(settings, lost_too=True)
    return cancelled, repairs.repair(settings, store, list(mismatches(settings, store, read=True)))


def _at_rest() -> tuple[Settings, JobStore]:
    settings = Settings.read()
    if is_alive(settings.home):
        raise WorkerAtWork(home=str(settings.home))
    return settings, open_store(settings, lost_too=True)


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    advice: str = ""


def examine(*, deep: bool = False) -> list[Check]:
    """`deep`: read all that is at rest, every row of the store and every file of jobs and
    models."""
    settings = Settings.read()
    return [*_places(settings, deep), *_packages(), *_torch()]


def _bases_check(home: Path) -> Check:
    """Which bases are here; one that could be brought is no fault."""
    found = catalog.listed(home)
    here = [spec.name for spec, folder in found if folder]
    broken = [s for s, folder in found if not folder and s.name not in catalog.entries()]
    if broken:
        return Check("bases", False, ", ".join(s.name for s in broken), broken[0].about)
    more = "".join(f"; another: {command}" for command in catalog.offered())
    return Check("bases", True, f"{', '.join(here)}{more}")


def _places(settings: Settings, deep: bool) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "")
    try:
        marker = durable.open_home(settings.home)
        durable.write_json(settings.home / "tmp" / "doctor.json", {"fsync": True})
        (settings.home / "tmp" / "doctor.json").unlink()
        moved = f", moved here from {marker['moved_from']}" if marker.get("moved_from") else ""
        yield Check("home", True, f"{settings.home} ({marker['id'][:8]}{moved})")
    except (OSError, TunesmithError) as e:
        yield Check(
            "home",
            False,
            str(settings.home),
            f"cannot be written ({e}); set TUNESMITH_HOME to a folder of your own",
        )
        return
    yield _sync_check(settings.home)
    yield _clock_check()
    try:
        store = open_store(settings)
    except TunesmithError as e:
        yield Check("store", False, settings.store_url.split("://")[0], str(e))
        return
    broken = store.integrity()
    yield Check(
        "store",
        not broken,
        broken or _store_words(settings.store_url),
        "bring it back from a backup" if broken else "",
    )
    yield from _rows_checks(settings, store, deep)
    yield _prices_check(settings.home)
    yield from _leftovers(settings.home)
    yield _readers_check(settings.home)
    yield _bases_check(settings.home)
    free = shutil.disk_usage(settings.home).free >> 20
    yield Check(
        "disk",
        free > FREE_MB,
        f"{free:,} MB free",
        "" if free > FREE_MB else "free some space: jobs will wait",
    )
    yield Check(
        "worker", True, "alive" if is_alive(settings.home) else "none; one starts with the next job"
    )


def _rows_checks(settings: Settings, store: JobStore, deep: bool) -> Iterator[Check]:
    """What is in the store, and whether it is whole and has its files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each is told below
            damaged = list(store.damaged(("jobs", "models")))
            apart = list(mismatches(settings, store, read=False))
            elsewhere = sum(home != store.home for _, _, home in store.states().values())
            lost = list(at_rest(settings, store)) if deep else []
    except TunesmithError as e:
        yield Check("rows", False, "cannot be read", str(e))
        return
    yield Check(
        "rows",
        not damaged,
        "; ".join(map(str, damaged[:3])) if damaged else "jobs and models match their seals",
    )
    if elsewhere:
        yield Check(
            "other homes",
            True,
            f"{counted(elsewhere, 'job')} of theirs on this store: shown, never claimed, repaired "
            f"or removed",
        )
    words = "; ".join(f"{m.kind}: {m.what}" for m in apart[:3]) + (
        f"; … ({len(apart)} in all)" if len(apart) > 3 else ""
    )
    undoes = ", --undo takes the last repair back" if last_repair(settings.home) else ""
    yield Check(
        "files",
        not apart,
        words or "every row has its folder",
        f"tunesmith doctor --repair says what it will do, and mends it{undoes}" if apart else "",
    )
    if deep:
        more = f"; … ({len(lost)} in all)" if len(lost) > 3 else ""
        yield Check(
            "at rest",
            not lost,
            "; ".join(lost[:3]) + more if lost else "every row and every file is as it was written",
        )


def _prices_check(home: Path) -> Check:
    own = home / "prices.toml"
    try:
        catalog.prices(home)
    except TunesmithError as e:
        return Check("prices", False, str(own), str(e))
    words = str(own) if own.exists() else "the shipped table (invented figures)"
    return Check("prices", True, words, "" if own.exists() else f"write your own into {own}")


def _leftovers(home: Path) -> Iterator[Check]:
    """What no process and no row names."""
    left = durable.unowned_staging(home)
    size = sum(f.stat().st_size for folder in left for f in folder.rglob("*") if f.is_file())
    if left:
        yield Check(
            "staging",
            False,
            f"{counted(len(left), 'folder')} of killed processes, {size:,} bytes",
            "the next worker removes them; or remove them from tmp/ in the home",
        )
    aside = home / UNCLAIMED
    if aside.is_dir():
        size = sum(f.stat().st_size for f in aside.rglob("*") if f.is_file())
        undoes = "; tunesmith doctor --undo brings the last of it back" if last_repair(home) else ""
        yield Check(
            "put aside",
            True,
            f"{size:,} bytes in {aside}",
            f"what repairs put aside; remove it when you are sure{undoes}",
        )


def _readers_check(home: Path) -> Check:
    """Rows, contexts and weights are their owner's alone."""
    open_ = [p for p in sorted(home.rglob("*")) if not p.is_symlink() and p.stat().st_mode & 0o077]
    first = ", ".join(str(p.relative_to(home)) for p in open_[:3])
    return Check(
        "readers",
        not open_,
        f"others can read {counted(len(open_), 'file')}: {first}"
        if open_
        else "the home's owner alone",
        f"chmod -R go-rwx {home}" if open_ else "",
    )


def _store_words(url: str) -> str:
    if not url.startswith("sqlite"):
        return f"{url.split('://')[0]}, schema {REVISION}"
    is_affected = (3, 7, 0) <= sqlite3.sqlite_version_info < (3, 51, 3)
    why = " (this release can lose a commit in WAL mode, which is not used)" if is_affected else ""
    return f"SQLite {sqlite3.sqlite_version} with the rollback journal{why}, schema {REVISION}"


def _sync_check(home: Path) -> Check:
    """What a durable write costs, and whether the file system is one that locks and syncs can be
    trusted on."""
    began = time.perf_counter()
    for _ in range(SYNCS):
        durable.replace_text(home / "tmp" / "doctor.txt", "synced")
    took = 1000 * (time.perf_counter() - began) / SYNCS
    (home / "tmp" / "doctor.txt").unlink()
    kind = _file_system(home)
    if kind in NETWORK:
        advice = (
            "locks of a network file system are not to be trusted: set TUNESMITH_HOME to a "
            "local disk, or TUNESMITH_STORE to PostgreSQL"
        )
        return Check("fsync", False, f"{took:.1f} ms a file, on {kind}", advice)
    return Check("fsync", True, f"{took:.1f} ms a file" + (f", on {kind}" if kind else ""))


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder; empty where the system does not tell."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    holding = [(place, kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(holding, key=lambda m: len(m[0]), default=("", ""))[1]


def _clock_check() -> Check:
    clock = BootClock()
    told = (
        "leases by the boot clock, which no step of the wall clock moves"
        if clock.boot
        else "leases by the wall clock"
    )
    now = datetime.now(UTC)
    is_sane = now.year >= BUILT
    return Check(
        "clock",
        is_sane,
        f"{now:%Y-%m-%d %H:%M} UTC; {told}",
        "" if is_sane else "set the clock: dates of jobs and models will be wrong",
    )


def _packages() -> Iterator[Check]:
    for name in ("duckdb", "sqlalchemy", "tokenizers"):
        yield Check(name, True, version(name))
    for name in ("torch", "transformers", "peft", "pyarrow", "llguidance"):
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            advice = (
                "torch for the CPU first (PyTorch's install page, choice CPU), then pip "
                "install 'tunesmith[train]'"
            )
            yield Check(name, False, "not installed: no job can run here", advice)
    for name, extra, gives in OPTIONAL:
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(
                name,
                True,
                f"not installed: no {gives}",
                f"pip install 'tunesmith[{extra}]' if you want it",
            )


def _torch() -> Iterator[Check]:
    if (spec := find_spec("torch")) is not None and spec.origin:
        build = dict(
            re.findall(
                r"^(\w+)(?:: [\w\[\] |]+)? = (.+)$",
                (Path(spec.origin).parent / "version.py").read_text(),
                re.M,
            )
        )
        cuda, has_gpu = build.get("cuda", "None").strip("'\""), Path("/proc/driver/nvidia").exists()
        idle = cuda != "None" and not has_gpu
        advice = (
            "several GB for a GPU that is not here: reinstall torch from its page's choice CPU"
            if idle
            else ""
        )
        yield Check(
            "torch build", True, f"for CUDA {cuda}" if cuda != "None" else "for the CPU", advice
        )
    if (
        find_spec("torchvision") is not None
        and subprocess.run(
            [sys.executable, "-c", "import torchvision"], capture_output=True
        ).returncode
    ):
        yield Check(
            "torchvision",
            False,
            "installed but cannot be imported; it breaks transformers too",
            "pip uninstall torchvision: Tunesmith needs none",
        )
    flags = _cpu_flags()
    fast = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    half = "" if {"avx512_bf16", "amx_bf16"} & flags else "; no units for bfloat16: float32 is used"
    yield Check(
        "processor", True, f"{processors()} usable, " + (", ".join(fast) or "no AVX2: slow") + half
    )


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as f:
            return next((set(line.split()) for line in f if line.startswith("flags")), set())
    except OSError:
        return set()

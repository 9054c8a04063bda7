"""The only module that writes durable files.

A folder is built in staging, then published: every file synced, a manifest of sizes and SHA-256 digests written, the
folder renamed to its final name and the parent synced. What is not renamed does not exist; what does not match its
manifest is not loaded. Libraries write only into a folder that `staging` opened.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import DamagedFiles, DiskFull

observer: Callable[[str, Path], None] | None = None
"""Told the name and the place of every operation before it happens: an instrument, so that tests can die, or fail, at the n-th."""

MANIFEST = "MANIFEST.json"
FORMAT = 1
RESERVE_MB = 64  # kept free, so that the store itself can still be written


def open_home(home: Path) -> None:
    """Make the home folder and its tmp/ (same file system, so that a rename is atomic)."""
    (home / "tmp").mkdir(parents=True, exist_ok=True, mode=0o700)
    marker = home / "FORMAT"
    if not marker.exists():
        write_json(marker, {"format": FORMAT})


def check_space(folder: Path, needed: int) -> None:
    """DiskFull unless `needed` bytes and the reserve are free where `folder` is or will be."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + RESERVE_MB * 2**20:
        raise DiskFull(path=str(folder), needed_mb=(needed >> 20) + RESERVE_MB, free_mb=free >> 20)


@contextmanager
def staging(home: Path) -> Iterator[Path]:
    """An empty folder to write into; whatever was not published from it is removed at the end."""
    open_home(home)
    with _temporary(home / "tmp") as folder:
        yield folder


@contextmanager
def staging_beside(final: Path) -> Iterator[Path]:
    """The same for a folder outside the home: on the file system where it will stand."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(final.parent, prefix=f".{final.name}.") as folder:
        yield folder


@contextmanager
def _temporary(place: Path, prefix: str = "") -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
    try:
        yield folder
    except Exception as e:
        if _is_no_space(e):
            raise DiskFull(path=str(folder), needed_mb=RESERVE_MB, free_mb=shutil.disk_usage(place).free >> 20) from e
        raise
    finally:
        remove(folder)


def publish(staged: Path, final: Path, facts: dict[str, Any] | None = None) -> str:
    """Make the staged folder durable under its final name, at once and whole; returns the manifest's digest."""
    listed = {}
    for file in sorted(p for p in staged.rglob("*") if p.is_file()):
        _sync(file)
        listed[str(file.relative_to(staged))] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    text = json.dumps({"format": FORMAT, "files": listed, **(facts or {})}, indent=1, sort_keys=True, allow_nan=False)
    _write_synced(staged / MANIFEST, text)
    for folder in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
        _sync(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    _about_to("rename", final)
    staged.rename(final)
    _sync(final.parent)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(folder: Path, digest: str | None = None) -> dict[str, Any]:
    """The manifest of a published folder, after every file was compared with it; DamagedFiles otherwise."""
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(text)
        listed = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DamagedFiles(folder=str(folder), reason=f"no readable {MANIFEST} ({e})") from None
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise DamagedFiles(folder=str(folder), reason=f"{MANIFEST} is not the one that was recorded")
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()} - {MANIFEST}
    if present != set(listed):
        raise DamagedFiles(folder=str(folder), reason=f"files {sorted(present ^ set(listed))} are missing or foreign")
    for name, facts in listed.items():
        file = folder / name
        if file.is_symlink() or file.stat().st_size != facts["bytes"] or sha256(file) != facts["sha256"]:
            raise DamagedFiles(folder=str(folder), reason=f"{name} does not match its digest")
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Replace one small file, whole or not at all."""
    replace_text(path, json.dumps(value, indent=1, allow_nan=False))


def replace_text(path: Path, text: str) -> None:
    """The same for a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    _write_synced(part, text)
    _about_to("replace", path)
    os.replace(part, path)
    _sync(path.parent)


def remove(folder: Path) -> None:
    """Remove a folder that nothing refers to any more."""
    _about_to("remove", folder)
    shutil.rmtree(folder, ignore_errors=True)


def put_aside(folder: Path, place: Path) -> Path:
    """Move a folder out of the way, to `place` or to the first free name like it, and remove its parent where nothing is left there."""
    free = next(p for p in (place.with_name(place.name + (f".{n}" if n else "")) for n in itertools.count()) if not p.exists())
    free.parent.mkdir(parents=True, exist_ok=True)
    _about_to("rename", free)
    folder.rename(free)
    for changed in (free.parent, folder.parent):
        _sync(changed)
    if folder.parent.name not in ("models", "jobs") and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
    return free


def _about_to(operation: str, path: Path) -> None:
    if observer is not None:
        observer(operation, path)


def _is_no_space(e: Exception) -> bool:
    """A full disk, as the system says it or as a library words it (safetensors raises an error of its own)."""
    return (isinstance(e, OSError) and e.errno == errno.ENOSPC) or "os error 28" in str(e) or "No space left on device" in str(e)


def sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    _about_to("write", path)
    with path.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        _about_to("sync", path)
        os.fsync(f.fileno())


def _sync(path: Path) -> None:
    _about_to("sync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

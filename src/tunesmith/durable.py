"""The only module that writes durable files.

A folder is built in staging, then published: every file synced, a manifest of sizes and SHA-256
digests written, the folder renamed to its final name and the parent synced. What is not renamed
does not exist; what does not match its manifest is not loaded. Libraries write only into a folder
that `staging` opened.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunesmith.errors import DamagedFiles, DiskFull, HomeTooNew, StorageFailed

observer: Callable[[str, Path], None] | None = None
"""Told the name and the place of every operation before it happens: an instrument, so that tests
can die at the n-th, let it fail by raising OSError, or keep what a power cut would leave."""

MANIFEST = "MANIFEST.json"
MARKER = "FORMAT"  # of a home: its format, its identity, where it is
FORMAT = 1
MOST_FILES = 2000  # of a published folder
RESERVE_MB = 64  # kept free, so that the store itself can still be written
FULL = {errno.ENOSPC, errno.EDQUOT}
FAILED = {
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EEXIST,
    errno.ENOTEMPTY,
}
"""What a disk, or the limits of this process, can say at any write. A sync that failed is never
tried again: its folder is abandoned."""


def open_home(home: Path) -> dict[str, Any]:
    """Make the home folder and its tmp/ (same file system, so that a rename is atomic); what its
    marker says: id, its identity, and place, where it was when that was written. HomeTooNew where
    the marker is of another format."""
    marker = home / MARKER
    with typed_errors(home):
        if not (home / "tmp").is_dir():
            make_folder(home / "tmp")
        if not marker.exists():
            _write_first(marker, {"format": FORMAT, "id": new_identity(), "place": str(home)})
    found = read_marker(home)
    if found.get("format") != FORMAT:
        raise HomeTooNew(
            home=str(home), found=found.get("format", "that cannot be read"), known=FORMAT
        )
    if not isinstance(found.get("place"), str):
        found["place"] = str(home)
    if not isinstance(found.get("id"), str):  # written before homes had an identity
        at = home.stat()
        digest = hashlib.sha256(f"{home} {at.st_dev} {at.st_ino}".encode()).hexdigest()
        found |= {"id": digest[:32], "place": str(home)}
        if os.access(home, os.W_OK):
            write_json(marker, found)
    return found


def new_identity() -> str:
    return uuid.uuid4().hex


def read_marker(home: Path) -> dict[str, Any]:
    """What a home says of itself; empty where that cannot be read."""
    try:
        found = json.loads((home / MARKER).read_bytes())
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_first(path: Path, value: Any) -> None:
    """A small file, unless another process wrote it first: that one stays."""
    part = _part_of(path)
    with typed_errors(path):
        _write_synced(part, json.dumps(value, indent=1, allow_nan=False))
        _about_to("replace", path)
        with suppress(FileExistsError):
            os.link(part, path)
        part.unlink()
        _sync(path.parent)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder and those above it, known to their parents after a power cut too; by default
    for their owner alone."""
    with typed_errors(folder):
        missing = [p for p in (folder, *folder.parents) if not p.exists()]
        for new in reversed(missing):
            _about_to("make", new)
            try:
                new.mkdir(mode, exist_ok=True)
            except FileNotFoundError as e:  # where nobody can make any, as in /proc
                raise StorageFailed(path=str(folder), reason=str(e)) from e
            _sync(new.parent)


def check_space(folder: Path, needed: int) -> None:
    """DiskFull unless `needed` bytes and the reserve are free where `folder` is or will be."""
    free = _free(folder)
    if free < needed + RESERVE_MB * 2**20:
        raise DiskFull(path=str(folder), needed_mb=(needed >> 20) + RESERVE_MB, free_mb=free >> 20)


def _free(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def staging(home: Path) -> Iterator[Path]:
    """An empty folder to write into; whatever was not published from it is removed at the end."""
    open_home(home)
    with _temporary(home / "tmp") as folder:
        yield folder


@contextmanager
def staging_beside(final: Path) -> Iterator[Path]:
    """The same for a folder outside the home: on the file system where it will stand."""
    make_folder(final.parent, 0o777)
    with _temporary(final.parent, prefix=f".{final.name}.") as folder:
        yield folder


@contextmanager
def _temporary(place: Path, prefix: str = "") -> Iterator[Path]:
    with typed_errors(place):
        _about_to("stage", place)
        folder = Path(
            tempfile.mkdtemp(dir=place, prefix=prefix or f"{os.getpid()}-{_started(os.getpid())}-")
        )
        try:
            yield folder
        finally:
            remove(folder)


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """An empty folder in `place`/tmp, removed at the end; where its process is killed,
    `sweep_staging` knows it."""
    with _temporary(place / "tmp") as folder:
        yield folder


def spill_folder(home: Path) -> Path:
    """Where this process may put what its memory does not hold; not made, and swept like a staging
    folder."""
    return home / "tmp" / f"{os.getpid()}-{_started(os.getpid())}-spill"


def _started(process: int) -> str:
    """When a process was started, in the system's ticks, so that a number that is used again is
    told from it; empty where it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def unowned_staging(home: Path) -> list[Path]:
    """Staging folders whose process is gone: it was killed, or the machine was switched off."""
    found = []
    for folder in sorted((home / "tmp").glob("*-*-*")):
        process, started, _ = folder.name.split("-", 2)
        if process.isdecimal() and (not started or _started(int(process)) != started):
            found.append(folder)
    return found


def sweep_staging(home: Path) -> None:
    for folder in unowned_staging(home):
        remove(folder)


OWNER = ".of-"  # before the name of the process that makes or removes a folder: a file in it


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """A folder of a home, under its final name, that means nothing before the store tells of it.

    Where that fails it is removed; where its process is killed, `abandoned` knows it.
    """
    make_folder(folder.parent)
    with staging(folder.parents[1]) as staged:
        owner = folder / _own(staged).name
        _about_to("rename", folder)
        staged.rename(folder)
    try:
        with typed_errors(folder):
            _sync(folder.parent)
        yield
    except BaseException:
        remove(folder)
        raise
    owner.unlink(missing_ok=True)


@contextmanager
def removing(folder: Path) -> Iterator[None]:
    """Remove a folder once the store tells of it no more. Where that fails it stays; where this
    process is killed, `abandoned` knows it."""
    owner = _own(folder) if folder.is_dir() else None
    try:
        yield
    except BaseException:
        if owner is not None:
            owner.unlink(missing_ok=True)
        raise
    remove(folder)


def _own(folder: Path) -> Path:
    """Write into a folder which process it is of."""
    owner = folder / f"{OWNER}{os.getpid()}-{_started(os.getpid())}"
    with typed_errors(owner):
        _about_to("write", owner)
        os.close(open_private(owner))
    return owner


def abandoned(place: Path) -> list[Path]:
    """Folders whose making or removing was cut short by a kill: the store says which of them are
    whole."""
    return (
        [p for p in sorted(place.iterdir()) if p.is_dir() and _owners(p) and not is_owned(p)]
        if place.is_dir()
        else []
    )


def is_owned(folder: Path) -> bool:
    """Whether a process is making or removing it right now."""
    return any(_started(int(process)) == started for process, started in _owners(folder))


def is_marked(folder: Path) -> bool:
    """Whether a process is making or removing it, or was killed while it did."""
    return bool(_owners(folder))


def settle(folder: Path) -> None:
    """The store tells of the folder: it belongs to nobody else."""
    for owner in folder.glob(f"{OWNER}*"):
        owner.unlink(missing_ok=True)


def _owners(folder: Path) -> list[tuple[str, str]]:
    named = (p.name.removeprefix(OWNER).partition("-") for p in folder.glob(f"{OWNER}*"))
    return [(process, started) for process, _, started in named if process.isdecimal() and started]


@contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    """DiskFull or StorageFailed for what a disk says, also where a library words it (safetensors
    and DuckDB raise errors of their own)."""
    try:
        yield
    except Exception as e:
        number = (
            e.errno
            if isinstance(e, OSError)
            else next(map(int, re.findall(r"os error (\d+)", str(e))), None)
        )
        if number in FULL or "No space left on device" in str(e):
            raise DiskFull(path=str(path), needed_mb=RESERVE_MB, free_mb=_free(path) >> 20) from e
        if number in FAILED:
            raise StorageFailed(path=str(path), reason=str(e)) from e
        raise


def publish(
    staged: Path, final: Path, facts: dict[str, Any] | None = None, *, private: bool = True
) -> str:
    """Make the staged folder durable under its final name, at once and whole; returns the
    manifest's digest.

    `private`: for its owner alone, whatever the umask; else as the umask says.
    """
    digest = _seal(staged, facts or {}, private)
    make_folder(final.parent)
    _about_to("rename", final)
    staged.rename(final)
    _sync(final.parent)
    return digest


def publish_shared(staged: Path, place: Path, link: Path, facts: dict[str, Any]) -> str:
    """Publish the staged folder in `place` under its manifest's digest, unless it stands there
    already, and make `link` a link to it; returns the digest.

    A folder stays as long as something links to it: see `collect`.
    """
    digest = _seal(staged, facts, private=True)
    final = place / digest
    for folder in (place, link.parent):
        make_folder(folder)
    with alone(place), typed_errors(final):
        link_to(link, os.path.relpath(place.resolve() / digest, link.parent.resolve()))
        if not (final.is_dir() and _is_whole(final, digest)):
            if final.is_dir():  # damaged: what is put in its place is the same and whole
                _about_to("rename", final)
                final.rename(staged.with_name("damaged"))
            _about_to("rename", final)
            staged.rename(final)
        _sync(place)  # also where another process made it: it may not have come so far
    return digest


def link_to(link: Path, target: str) -> None:
    """Make a link, in the place of one that is there, if any."""
    _about_to("link", link)
    if link.is_symlink():
        made = link.with_name(f".{link.name}.{os.getpid()}")
        made.unlink(missing_ok=True)
        made.symlink_to(target)
        made.replace(link)
    else:
        link.symlink_to(target)
    _sync(link.parent)


def collect(place: Path, links: Iterable[Path], named: Iterable[str]) -> None:
    """Remove the folders of `place` that none of the links means and that are not `named`."""
    if not place.is_dir():
        return
    with alone(place):
        kept = {target_of(link) for link in links} | set(named)
        for folder in place.iterdir():
            if folder.is_dir() and folder.name not in kept:
                remove(folder)


def target_of(link: Path) -> str:
    """The name of what a link leads to; empty where there is no link, or no more."""
    try:
        return link.readlink().name
    except OSError:
        return ""


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """One process or thread at a time among those that change the folders of `place`, or the links
    to them; the lock ends with its holder, however that ends."""
    lock = place.with_name(f"{place.name}.lock")
    with typed_errors(lock):
        descriptor = open_private(lock)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):  # a child that was forked meanwhile has the lock open too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _is_whole(folder: Path, digest: str) -> bool:
    """StorageFailed, or DiskFull, where it cannot be read just now: that is no damage."""
    for file in (f for f in folder.iterdir() if f.is_file()):
        with typed_errors(file), file.open("rb") as f:
            f.read(1)
    try:
        verify(folder, digest)
    except DamagedFiles:
        return False
    return True


def _seal(staged: Path, facts: dict[str, Any], private: bool) -> str:
    """Sync a folder's files and write its manifest; the manifest's digest."""
    listed = {}
    for file in sorted(p for p in staged.rglob("*") if p.is_file()):
        if private:
            file.chmod(0o600)
        _sync(file)
        listed[str(file.relative_to(staged))] = {
            "bytes": file.stat().st_size,
            "sha256": sha256(file),
        }
    text = _sealed({"format": FORMAT, "files": listed, **facts})
    _write_synced(staged / MANIFEST, text, private)
    for folder in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
        if private:
            folder.chmod(0o700)
        _sync(folder)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(folder: Path, digest: str | None = None) -> dict[str, Any]:
    """The manifest of a published folder, after every file was compared with it; DamagedFiles
    otherwise."""
    try:
        present = set(_plain_files(folder))
        text = (folder / MANIFEST).read_bytes()
        manifest: dict[str, Any] = json.loads(text)
        listed = {
            str(name): (facts["bytes"], facts["sha256"])
            for name, facts in manifest["files"].items()
        }
        if (
            manifest["format"] != FORMAT
            or _sealed({k: v for k, v in manifest.items() if k != "seal"}).encode() != text
        ):
            raise ValueError("it was changed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DamagedFiles(folder=str(folder), reason=f"no readable {MANIFEST} ({e})") from None
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise DamagedFiles(
            folder=str(folder), reason=f"{MANIFEST} is not the one that was recorded"
        )
    if present != {MANIFEST, *listed}:
        raise DamagedFiles(
            folder=str(folder),
            reason=f"files {sorted(present ^ {MANIFEST, *listed})} are missing or foreign",
        )
    for name, facts in listed.items():
        file = folder / name
        if (file.stat().st_size, sha256(file)) != facts:
            raise DamagedFiles(folder=str(folder), reason=f"{name} does not match its digest")
    return manifest


def _plain_files(folder: Path) -> Iterator[str]:
    """The files of a folder and those below it, by their names from there; ValueError at a link, a
    pipe or a device, before it is read."""
    todo = [folder]
    for n in itertools.count():
        if not todo:
            return
        if n > MOST_FILES:
            raise ValueError(f"it holds over {MOST_FILES} folders")
        for count, entry in enumerate(sorted(todo.pop().iterdir())):
            mode = entry.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(f"{entry.name} is no ordinary file")
            if count > MOST_FILES:
                raise ValueError(f"it holds over {MOST_FILES} files")
            if stat.S_ISDIR(mode):
                todo.append(entry)
            else:
                yield str(entry.relative_to(folder))


def _sealed(manifest: dict[str, Any]) -> str:
    """A manifest as text, in one form, with its own digest: what nobody recorded elsewhere cannot
    be damaged unseen either."""
    seal = hashlib.sha256(
        json.dumps(manifest, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()
    return json.dumps({**manifest, "seal": seal}, indent=1, sort_keys=True, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Replace one small file, whole or not at all."""
    replace_text(path, json.dumps(value, indent=1, allow_nan=False))


def replace_text(path: Path, text: str) -> None:
    """The same for a text."""
    make_folder(path.parent)
    part = _part_of(path)
    with typed_errors(path):
        _write_synced(part, text)
        _about_to("replace", path)
        os.replace(part, path)
        _sync(path.parent)


def _part_of(path: Path) -> Path:
    """Where a file is written before it gets its name: each thread has a place of its own."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")


def remove(folder: Path) -> None:
    """Remove a folder that nothing refers to any more; where that fails it stays, and harms
    nothing."""
    try:
        _about_to("remove", folder)
    except OSError:
        return
    shutil.rmtree(folder, ignore_errors=True)


def put_aside(folder: Path, place: Path) -> Path:
    """Move a folder out of the way, to `place` or to the first free name like it, and remove its
    parent where nothing is left there."""
    free = next(
        p
        for p in (place.with_name(place.name + (f".{n}" if n else "")) for n in itertools.count())
        if not p.exists()
    )
    make_folder(free.parent)
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


def sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def open_private(path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_APPEND) -> int:
    """A descriptor of a file that its owner alone can read, whatever the umask and however it was
    made before."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    if os.fstat(descriptor).st_mode & 0o077 and os.fstat(descriptor).st_uid == os.geteuid():
        os.fchmod(descriptor, 0o600)
    return descriptor


def _write_synced(path: Path, text: str, private: bool = True) -> None:
    _about_to("write", path)
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600 if private else 0o666
    )
    with open(descriptor, "w", encoding="utf-8") as f:
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

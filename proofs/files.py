"""What is on the disk keeps its word: damaged files are never loaded, a full or broken disk costs
nothing, a power cut neither.

    python proofs/files.py [--damaged 1000] [--states 5000] [--every 1] [--only power|faults|damaged] [--seed 0]

The real worker and trainer on a tiny base, in processes forked from one that has imported torch and
never used it.
"""

import argparse
import errno
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crash
from crash import Trials, end_of
from forks import at_once, forked, moved, room
from record import Proof, show_and_save

from tunesmith import Tunesmith, durable, worker
from tunesmith.data.dataset import Dataset
from tunesmith.errors import DamagedFiles, DiskFull, StorageFailed, TunesmithError
from tunesmith.home import open_store
from tunesmith.inference.opening import open_model
from tunesmith.settings import Settings
from tunesmith.tuning import checkpoints

FAULTS = {
    "full": errno.ENOSPC,
    "broken": errno.EIO,
    "read-only": errno.EROFS,
    "too many files": errno.EMFILE,
}
LINK = b"\0a link to "  # before the target of one, where the simulated disk keeps it as bytes
LASTS = 4  # operations in a row that fail: a full disk stays full for a while


# ---------------------------------------------------------------- damaged files


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))] if data else b"x"


def _flip(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return b"x"
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "one bit": _flip,
    "longer": lambda data, chance: data + b"\0",
    "of zeros": lambda data, chance: bytes(len(data)) + b"\0" * (not any(data)),
    "of noise": lambda data, chance: chance.randbytes(max(8, len(data))),
}


def damage(folder: Path, chance: random.Random) -> Callable[[], None]:
    """Spoil one file of a published folder, or the set of them; what undoes it."""
    file = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    kind = chance.choice([*DAMAGE, "gone", "a link", "one too many"])
    before = file.read_bytes()
    if kind in DAMAGE:
        file.write_bytes(DAMAGE[kind](before, chance))
    elif kind == "one too many":
        (folder / "more.bin").write_bytes(b"x")
    else:
        file.rename(folder.parent / "elsewhere")
        if kind == "a link":
            file.symlink_to(folder.parent / "elsewhere")

    def undo() -> None:
        (folder / "more.bin").unlink(missing_ok=True)
        (folder.parent / "elsewhere").unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(before)

    return undo


def damaged(trials: Trials, n: int, seed: int) -> Iterator[Proof]:
    """Half of the damage to the newest checkpoint of a job that was killed, half to a finished
    model."""
    began, home, half = time.monotonic(), trials.home(), trials.home()
    forked(lambda: crash.work(home))
    forked(crash.dying_at(trials.operations * 2 // 3, half))

    def accepted(case: int) -> str:
        chance = random.Random(f"{seed} {case}")
        return _model_accepted(home, chance) if case % 2 else _checkpoint_accepted(half, chance)

    said = at_once(range(n), accepted, processes=1)  # they share the two homes
    for case, why in said[:10]:
        print(f"  {case}: {why}")
    yield Proof(
        f"{n} damaged checkpoints and models: none is loaded, the one before is used and named",
        "0 accepted",
        f"{len(said)} accepted",
        not said,
        time.monotonic() - began,
    )


def _checkpoint_accepted(home: Path, chance: random.Random) -> str:
    attempts = sorted((home / "jobs").glob("*/attempt-*"))
    newest, before = sorted(
        (c for a in attempts for c in a.glob("step-*")), key=lambda c: c.name, reverse=True
    )[:2]
    bound_to = json.loads((before / "state.json").read_text())["bound_to"]
    undo, told = damage(newest, chance), list[DamagedFiles]()
    try:
        found = checkpoints.newest(attempts, bound_to, told.append)
        return (
            ""
            if found is not None and found.folder == before and len(told) == 1
            else f"{found} after {told}"
        )
    finally:
        undo()


def _model_accepted(home: Path, chance: random.Random) -> str:
    [tuned] = Tunesmith(home=home).models()
    undo = damage(Path(tuned.folder), chance)
    try:
        open_model(tuned, "cpu")
        return "it was loaded"
    except DamagedFiles:
        return ""
    finally:
        undo()


# ---------------------------------------------------------------- a full or broken disk


class Faulty:
    """Lets the n-th operation and those after it fail, until `lasts` have."""

    def __init__(self, n: int, number: int, lasts: int) -> None:
        self._from, self._to, self._number, self._at = n, n + lasts, number, 0

    def __call__(self, operation: str, path: Path) -> None:
        self._at += 1
        if self._from <= self._at < self._to:
            raise OSError(self._number, os.strerror(self._number), str(path))


def faults(trials: Trials, every: int) -> Iterator[Proof]:
    """Each fault at each operation of a job: it ends as the undisturbed one, by itself or when it
    is taken up again."""
    began = time.monotonic()
    points = range(1, trials.operations + 1, every)
    cases: list[Any] = [[n, kind, 1] for n in points for kind in FAULTS] + [
        [n, "full", LASTS] for n in points[::4]
    ]

    def wrong(case: list[Any]) -> str:
        n, kind, lasts = case
        home = trials.home()

        def body() -> None:
            worker.SPACE_POLL_S = 0.0
            durable.observer = Faulty(n, FAULTS[kind], lasts)
            crash.work(home)

        code = forked(body)
        [job] = open_store(Settings.read(home)).all_jobs()
        if code or (job.status.is_final and job.status.value != "SUCCEEDED"):
            return f"ended with {code}, {job.status}: {job.error}"
        if not job.status.is_final:
            forked(lambda: crash.work(home))
        end = end_of(home)
        shutil.rmtree(home)
        return "" if end == trials.truth else f"ended as {end}"

    said = at_once(cases, wrong)
    for case, why in said[:10]:
        print(f"  {case}: {why}")
    yield Proof(
        f"{len(cases)} faults (disk full, I/O error, read-only, too many files) at {len(points)} operations of a job: the same "
        "model",
        "0 differ",
        f"{len(said)} differ",
        not said,
        time.monotonic() - began,
    )


def faults_of_create(base: Path, rows: list[dict[str, str]], folder: Path) -> Iterator[Proof]:
    """The same for CREATE: a typed error and nothing left, or the job."""
    began, at = time.monotonic(), 0
    said: list[Any] = []
    n = 1
    while True:
        cases = [[n, kind] for kind in FAULTS]

        def wrong(case: list[Any]) -> str:
            n, kind = case
            home = folder / f"create-{n}-{kind}"
            service = Tunesmith(home=home)
            worker.ensure = lambda *a, **k: None
            service.create("first", str(base), rows, **crash.OPTIONS)
            before = {p for p in home.rglob("*") if "tmp" not in p.parts}
            faulty = durable.observer = Faulty(n, FAULTS[kind], 1)
            try:
                service.create("second", str(base), rows[n % 2 :], **crash.OPTIONS)
                return (
                    "past"
                    if faulty._at < n
                    else ""
                    if len(service.show()) == 2
                    else "accepted, and not there"
                )
            except (DiskFull, StorageFailed):
                left = {
                    p
                    for p in home.rglob("*")
                    if "tmp" not in p.parts and not p.name.startswith(".")
                } - before
                durable.observer = None
                if [j.name for j in service.show()] != ["first"] or left:
                    return f"refused, and left {sorted(map(str, left))}"
                service.create("second", str(base), rows, **crash.OPTIONS)
                return "" if len(service.show()) == 2 else "not accepted when the fault was over"
            finally:
                durable.observer = None

        told = at_once(cases, wrong)
        if any(why == "past" for _, why in told):
            break
        said += told
        at += len(cases)
        n += 1
    for case, why in said[:10]:
        print(f"  {case}: {why}")
    yield Proof(
        f"{at} faults at every operation of CREATE: a typed error, nothing left, and it works afterwards",
        "0 wrong",
        f"{len(said)} wrong",
        not said and at > 0,
        time.monotonic() - began,
    )


# ---------------------------------------------------------------- a power cut


@dataclass(frozen=True)
class Moment:
    """What a power cut before one operation finds: what is on the disk for sure, what only the
    cache has, and the store as committed."""

    operation: str
    entries: Mapping[int, Mapping[str, int]]
    """Of each folder (inode) that was synced: its names, and what they stand for."""
    contents: Mapping[int, bytes]
    """Of each file (inode) that was synced."""
    now: Mapping[str, tuple[int, bytes | None]]
    """The tree as a process sees it: of each path its inode, and its bytes where it is a file."""
    store: bytes


class Cache:
    """An observer that keeps the simulated disk: only `sync` makes a file's bytes, or a folder's
    names, sure."""

    def __init__(self, home: Path) -> None:
        self._home, self._entries, self._contents = (
            home,
            dict[int, dict[str, int]](),
            dict[int, bytes](),
        )
        self._read: dict[tuple[int, int, int], bytes] = {}
        self.moments: list[Moment] = []

    def __call__(self, operation: str, path: Path) -> None:
        self.keep(f"{operation} {path.name}")
        if operation == "sync":
            inode = path.stat().st_ino
            if path.is_dir():
                self._entries = {
                    **self._entries,
                    inode: {p.name: p.lstat().st_ino for p in path.iterdir()},
                }
            else:
                self._contents = {**self._contents, inode: path.read_bytes()}

    def keep(self, operation: str) -> None:
        root = self._home.parent
        now: dict[str, tuple[int, bytes | None]] = {".": (root.stat().st_ino, None)}
        for p in sorted(self._home.rglob("*") if self._home.exists() else []):
            if not p.name.startswith("state.db"):
                now[str(p.relative_to(root))] = (p.lstat().st_ino, self._found(p))
        if self._home.exists():
            now[self._home.name] = (self._home.stat().st_ino, None)
        store = self._home / "state.db"
        self.moments.append(
            Moment(
                operation,
                self._entries,
                self._contents,
                now,
                store.read_bytes() if store.exists() else b"",
            )
        )

    def _found(self, path: Path) -> bytes | None:
        """A file's bytes; a link is on the disk as soon as its name is."""
        if path.is_symlink():
            target = LINK + os.fsencode(path.readlink())
            self._contents = {**self._contents, path.lstat().st_ino: target}
            return target
        return self._bytes(path) if path.is_file() else None

    def _bytes(self, file: Path) -> bytes:
        facts = file.stat()
        key = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if key not in self._read:
            self._read[key] = file.read_bytes()
        return self._read[key]


def after_power_loss(moment: Moment, target: Path, chance: random.Random) -> None:
    """One of the states that the disk may be in: of what was not synced, anything may have arrived,
    in part or not at all."""
    seen = {inode: (path, data) for path, (inode, data) in moment.now.items()}
    mood = chance.choice(["as synced", "as seen", "anything"])

    def bytes_of(inode: int) -> bytes:
        sure, now = moment.contents.get(inode), seen.get(inode, ("", None))[1]
        if now is None or now == sure:
            return sure or b""
        options = [sure or b"", now, now[: len(now) // 2], bytes(len(now))]
        return (
            options[0]
            if mood == "as synced"
            else now
            if mood == "as seen"
            else chance.choice(options)
        )

    def fill(inode: int, folder: Path) -> None:
        sure = moment.entries.get(inode, {})
        path = seen.get(inode, (None, None))[0]
        now = (
            {}
            if path is None
            else {
                p.rsplit("/", 1)[-1]: i
                for p, (i, _) in moment.now.items()
                if p != "." and (p.rsplit("/", 1)[0] if "/" in p else ".") == path
            }
        )
        for name in sorted(sure.keys() | now.keys()):
            if name.startswith("state.db"):
                continue
            options = [sure.get(name), now.get(name)]
            chosen = (
                options[0]
                if mood == "as synced"
                else options[1]
                if mood == "as seen"
                else chance.choice(options)
            )
            if chosen is None:
                continue
            is_file = chosen in moment.contents or seen.get(chosen, ("", None))[1] is not None
            found = bytes_of(chosen) if is_file else b""
            if found.startswith(LINK):
                (folder / name).symlink_to(os.fsdecode(found.removeprefix(LINK)))
            elif is_file:
                (folder / name).write_bytes(found)
            else:
                (folder / name).mkdir()
                fill(chosen, folder / name)

    target.mkdir()
    fill(moment.now["."][0], target)


def record(base: Path, rows: list[dict[str, str]], folder: Path) -> list[Moment]:
    """A whole job from the first CREATE on, before each of its operations."""
    home = folder / "home"
    cache = durable.observer = Cache(home)
    worker.ensure = lambda *a, **k: None
    service = Tunesmith(home=home)
    service.create("m", str(base), rows, **crash.OPTIONS)
    crash.work(home)
    cache.keep("end")
    durable.observer = None
    if service.show()[0].status.value != "SUCCEEDED":
        raise SystemExit("the recorded job failed")
    return cache.moments


def power(
    base: Path, rows: list[dict[str, str]], folder: Path, states: int, seed: int
) -> Iterator[Proof]:
    """The power goes before any operation, and what is left is opened."""
    began = time.monotonic()

    def share(part: int) -> list[str]:
        place = folder / f"power-{part}"
        place.mkdir()
        moments, chance, said = record(base, rows, place), random.Random(f"{seed} {part}"), []
        for i in range(states // 2):
            moment = moments[i % len(moments)]
            after_power_loss(moment, place / "state", chance)
            if why := lost(place / "state" / "home", moment):
                said.append(f"before {moment.operation}: {why}")
            shutil.rmtree(place / "state")
        return [str(len(moments)), *said]

    told = [said for _, said in at_once([0, 1], share)]
    wrong = [why for said in told for why in said[1:]]
    for why in wrong[:10]:
        print(f"  {why}")
    promise = f"{states} states after a power cut at {told[0][0]} moments: an accepted job has its rows, a model that was shown loads"
    yield Proof(promise, "0 lost", f"{len(wrong)} lost", not wrong, time.monotonic() - began)


def lost(home: Path, moment: Moment) -> str:
    """What was promised and is not there."""
    if not moment.store:
        return ""
    if not home.is_dir():
        return "the home folder is gone, and the store was there"
    (moved(home) / "state.db").write_bytes(moment.store)
    settings = Settings.read(home)
    store = open_store(settings)
    try:
        jobs, models = store.all_jobs(), store.all_models()
        for job in jobs:
            folder = settings.job_folder(job.id)
            Dataset.open(folder / "data", job.data_digest)
            attempts = sorted(folder.glob("attempt-*"))
            _ = [checkpoints.newest([a], _bound_to(a)) for a in attempts]
            if (job.status.value == "SUCCEEDED") != bool(models):
                return f"{job.status} with {len(models)} models"
        for model in models:
            durable.verify(home / model.folder, model.digest)
    except TunesmithError as e:
        return str(e)
    finally:
        store.close()
    return ""


def _bound_to(attempt: Path) -> Any:
    """What a whole checkpoint of an attempt says it belongs to."""
    for state in sorted(attempt.glob("step-*/state.json"), reverse=True):
        try:
            return json.loads(state.read_text())["bound_to"]
        except (ValueError, KeyError):
            continue
    return {}


def proofs(
    base: Path, rows: list[dict[str, str]], folder: Path, args: argparse.Namespace
) -> Iterator[Proof]:
    if args.only in (None, "power"):
        yield from power(base, rows, folder, args.states, args.seed)
    if args.only == "power":
        return
    trials = Trials(base, rows, folder)
    if args.only in (None, "faults"):
        yield from faults(trials, args.every)
        yield from faults_of_create(base, rows, folder)
    if args.only in (None, "damaged"):
        yield from damaged(trials, args.damaged, args.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--damaged", type=int, default=1000)
    parser.add_argument("--states", type=int, default=5000)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", choices=["power", "faults", "damaged"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with room() as temporary:
        folder = Path(temporary)
        if forked(lambda: crash.make_base(folder / "base")) != 0:  # torch is used in a child alone
            raise SystemExit("no base")
        show_and_save(proofs(folder / "base", crash.rows(), folder, args), "python proofs/files.py")


if __name__ == "__main__":
    main()

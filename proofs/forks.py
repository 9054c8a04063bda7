"""Instruments of the proofs: processes forked from one that has imported what it needs and used
none of it, so that a life costs no import."""

import json
import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.executors import Exited, Running, preloaded
from tunesmith.phases.child import Phase, Work, perform, to_text
from tunesmith.phases.messages import Message, from_line, to_line


def room() -> "tempfile.TemporaryDirectory[str]":
    """A folder for trials, in memory where there is enough: a SIGKILL does not care, and a sync
    costs nothing there."""
    memory = Path("/dev/shm")
    is_large = (
        memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30
    )
    return tempfile.TemporaryDirectory(dir=memory if is_large else None)


def moved(home: Path) -> Path:
    """A copy of a home that stands for the home itself: what it is a copy of is still there, and it
    would be refused."""
    marker = home / "FORMAT"
    if marker.exists():
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "place": str(home)}))
    return home


def forked(body: Callable[[], Any], kill_after: float | None = None) -> int:
    """Run `body` in a forked process; how it ended (0, or minus the signal)."""
    pid = start(body)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(body: Callable[[], Any]) -> int:
    """Begin `body` in a forked process; its process id. What it prints is lost unless PROOF_LOG
    names a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        quiet = os.open(
            os.environ.get("PROOF_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        body()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def at_once(cases: Iterable[Any], judge: Callable[[Any], Any], processes: int = 2) -> list[Any]:
    """The cases (of plain data) that `judge` says something about, with what it says where that is
    not just True; so many at a time."""
    every = list(cases)
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary) / str(p) for p in range(processes)]

        def share(p: int) -> None:
            found = [(c, said) for c in every[p::processes] if (said := judge(c))]
            files[p].write_text(json.dumps([c if said is True else [c, said] for c, said in found]))

        started = [start(lambda p=p: share(p)) for p in range(processes)]  # type: ignore[misc]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
        if any(codes):
            raise SystemExit(f"a process of the proof ended with {codes}; PROOF_LOG=file shows why")
        return [c for file in files for c in json.loads(file.read_text())]


class InThisProcess:
    """An executor whose phases run in this process, so that a kill takes both. A phase goes on only
    while its worker waits for what it says, so that their operations come in one order."""

    def start(self, phase: Phase, work: Work, log: BinaryIO) -> Running:
        return _Turns(phase, work)

    def warm(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Turns:
    def __init__(self, phase: Phase, work: Work) -> None:
        self._turn, self._said = threading.Semaphore(0), queue.Queue[Message | Exited]()
        body = partial(self._run, phase, to_text(work))
        threading.Thread(target=body, daemon=True).start()

    def hear(self, timeout_s: float) -> Message | Exited | None:
        self._turn.release()
        return self._said.get()

    def stop(self) -> None:
        """Where it has not ended, its turn does not come again."""

    def _run(self, phase: Phase, work: str) -> None:
        self._turn.acquire()
        perform(phase, work, self._say)
        self._said.put(Exited(0))

    def _say(self, message: Message) -> None:
        self._said.put(from_line(to_line(message)))
        self._turn.acquire()


def preload() -> Path:
    """A socket on which a process forked from this one listens, from which executors fork their
    phases: it has what this one has imported. It ends with this one."""
    place = Path(tempfile.mkdtemp()) / "preloaded"
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            preloaded.main(["--socket", str(place), "--parent", str(parent)])
        finally:
            os._exit(1)
    while not place.exists():
        time.sleep(0.01)
    return place


def phases_of(home: Path, name: str = "") -> list[int]:
    """Processes that run a phase (of this name) for jobs of this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_one = (folder / "comm").read_text().startswith(f"tunesmith-{name}"[:15])
            if is_one and str(home) in str((folder / "fd/2").readlink()):
                found.append(int(folder.name))
    return found

"""Instruments of the proofs: processes forked from one that has imported what it needs and used
none of it, so that a life costs no import."""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast


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


class ForkedChild:
    """A child with what the worker needs of subprocess.Popen: pid, pipes, poll and wait. `body`
    reads 0, writes 1 and 2."""

    def __init__(self, body: Callable[[], Any], stderr: BinaryIO) -> None:
        to_child, from_child = os.pipe(), os.pipe()
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                for end, place in ((to_child[0], 0), (from_child[1], 1), (stderr.fileno(), 2)):
                    os.dup2(end, place)
                os.closerange(3, 256)
                sys.stdin = os.fdopen(0, "r", closefd=False)
                body()
                code = 0
            finally:
                os._exit(code)
        os.close(to_child[0]), os.close(from_child[1])
        self.stdin, self.stdout = (
            cast(BinaryIO, os.fdopen(to_child[1], "wb")),
            cast(BinaryIO, os.fdopen(from_child[0], "rb")),
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        from subprocess import TimeoutExpired

        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise TimeoutExpired("forked", timeout or 0.0)
            time.sleep(0.01)
        return cast(int, self.returncode)

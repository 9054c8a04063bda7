"""Phases as processes on this machine, forked from one that has torch imported."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from tunesmith.executors import Exited, Running
from tunesmith.phases.child import Phase, Work, to_text
from tunesmith.phases.messages import Message, from_line
from tunesmith.settings import Settings

STOP_S = 10.0  # a phase that does not end by itself is killed after this
IDLE_S = 60.0  # without a phase, after which the preloaded process ends


class LocalExecutor:
    """Keeps one preloaded process, started when it is first needed, and again where it has gone.

    With TUNESMITH_PRELOADED it uses the one that listens there and starts none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._owner, self._used, self._running = os.getpid(), time.monotonic(), 0

    def warm(self) -> None:
        with self._lock:
            self._connected()

    def start(self, phase: Phase, work: Work, log: BinaryIO) -> Running:
        stdin, stdout, told = os.pipe(), os.pipe(), os.pipe()
        fds = [stdin[0], stdout[1], log.fileno(), told[1]]
        with self._lock:
            connection, process = self._connected()
            try:
                socket.send_fds(connection, [phase.name.encode()], fds)
            except OSError:  # it ended just now: another one is started
                self._connection = None
                connection, process = self._connected()
                socket.send_fds(connection, [phase.name.encode()], fds)
            self._running += 1
        for fd in (stdin[0], stdout[1], told[1]):
            os.close(fd)
        given = {"folder": self._folder(), "environment": self._environment()}
        text = json.dumps({**given, "work": to_text(work)})
        return _Running(text.encode(), stdin[1], stdout[0], told[0], process, self._has_ended)

    def close(self) -> None:
        """The preloaded process ends with its connection."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
                if self._process is not None:
                    self._process.wait()
            self._connection = self._process = None

    def _has_ended(self) -> None:
        with self._lock:
            self._used, self._running = time.monotonic(), self._running - 1

    def _folder(self) -> str:
        try:
            return str(Path.cwd())
        except FileNotFoundError:
            return str(self._settings.home)

    def _connected(self) -> "tuple[socket.socket, subprocess.Popen[bytes] | None]":
        if self._owner != os.getpid():  # a fork must not go on with what is its parent's
            self._connection = self._process = None
            self._owner, self._running = os.getpid(), 0
        elif self._process is not None and (self._process.poll() is not None or self._may_end()):
            cast(socket.socket, self._connection).close()
            self._connection = None
        if self._connection is None:
            if self._settings.preloaded:
                self._connection = socket.socket(socket.AF_UNIX)
                self._connection.connect(self._settings.preloaded)
            else:
                self._connection = self._begin()
        return self._connection, self._process

    def _may_end(self) -> bool:
        """Whether the preloaded process has been idle for so long that it may be about to end."""
        return not self._running and time.monotonic() - self._used > IDLE_S / 2

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        words = ["-m", "tunesmith.executors.preloaded", "--connection", str(theirs.fileno())]
        if threading.current_thread() is threading.main_thread():
            # elsewhere the system would end it with the thread; then only the connection tells it
            words += ["--parent", str(os.getpid())]
        words += ["--idle", str(IDLE_S)]
        self._used = time.monotonic()
        self._process = subprocess.Popen(
            # -P: a file in the folder that the user stands in, named like a library, is not run
            [sys.executable, "-P", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env=self._environment(),
        )
        theirs.close()
        return ours

    def _environment(self) -> dict[str, str]:
        found = {**os.environ, **self._settings.environment()}
        del found["TUNESMITH_STORE"]  # a phase has no database credential
        return found


class _Running:
    """A forked phase: two threads' worth of waiting in one, which ends with the process."""

    def __init__(
        self,
        work: bytes,
        stdin: int,
        stdout: int,
        told: int,
        process: "subprocess.Popen[bytes] | None",
        at_end: Callable[[], None],
    ) -> None:
        self._heard: queue.Queue[Message | Exited] = queue.Queue()
        self._pid: queue.Queue[int] = queue.Queue()
        self._ended = threading.Event()
        self._end: Exited | None = None
        self._process, self._killed_before = process, _oom_kills()
        self._known_pid, self._at_end = 0, at_end
        threading.Thread(target=self._listen, args=(work, stdin, stdout, told), daemon=True).start()

    def hear(self, timeout_s: float) -> Message | Exited | None:
        if self._end is not None:
            return self._end
        try:
            found = self._heard.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, Exited):
            self._end = found
        return found

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        if not self._ended.wait(STOP_S):
            self._signal(signal.SIGKILL)
            self._ended.wait(STOP_S)

    def _signal(self, number: int) -> None:
        if not self._known_pid and not self._ended.is_set():
            try:
                self._known_pid = self._pid.get(timeout=STOP_S)
            except queue.Empty:  # it was never forked: what it would be forked from is stuck
                if self._process is not None:
                    self._process.kill()
                return
        if not self._ended.is_set() and self._known_pid:
            try:
                os.killpg(self._known_pid, number)
            except ProcessLookupError:
                pass

    def _listen(self, work: bytes, stdin: int, stdout: int, told: int) -> None:
        """What the phase says, line by line, and how it ended."""
        with os.fdopen(told, "r") as status:
            first = status.readline()
            self._pid.put(int(first.removeprefix("pid ")) if first.startswith("pid ") else 0)
            try:
                with os.fdopen(stdin, "wb") as given:
                    given.write(work)
            except BrokenPipeError:
                pass  # it died at once; its end tells
            with os.fdopen(stdout, "rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):  # one that was killed while writing leaves half a line
                        self._heard.put(from_line(line))
            last = status.readline() if first.startswith("pid ") else first
        self._ended.set()
        self._at_end()
        self._heard.put(Exited(self._code(last), _oom_kills() > self._killed_before))

    def _code(self, told: str) -> int:
        if told.startswith("ended "):
            return int(told.removeprefix("ended "))
        if self._process is None:  # a process of somebody else's ended, and this phase with it
            return -signal.SIGKILL
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL


def _oom_kills() -> int:
    """How many processes this system has killed for want of memory since it started; 0 where it
    does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0

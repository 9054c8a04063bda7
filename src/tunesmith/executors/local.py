"""Phases as processes on this machine, forked from one that has torch imported."""

import json
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet

from tunesmith import durable
from tunesmith.errors import InvalidSetting, TunesmithError
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
        self._used, self._running = time.monotonic(), 0
        _executors.add(self)

    def warm(self) -> None:
        try:
            with self._lock:
                self._connected()
        except (OSError, InvalidSetting):
            pass  # who starts a phase is told

    def start(self, phase: Phase, work: Work, log: BinaryIO) -> Running:
        given = {"folder": self._folder(), "environment": self._environment()}
        text = json.dumps({**given, "work": to_text(work)})
        stdout, told = os.pipe(), os.pipe()
        with tempfile.TemporaryFile() as stdin:
            stdin.write(text.encode())
            stdin.seek(0)
            fds = [stdin.fileno(), stdout[1], log.fileno(), told[1]]
            try:
                with self._lock:
                    self._send(phase, fds)
                    self._running += 1
            except BaseException:
                os.close(stdout[0])
                os.close(told[0])
                raise
            finally:
                os.close(stdout[1])
                os.close(told[1])
        return _Running(stdout[0], told[0], self._process, self._has_ended)

    def _send(self, phase: Phase, fds: list[int]) -> None:
        try:
            socket.send_fds(self._connected(), [phase.name.encode()], fds)
        except OSError:  # it ended just now: another one is started
            self._let_go()
            socket.send_fds(self._connected(), [phase.name.encode()], fds)

    def close(self) -> None:
        """The preloaded process ends with its connection."""
        with self._lock:
            process = self._process
            self._let_go()
        if process is not None:
            process.wait()

    def _let_go(self) -> None:
        if self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)  # also where a fork has a copy of it
            except OSError:
                pass
            self._connection.close()
        self._connection = self._process = None

    def after_fork(self) -> None:
        """In a child: it must not go on with what is its parent's."""
        self._lock = threading.Lock()
        if self._connection is not None:
            self._connection.close()  # not shut down: the parent goes on with it
        self._connection = self._process = None
        self._running = 0

    def _has_ended(self) -> None:
        with self._lock:
            self._used, self._running = time.monotonic(), self._running - 1

    def _folder(self) -> str:
        try:
            return str(Path.cwd())
        except FileNotFoundError:
            return str(self._settings.home)

    def _connected(self) -> socket.socket:
        if self._process is not None and (self._process.poll() is not None or self._may_end()):
            self._let_go()
        if self._connection is None:
            self._connection = self._found() if self._settings.preloaded else self._begin()
        return self._connection

    def _found(self) -> socket.socket:
        """A connection to the process that was named."""
        place = self._settings.preloaded
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(place)
        except OSError as e:
            connection.close()
            allowed = f"it is a socket on which a preloaded process listens ({e.strerror or e})"
            raise InvalidSetting(name="TUNESMITH_PRELOADED", value=place, allowed=allowed) from None
        return connection

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
        with self._log() as log:
            self._process = subprocess.Popen(
                # -P: a file in the user's folder, named like a library, is not run
                [sys.executable, "-P", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=self._environment(),
            )
        theirs.close()
        return ours

    def _log(self) -> BinaryIO:
        """What imports print goes to the worker's log, not to a user's terminal."""
        try:
            return os.fdopen(durable.open_private(self._settings.home / "worker.log"), "ab")
        except (OSError, TunesmithError):  # a home that is not there, or cannot be written
            return os.fdopen(os.open(os.devnull, os.O_WRONLY), "wb")

    def _environment(self) -> dict[str, str]:
        found = {**os.environ, **self._settings.environment()}
        del found["TUNESMITH_STORE"]  # a phase has no database credential
        return found


_executors: WeakSet[LocalExecutor] = WeakSet()


def _after_fork() -> None:
    for executor in _executors:
        executor.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class _Running:
    """A forked phase, and the thread that listens to it until it has ended."""

    def __init__(
        self,
        stdout: int,
        told: int,
        process: "subprocess.Popen[bytes] | None",
        at_end: Callable[[], None],
    ) -> None:
        """`stdout` has its messages, `told` its process id and how it ended."""
        self._heard: queue.Queue[Message | Exited] = queue.Queue()
        self._began, self._ended = threading.Event(), threading.Event()
        self._end: Exited | None = None
        self._process, self._killed_before = process, _oom_kills()
        self._at_end, self._is_stopped = at_end, False
        self.pid = 0
        threading.Thread(target=self._run, args=(stdout, told), daemon=True).start()

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
        self._is_stopped = True  # one that has not begun is killed as soon as it does
        if self._began.is_set() and not self._ended.is_set():
            self._signal(signal.SIGTERM)
            if not self._ended.wait(STOP_S):
                self._signal(signal.SIGKILL)
                self._ended.wait(STOP_S)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def _run(self, stdout: int, told: int) -> None:
        code = -signal.SIGKILL
        try:
            code = self._code(self._listen(stdout, told))
        finally:  # whatever was said, who listens hears the end
            if self.pid:
                self._signal(signal.SIGKILL)  # what it started and left behind
            os.close(stdout)
            os.close(told)
            self._ended.set()
            self._at_end()
            self._heard.put(Exited(code, _oom_kills() > self._killed_before))

    def _listen(self, stdout: int, told: int) -> str:
        """Hear it out; what was told of its end, or nothing where whoever tells it is gone."""
        said, known = b"", b""
        sources = [told, stdout]
        while told in sources:
            for source in select.select(sources, [], [])[0]:
                data = os.read(source, 1 << 16)
                if source == stdout:
                    said = self._heard_of(said + data)
                else:
                    known += data
                    self._note_begin(known)
                if not data or (source == told and b"ended " in known and known[-1:] == b"\n"):
                    sources.remove(source)
        while stdout in sources and select.select([stdout], [], [], 0.0)[0]:
            data = os.read(stdout, 1 << 16)
            said = self._heard_of(said + data)
            if not data:
                break
        return known.decode().rpartition("ended ")[2] if b"ended " in known else ""

    def _heard_of(self, said: bytes) -> bytes:
        """Pass on whole lines; what is left. One that was killed while writing leaves half a
        line."""
        *lines, rest = said.split(b"\n")
        for line in lines:
            self._heard.put(from_line(line))
        return rest

    def _note_begin(self, known: bytes) -> None:
        if not self._began.is_set() and known.startswith(b"pid ") and b"\n" in known:
            self.pid = int(known.split()[1])
            self._began.set()
            if self._is_stopped:
                self._signal(signal.SIGKILL)

    def _code(self, told: str) -> int:
        if told:
            return int(told)
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

"""The process that phases are forked from: it has imported torch and transformers, which takes
seconds, and never runs an operation of theirs.

    python -m tunesmith.executors.preloaded --connection FD     for the process that started it
    python -m tunesmith.executors.preloaded --socket PATH       for whoever connects, until killed

A child that was forked after a threaded operation would wait for threads that it does not have, so
nothing is computed here. Whoever is connected sends the name of a phase with four descriptors: the
phase's standard input, output and error, and one on which its process id and how it ended are told
as text. When a connection ends, what was started through it is killed.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith import imports
from tunesmith.phases import child

IDLE_S = 60.0  # without a phase, after which a process that serves one connection ends

# In this order; a phase can be started once its own module is among those imported.
MODULES = (
    child.PREPARE.module,
    "torch",
    "transformers.models.llama.modeling_llama",
    child.EVALUATE.module,
    child.TRAIN.module,
    child.REHEARSE.module,
    child.PROVE_RESUME.module,
    child.EXPORT.module,
)


class Preloaded:
    """The one loop: import the next module, hear requests, tell of children that ended."""

    def __init__(self, listening: socket.socket | None, idle_s: float) -> None:
        self._selector = selectors.DefaultSelector()
        self._idle_s, self._left = idle_s, list(MODULES)
        self._waiting: list[tuple[socket.socket, child.Phase, list[int]]] = []
        self._children: dict[int, tuple[socket.socket, int]] = {}
        self._woken, waker = socket.socketpair()
        self._woken.setblocking(False)
        waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker.fileno())
        self._own: list[socket.socket] = [self._woken, waker]
        self._watch(self._woken, self._reap)
        if listening is not None:
            self._own.append(listening)
            self._watch(listening, lambda: self._accept(listening))
        self._serves_one = listening is None

    def _watch(self, source: socket.socket, act: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # too many files: who knocks hears that it is closed
            self.connect(listening.accept()[0])

    def connect(self, connection: socket.socket) -> None:
        self._own.append(connection)
        self._watch(connection, lambda: self._hear(connection))

    def serve(self) -> None:
        """Until the one connection has ended, or nothing was asked of it for a while."""
        quiet_since = time.monotonic()
        while True:
            found = self._selector.select(0.0 if self._left else 1.0)
            for key, _ in found:
                key.data()
            if found or self._left or self._children or self._waiting:
                quiet_since = time.monotonic()
            if self._left and not found:
                _import(self._left.pop(0))
                if not self._left:
                    gc.freeze()  # children do not copy pages by visiting what is here
            self._start_what_can()
            if self._serves_one and (
                len(self._own) == 2 or time.monotonic() - quiet_since > self._idle_s
            ):
                return

    def _hear(self, connection: socket.socket) -> None:
        try:
            name, fds, _, _ = socket.recv_fds(connection, 64, 4)
        except OSError:
            name, fds = b"", []
        phase = child.PHASES.get(name.decode(errors="replace"))
        if phase is not None and len(fds) == 4:
            self._waiting.append((connection, phase, fds))
            return
        for fd in fds:  # of another release, or there were too many files: its end is told
            os.close(fd)
        if name:
            return
        self._selector.unregister(connection)
        self._own.remove(connection)
        connection.close()
        for request in [r for r in self._waiting if r[0] is connection]:
            self._waiting.remove(request)
            for fd in request[2]:
                os.close(fd)
        for pid, (of, _) in self._children.items():
            if of is connection:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def _start_what_can(self) -> None:
        for request in list(self._waiting):
            if request[1].module not in self._left:
                self._waiting.remove(request)
                self._fork(*request)

    def _fork(self, connection: socket.socket, phase: child.Phase, fds: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as e:  # too many processes, or no memory: this phase has ended, no other
            os.write(fds[2], f"the phase could not be forked: {e}\n".encode())
            os.write(fds[3], f"ended {-signal.SIGKILL}\n".encode())
            for fd in fds:
                os.close(fd)
            return
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for source in self._own:
                    source.close()
                for _, told in self._children.values():
                    os.close(told)
                for _, _, waiting in self._waiting:
                    for fd in waiting:
                        os.close(fd)
                self._selector.close()
                become(phase, fds, parent)
            except BaseException:
                traceback.print_exc()
                _flush()
            finally:
                os._exit(1)
        self._children[pid] = (connection, fds[3])
        for fd in fds[:3]:
            os.close(fd)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _, told = self._children.pop(pid)
            with contextlib.suppress(OSError):
                os.write(told, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(told)


def become(phase: child.Phase, fds: list[int], parent: int) -> None:
    """Be the process of a phase, from its first moment to its last."""
    os.setsid()
    child.die_with_parent(parent)
    for fd, place in zip(fds[:3], (0, 1, 2), strict=True):
        os.dup2(fd, place)
        os.close(fd)
    os.write(fds[3], f"pid {os.getpid()}\n".encode())
    os.close(fds[3])
    _name_process(f"tunesmith-{phase.name}")
    gc.enable()
    random.seed()
    with os.fdopen(os.dup(0), "rb") as given:
        asked = json.load(given)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    child.run(phase, asked["work"])
    _flush()
    os._exit(0)


def _flush() -> None:
    """What libraries print goes to the log, to its last word."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _import(module: str) -> None:
    """What fails here fails again in the phase that needs it, whose log then says why."""
    try:
        # SciPy: for losses of object detection
        with imports.quickly("transformers", without="scipy"):
            importlib.import_module(module)
    except Exception as e:
        print(f"{module} was not preloaded: {type(e).__name__}: {e}", file=sys.stderr, flush=True)


def _name_process(name: str) -> None:
    """What `ps` and `top` show (Linux: PR_SET_NAME, 15 characters)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(15, name[:15].encode())


def main(words: Any = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--connection", type=int)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--parent", type=int, help="end with the process of this number")
    parser.add_argument("--idle", type=float, default=IDLE_S)
    asked = parser.parse_args(words)
    if asked.parent:
        child.die_with_parent(asked.parent)
    imports.is_own_process = True
    gc.disable()  # until a phase: imports make many objects and no garbage
    # A GPU must not be touched before a fork; this way torch only asks the driver's management
    # library whether there is one.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when it is imported
    _name_process("tunesmith-preloaded")
    listening = None
    if asked.socket:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(os.fspath(asked.socket))
        listening.listen()
    here = Preloaded(listening, asked.idle)
    if asked.connection is not None:
        here.connect(socket.socket(fileno=asked.connection))
    here.serve()


if __name__ == "__main__":
    main()

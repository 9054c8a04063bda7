"""Phases are forked from a preloaded process: whose they are, what they know, how they end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import next_word_rows, until
from tunesmith import Tunesmith, worker
from tunesmith.errors import InvalidSetting, TrainingFailed
from tunesmith.executors import Exited, ask
from tunesmith.executors.local import LocalExecutor
from tunesmith.jobs import Job
from tunesmith.phases.child import PREPARE, REHEARSE, Assignment
from tunesmith.phases.messages import Done, Measured, Message, Prepared
from tunesmith.settings import Settings


@pytest.fixture
def alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalExecutor]:
    """An executor with a preloaded process of its own, in a home whose store needs a password."""
    monkeypatch.delenv("TUNESMITH_PRELOADED")
    settings = Settings.read()
    monkeypatch.setenv("TUNESMITH_STORE", "postgresql://user:secret@127.0.0.1/none")
    executor = LocalExecutor(settings)
    yield executor
    executor.close()


@pytest.fixture
def work(home: Path, tuned_base: Path, monkeypatch: pytest.MonkeyPatch) -> Assignment:
    monkeypatch.setattr(worker, "ensure", lambda *a, **k: None)
    service = Tunesmith()
    job: Job = service.create("m", str(tuned_base), next_word_rows(2), max_epochs=1)
    made = Assignment.of(job, service.settings)
    Path(made.folder).mkdir(parents=True)
    return made


def heard(executor: LocalExecutor, work: Assignment) -> list[Message | Exited]:
    found: list[Message | Exited] = []
    with tempfile.TemporaryFile() as log:
        running = executor.start(PREPARE, work, log)
        while not found or not isinstance(found[-1], Exited):
            if (message := running.hear(1.0)) is not None:
                found.append(message)
        assert running.hear(0.0) == found[-1], "an end is told as often as it is asked for"
    return found


def preloaded_of(executor: LocalExecutor) -> int:
    assert executor._process is not None
    return executor._process.pid


def test_a_phase_tells_typed_messages_and_its_end(work: Assignment, alone: LocalExecutor) -> None:
    *told, done, end = heard(alone, work)
    assert (done, end) == (Done(), Exited(0)) and any(isinstance(m, Prepared) for m in told)
    first = preloaded_of(alone)
    heard(alone, work)
    assert preloaded_of(alone) == first, "one process serves all phases"
    os.kill(first, signal.SIGKILL)
    assert alone._process is not None
    alone._process.wait()
    assert heard(alone, work)[-1] == Exited(0) and preloaded_of(alone) != first


def test_a_phase_has_no_credential_and_no_thread_before_it_works(
    work: Assignment, alone: LocalExecutor
) -> None:
    with tempfile.TemporaryFile() as log:
        ask(alone, REHEARSE, _decided(alone, work), Measured, log)
    pid = preloaded_of(alone)
    assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    own = [t for t in Path(f"/proc/{pid}/task").iterdir() if _has_worked(t)]
    assert len(own) == 1, "what phases are forked from never ran an operation in threads"
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "libtorch" in maps, "it has torch, or this test proves nothing"


def _decided(executor: LocalExecutor, work: Assignment) -> Assignment:
    from dataclasses import replace

    [prepared] = [m for m in heard(executor, work) if isinstance(m, Prepared)]
    return replace(work, resolved=json.loads(json.dumps(prepared.resolved)))


def _has_worked(task: Path) -> bool:
    """Whether a thread has used processor time (in hundredths of a second)."""
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) > 0


def test_phases_end_with_whoever_asked_for_them(
    work: Assignment, home: Path, tmp_path: Path
) -> None:
    """A process asks for a long phase and is killed; what it asked for, and what that was forked
    from, go with it. Once with a preloaded process of its own, once with one that listens."""
    program = """
import json, os, signal, sys, time
from tunesmith.executors.local import LocalExecutor
from tunesmith.phases.child import PHASES, Assignment
from tunesmith.settings import Settings
executor = LocalExecutor(Settings.read())
work = Assignment(**json.loads(sys.argv[1]))
log = open(os.path.join(work.folder, "log.txt"), "ab")
running = executor.start(PHASES["prove_resume"], work, log)
running._began.wait()
os.kill(running.pid, signal.SIGSTOP)  # so that it lasts
print(running.pid, executor._process.pid if executor._process else 0, flush=True)
time.sleep(60)
"""
    from dataclasses import asdict

    shared = {k: v for k, v in os.environ.items() if k != "TUNESMITH_PRELOADED"}
    for environment in (shared, dict(os.environ)):
        asking = subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(asdict(work))],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert asking.stdout is not None
        pids = [int(p) for p in asking.stdout.readline().split() if int(p)]
        assert pids and all(map(is_alive, pids))
        asking.kill()
        asking.wait()
        until(lambda: not any(map(is_alive, pids)), 10)  # noqa: B023


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_is_idle_for_long_goes_and_another_takes_its_place(
    work: Assignment, alone: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.executors.local.IDLE_S", 1.0)
    heard(alone, work)
    process = alone._process
    assert process is not None
    process.wait(20)
    time.sleep(0.1)
    assert heard(alone, work)[-1] == Exited(0)


def test_what_died_without_a_word_is_an_error_with_the_end_of_its_log(
    home: Path, tmp_path: Path
) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class NoAssignment:
        job_id: str = "quote"

    executor = LocalExecutor(Settings.read())
    with tempfile.TemporaryFile() as log, pytest.raises(TrainingFailed, match="missing 1"):
        ask(executor, REHEARSE, NoAssignment(), Measured, log)


def test_a_preloaded_process_that_died_unseen_is_replaced_when_a_phase_is_sent(
    work: Assignment, alone: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard(alone, work)
    process = alone._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    monkeypatch.setattr(process, "poll", lambda: None)  # as if it ended between look and send
    assert heard(alone, work)[-1] == Exited(0) and alone._process is not process


def test_an_end_is_heard_whatever_was_said(
    work: Assignment, alone: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of another release, which cannot be read, ends the phase and nothing else."""

    def unreadable(line: bytes) -> Message:
        raise KeyError("Unknown")

    monkeypatch.setattr("threading.excepthook", lambda told: None)
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.executors.local.from_line", unreadable)
        assert isinstance(heard(alone, work)[-1], Exited)
    assert heard(alone, work)[-1] == Exited(0)


def test_a_phase_that_is_stopped_before_it_begins_does_not_work(
    work: Assignment, alone: LocalExecutor
) -> None:
    with tempfile.TemporaryFile() as log:
        running = alone.start(PREPARE, work, log)  # nothing is imported yet
        running.stop()
        told = []
        while not isinstance(message := running.hear(30.0), Exited):
            told.append(message)
    assert message.code == -signal.SIGKILL and not any(isinstance(m, Done) for m in told)


def test_no_descriptor_or_thread_stays_of_a_phase(work: Assignment, alone: LocalExecutor) -> None:
    heard(alone, work)

    def left() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = left()
    for _ in range(5):
        heard(alone, work)
    until(lambda: left() <= before, 5)


def test_a_fork_of_the_users_program_holds_no_phase_and_no_preloaded_process(
    work: Assignment, alone: LocalExecutor
) -> None:
    with tempfile.TemporaryFile() as log:
        running = alone.start(PREPARE, work, log)
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        try:
            began = time.monotonic()
            while not isinstance(running.hear(1.0), Exited):
                pass
            process = alone._process
            assert process is not None
            alone.close()
            assert process.poll() is not None and time.monotonic() - began < 25
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_socket_that_is_gone_is_told_by_its_setting(
    work: Assignment, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_PRELOADED", str(home / "gone"))
    executor = LocalExecutor(Settings.read())
    executor.warm()
    with (
        tempfile.TemporaryFile() as log,
        pytest.raises(InvalidSetting, match="TUNESMITH_PRELOADED"),
    ):
        executor.start(PREPARE, work, log)

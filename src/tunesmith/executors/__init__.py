"""Where a phase is run: an `Executor` starts it somewhere and hands back what it tells."""

from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar

from tunesmith.errors import TrainingFailed, from_json
from tunesmith.phases.child import Phase, Work
from tunesmith.phases.messages import Failed, Message

M = TypeVar("M")


@dataclass(frozen=True)
class Exited:
    """The process of a phase is gone, and all that it told was heard."""

    code: int
    """Its exit code, or minus the signal that ended it."""
    for_memory: bool = False
    """Whether the system killed a process for its memory while it ran."""


class Running(Protocol):
    """A phase that is being run."""

    def hear(self, timeout_s: float) -> Message | Exited | None:
        """The next message; None where none came in time; at the end, and from then on, Exited."""

    def stop(self) -> None:
        """End it and everything that it started. Nothing happens where it has ended."""


class Executor(Protocol):
    def start(self, phase: Phase, work: Work, log: BinaryIO) -> Running:
        """Begin a phase; what it and its libraries print goes to `log`."""

    def warm(self) -> None:
        """A phase will be started soon: what takes time before it can begins now."""

    def close(self) -> None:
        """Let go of what is kept for further phases."""


def ask(executor: Executor, phase: Phase, work: Work, answer: type[M], log: BinaryIO) -> M:
    """Run a phase to its end and give its message of this kind; the error that it told is raised
    here, and TrainingFailed with the end of its log where it died without one."""
    running, found, told = executor.start(phase, work, log), None, None
    try:
        while not isinstance(message := running.hear(timeout_s=60.0), Exited):
            if isinstance(message, answer):
                found = message
            elif isinstance(message, Failed):
                told = from_json(dict(message.error))
    finally:
        running.stop()
    if told is not None:
        raise told
    if found is None:
        log.seek(0)
        reason = log.read().decode(errors="replace")[-300:] or f"exit code {message.code}"
        raise TrainingFailed(id=work.job_id, phase=phase.word, reason=reason)
    return found

"""A phase in a process of its own: what it is given, and how it runs and ends. Imports no torch.

The process reads its work from standard input and writes messages to standard output, one a line.
It has no database credential, writes into its attempt's folder only, and dies with whoever runs it.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset
from tunesmith.errors import TrainingFailed, TunesmithError
from tunesmith.jobs import Job
from tunesmith.options import Decided, Options
from tunesmith.phases.messages import Done, Failed, Message, to_line
from tunesmith.settings import ROWS, Settings


class Work(Protocol):
    """What a phase is given: plain data in a dataclass."""

    @property
    def job_id(self) -> str: ...


@dataclass(frozen=True)
class Assignment:
    """What a phase needs to know about its job."""

    job_id: str
    home: str
    folder: str
    """This attempt's own folder; the phase writes nowhere else."""
    data_folder: str
    data_digest: str
    options: Mapping[str, Any]
    resolved: Mapping[str, Any] | None
    base: Mapping[str, Any]
    template: Mapping[str, Any]
    device: str
    threads: int
    moved: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, settings: Settings) -> Self:
        folder = settings.job_folder(job.id)
        return cls(
            job_id=job.id,
            home=str(settings.home),
            folder=str(folder / f"attempt-{job.attempt}"),
            data_folder=str(folder / ROWS),
            data_digest=job.data_digest,
            options=job.options.to_json(),
            resolved=job.resolved.to_json() if job.resolved else None,
            base=dict(job.base),
            template=dict(job.template),
            device=settings.device,
            threads=settings.threads,
            moved=dict(job.moved),
        )

    @property
    def asked(self) -> Options:
        return Options.parse(self.options)

    @property
    def decided(self) -> Decided:
        return Decided.from_json(self.resolved or {})

    @property
    def spec(self) -> ModelSpec:
        """Its task is the job's."""
        return ModelSpec.from_json(self.base)

    @property
    def attempts(self) -> list[Path]:
        """The folders of this attempt and of all before, the newest first."""
        found = Path(self.folder).parent.glob("attempt-*")
        return sorted(found, key=lambda p: -int(p.name.removeprefix("attempt-")))

    def dataset(self) -> Dataset:
        return Dataset.open(Path(self.data_folder), self.data_digest, self.moved)

    def encoder(self) -> Any:
        """How its rows become what goes into the model."""
        return self.spec.task_spec.rules.encoder(self.template, self.spec)


@dataclass(frozen=True)
class Transfer:
    """What `export` is given: a tuned model in `source`, to be written to `target`."""

    name: str
    base: Mapping[str, Any]
    method: str
    source: str
    target: str
    merged: bool
    facts: Mapping[str, Any] | None
    """Of `card.Facts`, where a model leaves; None where one comes."""
    device: str
    threads: int
    with_base: bool = False
    """Whether the base goes along, for an adapter."""

    @property
    def job_id(self) -> str:
        return self.name


@dataclass(frozen=True)
class Conversion:
    """What `convert` is given: a GGUF file, and the empty folder for plain weights."""

    source: str
    target: str
    threads: int

    @property
    def job_id(self) -> str:
        return Path(self.source).name


@dataclass(frozen=True)
class Phase:
    """Which file does the work. Its `run(work, report)` tells what it finds as messages."""

    module: str
    word: str
    """For people: what the job was doing."""
    work: type[Any] = Assignment

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]


PREPARE = Phase("tunesmith.phases.prepare", "validating")
TRAIN = Phase("tunesmith.phases.train", "training")
EVALUATE = Phase("tunesmith.phases.evaluate", "evaluating")
REHEARSE = Phase("tunesmith.phases.rehearse", "rehearsing")
FIND_RATE = Phase("tunesmith.phases.find_rate", "trying rates")
PROBE = Phase("tunesmith.phases.probe", "probing")
SUSPECT = Phase("tunesmith.phases.suspect", "reading labels")
PROVE_RESUME = Phase("tunesmith.phases.prove_resume", "verifying")
EXPORT = Phase("tunesmith.phases.export", "exporting", Transfer)
CONVERT = Phase("tunesmith.phases.convert", "converting", Conversion)
PHASES = {
    p.name: p
    for p in (
        PREPARE,
        TRAIN,
        EVALUATE,
        REHEARSE,
        FIND_RATE,
        PROBE,
        SUSPECT,
        PROVE_RESUME,
        EXPORT,
        CONVERT,
    )
}


def to_text(work: Work) -> str:
    return json.dumps(asdict(work))  # type: ignore[call-overload]


def run(phase: Phase, work: str) -> None:
    """Be the process of a phase: tell on standard output how it goes and how it ended. What
    libraries print goes to the log."""
    with os.fdopen(os.dup(1), "w", buffering=1) as lines:
        os.dup2(2, 1)
        perform(phase, work, lambda message: lines.write(to_line(message)))


def perform(phase: Phase, work: str, report: Callable[[Message], object]) -> None:
    """Do the work that `to_text` wrote, and report how it ended: Done or Failed."""
    asked = phase.work(**json.loads(work))
    try:
        import_module(phase.module).run(asked, report)
        report(Done())
    except TunesmithError as e:
        traceback.print_exc()
        report(Failed(e.to_json()))
    except Exception as e:
        traceback.print_exc()
        reason = f"{type(e).__name__}: {e}"
        failed = TrainingFailed(id=asked.job_id, phase=phase.word, reason=reason)
        report(Failed(failed.to_json()))


def die_with_parent(parent: int) -> None:
    """Let this process end with the one that started it, however that ends (Linux:
    PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)

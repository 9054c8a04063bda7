"""The seam between the worker and its child processes (prepare, trainer, evaluator).

A child reads one Assignment from standard input and writes JSON lines to standard output; it has no
database credential, and it dies with its worker. Imports no torch.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from tunesmith.catalog import ModelSpec
from tunesmith.data.dataset import Dataset
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import TrainingFailed, TunesmithError, from_json
from tunesmith.jobs import Job, Options, ResolvedOptions

Report = Callable[..., None]
"""report(kind, **facts): one line to the worker."""


@dataclass(frozen=True)
class Assignment:
    """What a child needs to know about its job."""

    job_id: str
    task: str
    home: str
    folder: str
    """This attempt's own folder; the child writes nowhere else."""
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
    def of(cls, job: Job, *, home: Path, job_folder: Path, device: str, threads: int) -> Self:
        return cls(
            job_id=job.id,
            task=job.task,
            home=str(home),
            folder=str(job_folder / f"attempt-{job.attempt}"),
            data_folder=str(job_folder / "data"),
            data_digest=job.data_digest,
            options=job.options.to_json(),
            resolved=job.resolved.to_json() if job.resolved else None,
            base=dict(job.base),
            template=dict(job.template),
            device=device,
            threads=threads,
            moved=dict(job.moved),
        )

    @property
    def asked(self) -> Options:
        return Options.parse(self.options)

    @property
    def decided(self) -> ResolvedOptions:
        return ResolvedOptions.from_json(self.resolved or {})

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.from_json(self.base)

    @property
    def attempts(self) -> list[Path]:
        """The folders of this attempt and of all before, the newest first."""
        found = Path(self.folder).parent.glob("attempt-*")
        return sorted(found, key=lambda p: -int(p.name.removeprefix("attempt-")))

    def dataset(self) -> Dataset:
        return Dataset.open(Path(self.data_folder), self.data_digest, self.moved)

    def encoder(self) -> Encoder:
        return Encoder(PromptTemplate.from_json(self.template), Path(self.spec.folder))


@dataclass(frozen=True)
class Compared:
    """What `resume_proof` found."""

    steps: int
    """Done in one go, and done with a kill in between."""
    resumed_from: int
    """The checkpoint that the second half began with."""
    tensors: int
    different: list[str]
    """Trained tensors that were not equal to the bit at the end."""


def command(module: str) -> list[str]:
    """-P: a file in the folder that the user stands in, named like a library, is not run."""
    return [sys.executable, "-P", "-m", module]


class Work(Protocol):
    """What a child is given: plain data in a dataclass."""

    @property
    def job_id(self) -> str: ...


def send(work: Any) -> bytes:
    return json.dumps(asdict(work)).encode()


def ask(module: str, work: Work, kind: str) -> dict[str, Any]:
    """Run a child to its end and give the facts of its report of this kind; its error is raised
    here."""
    environment = {
        k: v for k, v in os.environ.items() if k != "TUNESMITH_STORE"
    }  # a child has no database credential
    ended = subprocess.run(command(module), input=send(work), capture_output=True, env=environment)
    found: dict[str, dict[str, Any]] = {}
    for line in ended.stdout.split(b"\n")[:-1]:  # a child killed while writing leaves half a line
        message = json.loads(line)
        found[message.pop("kind")] = message
    if "error" in found:
        raise from_json(found["error"]["error"])
    if kind not in found:
        reason = ended.stderr.decode(errors="replace")[-300:] or f"exit code {ended.returncode}"
        raise TrainingFailed(id=work.job_id, phase=module.rpartition(".")[2], reason=reason)
    return found[kind]


def main(phase: str, run: Callable[[Any, Report], None], kind: type[Any] = Assignment) -> None:
    """The body of a child's `__main__`: run on what it is given (a `kind`), and report how it
    ended."""
    _die_with_parent()
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log

    def report(kind: str, **facts: Any) -> None:
        lines.write(json.dumps({"kind": kind, **facts}, allow_nan=False) + "\n")

    work = kind(**json.load(sys.stdin))
    try:
        run(work, report)
        report("done")
    except TunesmithError as e:
        traceback.print_exc()
        report("error", error=e.to_json())
    except Exception as e:
        traceback.print_exc()
        report(
            "error",
            error=TrainingFailed(
                id=work.job_id, phase=phase, reason=f"{type(e).__name__}: {e}"
            ).to_json(),
        )


def _die_with_parent() -> None:
    """A worker killed by force takes its child along (Linux: PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if (
            os.getppid() == 1
            and "TUNESMITH_WORKER_PID" in os.environ
            and os.environ["TUNESMITH_WORKER_PID"] != "1"
        ):
            os._exit(1)  # the parent died before the call above

"""That a kill and a resume change nothing, shown on a user's own rows, options and machine.

The job's first steps are done in one go, then again with a kill in the middle and a fresh model
that resumes from the checkpoint.
"""

from contextlib import suppress
from pathlib import Path

import torch

from tunesmith import durable
from tunesmith.models.methods import trained_tensors
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Compared, Message, Report, Started, Stepped
from tunesmith.phases.train import begin, budget
from tunesmith.tuning.loop import Run, train

STEPS = 12  # at most; the kill comes in the middle


def run(assignment: Assignment, report: Report) -> None:
    with durable.staging(Path(assignment.home)) as folder:
        whole, steps = _weights_after(STEPS, assignment, [folder / "whole"])
        resumed_from = steps // 2
        _weights_after(resumed_from + 1, assignment, [folder / "killed"])
        resumed, _ = _weights_after(steps, assignment, [folder / "resumed", folder / "killed"])
    different = [name for name, w in whole.items() if not torch.equal(w, resumed[name])]
    report(Compared(steps, resumed_from, len(whole), different))


def _weights_after(
    steps: int, assignment: Assignment, attempts: list[Path]
) -> tuple[dict[str, torch.Tensor], int]:
    """The trained tensors after so many steps, or all where the job has fewer, and their number; a
    checkpoint after each but the last."""
    training = begin(assignment)
    kept: dict[str, torch.Tensor] = {}
    last = steps

    def report(message: Message) -> None:
        nonlocal last
        if isinstance(message, Started):
            last = min(steps, message.total_steps)
        if isinstance(message, Stepped) and message.step == last:
            kept.update({n: p.detach().clone() for n, p in trained_tensors(training.model).items()})
            raise KeyboardInterrupt

    where = Run(attempts, Path(assignment.home), {}, report, checkpoint_seconds=-1.0)
    with suppress(KeyboardInterrupt):
        train(training, where, budget(assignment))
    return kept, last

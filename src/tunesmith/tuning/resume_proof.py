"""That a kill and a resume change nothing, shown on a user's own rows, options and machine.

The job's first steps are done in one go, then again with a kill in the middle and a fresh model
that resumes from the checkpoint.
"""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tunesmith import durable
from tunesmith.models.methods import trained_tensors
from tunesmith.tuning import child
from tunesmith.tuning.loop import Run, train
from tunesmith.tuning.trainer import begin, budget

STEPS = 12  # at most; the kill comes in the middle


def run(assignment: child.Assignment, report: child.Report) -> None:
    with durable.staging(Path(assignment.home)) as folder:
        whole, steps = _weights_after(STEPS, assignment, [folder / "whole"])
        resumed_from = steps // 2
        _weights_after(resumed_from + 1, assignment, [folder / "killed"])
        resumed, _ = _weights_after(steps, assignment, [folder / "resumed", folder / "killed"])
    different = [name for name, w in whole.items() if not torch.equal(w, resumed[name])]
    report("compared", **asdict(child.Compared(steps, resumed_from, len(whole), different)))


def _weights_after(
    steps: int, assignment: child.Assignment, attempts: list[Path]
) -> tuple[dict[str, torch.Tensor], int]:
    """The trained tensors after so many steps, or all where the job has fewer, and their number; a
    checkpoint after each but the last."""
    model, rows = begin(assignment)
    kept: dict[str, torch.Tensor] = {}
    last = steps

    def report(kind: str, **facts: Any) -> None:
        nonlocal last
        if kind == "started":
            last = min(steps, facts["total_steps"])
        if kind == "step" and facts["step"] == last:
            kept.update({n: p.detach().clone() for n, p in trained_tensors(model).items()})
            raise KeyboardInterrupt

    where = Run(attempts, Path(assignment.home), {}, report, checkpoint_seconds=-1.0)
    with suppress(KeyboardInterrupt):
        train(
            model, rows["train"], rows["validation"], assignment.decided, where, budget(assignment)
        )
    return kept, last


if __name__ == "__main__":
    child.main("verifying", run)

"""Before a job: what a base's own features tell of the validation rows, without any tuning."""

import time

import torch

from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Probed, Report

ARM = "probe"


def run(work: Assignment, report: Report) -> None:
    began = time.monotonic()
    torch.set_num_threads(work.threads)
    task, rules, spec = work.spec.task_spec.task, work.spec.task_spec.rules, work.spec
    dataset, encoder = work.dataset(), work.encoder()
    train, rows = (
        rules.encode(dataset, part, encoder, spec, work.decided).accepted
        for part in ("train", "validation")
    )
    engine = task.untuned(spec, work.device, encoder)
    exam = task.Exam(train, rows, work.decided)
    answers = exam.before(engine, lambda n: None).get(ARM, [])
    right = sum(a == e.row.completion for a, e in zip(answers, rows, strict=False))
    score = right / len(rows) if answers else None
    report(Probed(score, len(rows), round(time.monotonic() - began, 1)))

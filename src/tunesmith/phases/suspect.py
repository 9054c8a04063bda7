"""Before a job: which training rows' labels look wrong by what the base makes of their texts."""

import torch

from tunesmith.data.split import PARTS
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Report, Suspected


def run(work: Assignment, report: Report) -> None:
    torch.set_num_threads(work.threads)
    task, rules, spec = work.spec.task_spec.task, work.spec.task_spec.rules, work.spec
    dataset, encoder = work.dataset(), work.encoder()
    parts = [p for p in PARTS if dataset.source_of[p] == "training"]
    rows = [
        e for p in parts for e in rules.encode(dataset, p, encoder, spec, work.decided).accepted
    ]
    engine = task.untuned(spec, work.device, encoder)
    report(Suspected(task.Exam(rows, [], work.decided).suspects(engine)))

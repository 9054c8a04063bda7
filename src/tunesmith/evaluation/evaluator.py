"""EVALUATING, in a child process of the worker: what did tuning change on rows that chose nothing?

Three arms answer the same verdict rows: the base, always the commonest completion of the training rows, and the tuned model.
"""

import torch

from tunesmith.data.examples import Example, encode
from tunesmith.errors import DamagedFiles
from tunesmith.evaluation.metrics import commonest, exact_match
from tunesmith.inference.engine import Completion, Engine, Sampling
from tunesmith.registry import TunedModel
from tunesmith.tuning import child
from tunesmith.tuning.trainer import RESULT

ROOM = 2  # an answer may be this many times as long as the longest wanted one before it is cut


def run(assignment: child.Assignment, report: child.Report) -> None:
    spec, options = assignment.spec, assignment.decided
    torch.set_num_threads(assignment.threads)
    dataset, encoder = assignment.dataset(), assignment.encoder()
    verdict = encode(dataset, "verdict", encoder, spec, options.on_long).accepted
    if not verdict:
        report("verdict", verdict=None)
        return
    wanted = [e.row.completion for e in verdict]
    sampling = Sampling(max_tokens=ROOM * max(e.encoded.n_completion for e in verdict))
    results = [a / RESULT for a in assignment.attempts if (a / RESULT).exists()]
    if not results:
        raise DamagedFiles(folder=assignment.folder, reason="no attempt of this job holds a finished model")
    base = TunedModel(name=spec.name, base=spec)
    tuned = TunedModel(name=spec.name, base=spec, method=options.method, folder=str(results[0]))
    always = commonest([e.row.completion for e in encode(dataset, "train", encoder, spec, options.on_long).accepted])
    answers = {
        "base": _answers(base, verdict, assignment, sampling),
        "commonest": None,
        "tuned": _answers(tuned, verdict, assignment, sampling),
    }
    arms = {arm: exact_match([c.text for c in found] if found else [always] * len(wanted), wanted) for arm, found in answers.items()}
    stopped = [c.stopped for c in answers["tuned"] or []]
    report("verdict", verdict={
        "n": len(verdict), "metric": "exact_match", "arms": arms, "commonest_answer": always, "stop_rate": sum(stopped) / len(stopped),
    })  # fmt: skip


def _answers(model: TunedModel, rows: list[Example], assignment: child.Assignment, sampling: Sampling) -> list[Completion]:
    engine = Engine.load(model, assignment.device)
    return engine.generate([e.row.messages for e in rows], sampling)


if __name__ == "__main__":
    child.main("evaluating", run)

"""EVALUATING: does the stored model answer as the trained one did, and did tuning help?"""

from dataclasses import replace

import torch

from tunesmith import catalog
from tunesmith.documents.certificate import template_digest
from tunesmith.documents.verdict import STOP_RATE, Verdict, Word, sentence
from tunesmith.errors import CertificateRefused, DamagedFiles
from tunesmith.evaluation.arms import Arms, Progress
from tunesmith.evaluation.certify import certify
from tunesmith.inference.opening import open_model
from tunesmith.models import methods
from tunesmith.phases.child import Assignment
from tunesmith.phases.messages import Certified, Judged, Predicted, Report, Warned
from tunesmith.phases.train import RESULT
from tunesmith.registry import TunedModel

AT_ONCE = 1000  # rows of a message


def run(assignment: Assignment, report: Report) -> None:
    spec, decided = assignment.spec, assignment.decided
    task, rules = spec.task_spec.task, spec.task_spec.rules
    torch.set_num_threads(assignment.threads)
    dataset, encoder = assignment.dataset(), assignment.encoder()
    last = replace(decided, learn="last")  # what is judged is the answer to the whole conversation
    train, rows = (
        rules.encode(dataset, part, encoder, spec, last).accepted for part in ("train", "verdict")
    )
    results = [a / RESULT for a in assignment.attempts if (a / RESULT).exists()]
    if not results:
        raise DamagedFiles(
            folder=assignment.folder, reason="no attempt of this job holds a finished model"
        )
    doing = Progress(report)
    exam = task.Exam(train, rows, decided) if rows else None
    arms = Arms(exam, task, rules, encoder, decided.seed, doing) if exam else None
    probes = task.probes_of(results[0])

    engine = task.untuned(spec, assignment.device, encoder)
    doing.begin("probes, base", probes.count)
    of_base = probes.replay(engine.model)
    if arms:
        arms.ask_base(engine)
    tuned = TunedModel(name=spec.name, base=spec, method=decided.method, folder=str(results[0]))
    engine = open_model(tuned, assignment.device)
    doing.begin("probes, tuned", probes.count)
    certificate = certify(
        methods.METHODS[decided.method].artefact,
        str(next(engine.model.parameters()).dtype).removeprefix("torch."),
        engine.model,
        probes,
        of_base,
        base=spec.public_name,
        base_digest=catalog.fingerprint(spec),
        template_digest=template_digest(results[0]),
        data_digest=assignment.data_digest,
    )
    if objections := certificate.objections():
        raise CertificateRefused(name="as it was trained", reasons="; ".join(objections))
    report(Certified(certificate.to_json()))
    if arms:
        arms.ask_linear_model()
        arms.ask_tuned(engine)
        for i in range(0, len(arms.predictions), AT_ONCE):
            report(Predicted(arms.predictions[i : i + AT_ONCE]))
    verdict = arms.verdict() if arms else None
    for warning in warnings(verdict) if verdict else []:
        report(Warned(warning))
    report(Judged(verdict.to_json() if verdict else None))


def warnings(verdict: Verdict) -> list[str]:
    """What must be read on every screen."""
    found = []
    if verdict.word is Word.HARMED:
        found.append(sentence(verdict.to_json()))
    if verdict.stop_rate < STOP_RATE:
        found.append(
            f"only {verdict.stop_rate:.0%} of the answers stop by themselves; {STOP_RATE:.0%} "
            f"should: look at the completions' ends"
        )
    return found

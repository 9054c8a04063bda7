"""The verdict rows as classifiers are asked them, beside what the base's own features tell without
any tuning."""

from collections.abc import Sequence
from typing import Any

from tunesmith.data import baseline
from tunesmith.data.text_classification import Example
from tunesmith.inference.engine import Completion, Sampling
from tunesmith.models import classifier
from tunesmith.tasks.task import Exam, Told
from tunesmith.tasks.text_classification.calibration import calibration_error, wanted_of
from tunesmith.tasks.text_classification.engine import Classifier

MOST_PROBED = 20_000  # training rows of the linear probe


class LabelExam(Exam[Example]):
    against = ("probe", "linear", "commonest")
    base_answers = False

    def answers(self, engine: Classifier, told: Told, examples: Sequence[Any] = ()) -> Any:
        return engine.generate([e.question for e in self.rows], Sampling(), told)

    def before(self, engine: Classifier, told: Told) -> dict[str, list[str]]:
        """The arm `probe`: a linear model on what the base makes of each text."""
        if not baseline.is_installed():
            return {}
        train = list(self.train[:MOST_PROBED])
        given = engine.over([*train, *self.rows], classifier.features, told).numpy()
        known, asked = given[: len(train)], given[len(train) :]
        several = engine.encoder.labels.several
        answers = baseline.probe(
            known, [e.targets for e in train], asked, several, self.decided.seed
        )
        return {"probe": [engine.encoder.labels.text(places) for places in answers]}

    def predictions(self, answers: Sequence[Completion]) -> list[dict[str, Any]]:
        """How likely the answer was held; where a row may have several labels, the one of which the
        model was least sure."""
        return [
            {
                "row": e.row.row,
                "label": e.row.completion,
                "predicted": c.text,
                "probability": min(max(p, 1 - p) for p in c.scores) if c.several else max(c.scores),
            }
            for e, c in zip(self.rows, answers, strict=True)
        ]

    def beside(self, engine: Classifier) -> dict[str, dict[str, float]]:
        labels = engine.encoder.labels
        logits = engine.over(self.rows, classifier.logits).double()
        wanted = wanted_of([e.targets for e in self.rows], len(labels.names))
        found = {}
        for name, scale in (("before", engine.temperature), ("after", 1.0)):
            z = logits * scale
            p = z.sigmoid() if labels.several else z.softmax(-1)
            found[name] = calibration_error(p, wanted, labels.several)
        return {"calibration_error": found}

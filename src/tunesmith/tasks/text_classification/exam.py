"""The verdict rows as classifiers are asked them, beside what the base's own features tell without
any tuning."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data import baseline
from tunesmith.data.checks.measures import can_be_suspected, suspect_labels
from tunesmith.data.labels import macro_f1, macro_f1_interval, micro_f1
from tunesmith.data.text_classification import Example, words
from tunesmith.inference.engine import Completion, Sampling
from tunesmith.models import classifier
from tunesmith.tasks.task import Exam, Told
from tunesmith.tasks.text_classification.calibration import calibration_error, wanted_of
from tunesmith.tasks.text_classification.engine import Classifier

MOST_PROBED = 20_000  # training rows of the linear probe
MOST_SUSPECTED = 20_000  # of more rows a model on words says which labels look wrong


class LabelExam(Exam[Example]):
    against = ("probe", "linear", "commonest")
    base_answers = False

    def answers(self, engine: Classifier, told: Told, examples: Sequence[Any] = ()) -> Any:
        return engine.generate([e.question for e in self.rows], Sampling(), told)

    def before(self, engine: Classifier, told: Told) -> dict[str, list[str]]:
        """The arms `linear`, on words, and `probe`, on what the base makes of each text."""
        if not baseline.is_installed():
            return {}
        train = list(self.train[:MOST_PROBED])
        known_labels = engine.encoder.labels
        texts, asked_texts = ([words(e.row) for e in rows] for rows in (train, self.rows))
        if known_labels.several:
            found = baseline.fit_several(texts, [e.targets for e in train], asked_texts)
            linear = [known_labels.text(places) for places in found]
        else:
            model = baseline.fit(texts, [e.row.completion for e in train])
            linear = [str(a) for a in model.predict(asked_texts)]
        given = engine.over([*train, *self.rows], classifier.pooled, told).numpy()
        known, asked = given[: len(train)], given[len(train) :]
        several = known_labels.several
        answers = baseline.probe(
            known, [e.targets for e in train], asked, several, self.decided.seed
        )
        return {"linear": linear, "probe": [known_labels.text(places) for places in answers]}

    def suspects(self, engine: Classifier) -> list[int] | None:
        """By a linear model that was fitted on other rows."""
        if engine.encoder.labels.several or len(self.train) > MOST_SUSPECTED:
            return None
        given = [e.row.completion for e in self.train]
        rows = [self.train[i] for i in can_be_suspected(given)]
        names = [e.row.completion for e in rows]
        if not rows or not baseline.is_closed_set(set(names), len(names)):
            return None
        found = suspect_labels(engine.over(rows, classifier.pooled).numpy(), names)
        return sorted(rows[i].row.row for i in found)

    def together(self, answers: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        wanted = [e.row.completion for e in self.rows]
        several = any(e.row.chat for e in self.train)
        scores = {a: macro_f1(given, wanted, several) for a, given in answers.items()}
        best = max((a for a in self.against if a in scores), key=scores.__getitem__)
        tuned, before, seed = answers["tuned"], answers[best], self.decided.seed
        found = macro_f1_interval(tuned, before, wanted, several, seed)
        names = ("difference", "low", "high")
        micro = {a: micro_f1(given, wanted) for a, given in answers.items()} if several else {}
        return {
            "macro_f1": scores,
            **({"micro_f1": micro} if several else {}),
            f"macro_f1 against {best}": dict(zip(names, found, strict=True)),
        }

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

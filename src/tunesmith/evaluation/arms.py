"""The arms of a verdict: who answers the rows that chose nothing, and how the answers are judged.

The arms answer the same verdict rows: the base; the base with examples in its prompt; always the
commonest training completion; where answers are a closed set, a linear model on words; the tuned
model.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.data import baseline
from tunesmith.data.metrics import commonest
from tunesmith.data.rules import RowRules, different_first
from tunesmith.documents.verdict import Bias, Swapped, Verdict
from tunesmith.evaluation.bias import LEAST_SWAPPED, gaps
from tunesmith.evaluation.judge import decide, slices
from tunesmith.phases.messages import Doing, Report
from tunesmith.tasks.task import Engine, Exam, Task
from tunesmith.tuning.loop import evaluate, mean_loss
from tunesmith.words import counted

WORST_LISTED = 10
LARGEST_LOSS = 1e6


TELL_S = 1.0  # between two words about how far an arm is


class Progress:
    """Tells which arm answers, how many of its rows are done, and how long the rest will take."""

    def __init__(self, report: Report) -> None:
        self._report, self._told, self._last = report, 0.0, 0

    def begin(self, what: str, of: int) -> None:
        self._what, self._of, self._began, self._told, self._last = (
            what,
            of,
            time.monotonic(),
            0.0,
            -1,
        )
        self.done(0)

    def done(self, n: int) -> None:
        now = time.monotonic()
        if n == self._last or (now - self._told < TELL_S and n < self._of):
            return
        self._told, self._last = now, n
        left = (self._of - n) * (now - self._began) / n if n else None
        self._report(Doing(self._what, n, self._of, left))


class Arms:
    """The arms' answers to the verdict rows, gathered arm by arm, then judged."""

    def __init__(
        self,
        exam: Exam[Any],
        task: Task,
        rules: RowRules,
        encoder: Any,
        seed: int,
        doing: Progress,
    ) -> None:
        self._exam, self._task, self._rules, self._doing = exam, task, rules, doing
        self._encoder = encoder
        self._train, self._rows, self._seed = exam.train, exam.rows, seed
        self._wanted = [e.row.completion for e in exam.rows]
        self._always = commonest([e.row.completion for e in exam.train])
        self._answers: dict[str, list[str]] = {}
        self._losses: dict[str, list[tuple[float, int]]] = {}
        self._retention: dict[str, float] = {}
        self._notes: list[str] = []
        self._n_examples, self._stop_rate = 0, 1.0
        self._changed: dict[str, float] = {}
        self.predictions: list[dict[str, Any]] = []
        """Of the arm that was asked last."""
        self._beside: dict[str, dict[str, float]] = {}

    def verdict(self) -> Verdict:
        self._answers["commonest"] = [self._always] * len(self._rows)
        completions = [e.row.completion for e in self._train]
        return self._judge(self._rules.metrics_for(completions, self._encoder))

    def ask_base(self, engine: Engine) -> None:
        if self._exam.base_answers:
            self._ask(engine, "base")
        self._doing.begin("base", len(self._rows))
        self._answers |= self._exam.before(engine, self._doing.done)
        examples = self._exam.examples(engine)
        self._n_examples = len(examples)
        if examples:
            self._doing.begin(f"base with {len(examples)} examples", len(self._rows))
            found = self._exam.answers(engine, self._doing.done, examples)
            self._answers["examples"] = [c.text for c in found]
        elif self._exam.why_no_examples:
            self._notes.append(self._exam.why_no_examples)

    def ask_tuned(self, engine: Engine) -> None:
        self._ask(engine, "tuned")
        self._beside = self._exam.beside(engine)

    def _ask(self, engine: Engine, arm: str) -> None:
        self._doing.begin(arm, len(self._rows))
        found = self._exam.answers(engine, self._doing.done)
        self._answers[arm] = [c.text for c in found]
        self.predictions = self._exam.predictions(found)
        self._stop_rate = sum(c.stopped for c in found) / len(found)
        if self._exam.swapped is not None:
            self._changed[arm] = self._share_changed(engine, arm, self._exam.swapped)
        self._doing.begin(f"losses, {arm}", len(self._rows))
        self._losses[arm] = evaluate(self._task, engine.model, self._rows)
        if (kept := self._exam.retention(engine)) is not None:
            self._retention[arm] = _finite(kept)

    def _share_changed(self, engine: Engine, arm: str, places: Sequence[int]) -> float:
        """Of the rows that hold a word to exchange: how many are answered otherwise when it is
        exchanged."""
        self._doing.begin(f"words exchanged, {arm}", len(places))
        found = self._exam.swapped_answers(engine, self._doing.done)
        changed = [c.text != self._answers[arm][i] for i, c in zip(places, found, strict=True)]
        return sum(changed) / max(1, len(changed))

    def _bias(self, scores: Mapping[str, Sequence[float]]) -> Bias:
        found, not_measured = gaps(
            [json.loads(e.row.context) for e in self._rows],
            scores[next(a for a in self._exam.against if a in scores)],
            scores["tuned"],
        )
        return Bias(tuple(found), self._swaps(not_measured), tuple(not_measured))

    def _swaps(self, not_measured: list[str]) -> Swapped | None:
        """None where that means nothing, or the rows are too few: that is told."""
        if self._exam.swapped is None:
            return None
        n = len(self._exam.swapped)
        if n >= LEAST_SWAPPED:
            return Swapped(n, self._changed["base"], self._changed["tuned"])
        told = f"words exchanged: {counted(n, 'verdict row')} with one (option swap_terms), "
        not_measured.append(f"{told}{LEAST_SWAPPED} are needed")
        return None

    def _judge(self, metrics: Mapping[str, Callable[[str, str], float]]) -> Verdict:
        scores = {
            m: {arm: self._scores(of, arm) for arm in ARMS if arm in self._answers}
            for m, of in metrics.items()
        }
        names = list(metrics)
        means = {m: {arm: sum(s) / len(s) for arm, s in arms.items()} for m, arms in scores.items()}
        primary, arms = scores[names[0]], means[names[0]]
        word, against, difference, low, high = decide(primary, self._seed, self._exam.against)
        if arms["tuned"] <= arms["commonest"] and against != "commonest":
            self._notes.append(
                f"the tuned model is no better than always answering {self._always!r:.40}"
            )
        if arms.get("linear", 0) >= arms["tuned"]:
            self._notes.append(
                "a linear model on words scores as high: you may not need to tune a model for this"
            )
        flips = [
            (e.row.row, t - b)
            for e, t, b in zip(self._rows, primary["tuned"], primary[against], strict=True)
        ]
        return Verdict(
            word,
            names[0],
            len(self._rows),
            arms,
            against,
            difference,
            low,
            high,
            stop_rate=self._stop_rate,
            examples=self._n_examples,
            losses={arm: _finite(mean_loss(found)) for arm, found in self._losses.items()},
            commonest_answer=self._always,
            other_metrics={
                **{m: means[m] for m in names[1:]},
                **self._exam.together(self._answers),
                **self._beside,
            },
            won=tuple(r for r, d in flips if d > 0),
            lost=tuple(r for r, d in flips if d < 0),
            worst=tuple(self._worst()),
            retention=self._retention,
            slices=slices(
                [json.loads(e.row.context) for e in self._rows], primary["tuned"], primary[against]
            ),
            bias=self._bias(primary),
            notes=tuple(self._notes),
        )

    def _scores(self, metric: Callable[[str, str], float], arm: str) -> list[float]:
        return [metric(a, w) for a, w in zip(self._answers[arm], self._wanted, strict=True)]

    def _worst(self) -> list[dict[str, Any]]:
        """The rows on which the tuned model's loss is highest."""
        losses = [_finite(v / n) for v, n in self._losses["tuned"]]
        order = sorted(range(len(losses)), key=lambda i: -losses[i])[:WORST_LISTED]
        return [
            {
                "row": self._rows[i].row.row,
                "loss": losses[i],
                "wanted": self._wanted[i],
                "answer": self._answers["tuned"][i],
            }
            for i in order
        ]

    def ask_linear_model(self) -> None:
        """Where answers are a closed set: what words alone tell."""
        if "linear" in self._answers:
            return
        train = different_first(self._train, self._seed)
        labels = [e.row.completion.strip() for e in train]
        texts = [self._rules.words(e.row) for e in [*train, *self._rows]]
        if not (len(set(labels)) >= 2 and baseline.is_closed_set(set(labels), len(labels))):
            return
        if not all(t is not None for t in texts):
            return
        if not baseline.is_installed():
            self._notes.append(
                "the linear model on words was not measured: pip install 'tunesmith[audit]'"
            )
            return
        self._doing.begin("linear model", len(self._rows))
        known = [t or "" for t in texts]
        model = baseline.fit(known[: len(train)], labels)
        self._answers["linear"] = [str(a) for a in model.predict(known[len(train) :])]


ARMS = ("base", "examples", "commonest", "linear", "probe", "tuned")


def _finite(loss: float) -> float:
    """A loss that JSON can hold: a broken model's infinity becomes the largest number that is
    shown."""
    return loss if math.isfinite(loss) else LARGEST_LOSS

"""The arms of a verdict: who answers the rows that chose nothing, and how the answers are judged.

The arms answer the same verdict rows: the base; the base with examples in its prompt; always the
commonest training completion; where answers are a closed set, a linear model on words; the tuned
model.
"""

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunesmith.data import baseline, prose
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoded, Messages
from tunesmith.documents.verdict import Bias, Swapped, Verdict
from tunesmith.evaluation.bias import LEAST_SWAPPED, MOST_SWAPPED, PAIRS, Swap, gaps
from tunesmith.evaluation.judge import decide, slices
from tunesmith.evaluation.metrics import METRICS, commonest, metrics_for
from tunesmith.inference.engine import Completion, Engine, Sampling
from tunesmith.phases.messages import Doing, Report
from tunesmith.tasks import text_generation
from tunesmith.tuning.loop import evaluate, mean_loss
from tunesmith.words import counted

ROOM = 2  # an answer may be this many times as long as the longest wanted one before it is cut
LEAST_EXAMPLES, MOST_EXAMPLES = (
    3,
    16,
)  # in the prompt; more cost time in proportion, whatever they bring
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
        train: Sequence[Example],
        rows: Sequence[Example],
        seed: int,
        swap_terms: str,
        doing: Progress,
    ) -> None:
        self._train, self._rows, self._seed, self._doing = train, rows, seed, doing
        self._wanted = [e.row.completion for e in rows]
        self._sampling = Sampling(max_tokens=ROOM * max(e.encoded.n_completion for e in rows))
        self._always = commonest([e.row.completion for e in train])
        self._answers: dict[str, list[str]] = {}
        self._losses: dict[str, list[tuple[float, int]]] = {}
        self._retention: dict[str, float] = {}
        self._notes: list[str] = []
        self._n_examples, self._stop_rate = 0, 1.0
        self._swapped = swapped(rows, Swap(swap_terms or PAIRS))
        self._changed: dict[str, float] = {}

    def verdict(self) -> Verdict:
        self._answers["commonest"] = [self._always] * len(self._rows)
        return self._judge(metrics_for([e.row.completion for e in self._train]))

    def ask_base(self, engine: Engine) -> None:
        self._answers["base"] = [c.text for c in self._complete(engine, [], "base")]
        examples = self._examples(engine)
        self._n_examples = sum(m["role"] == "assistant" for m in examples)
        if examples:
            self._answers["examples"] = [
                c.text
                for c in self._complete(engine, examples, f"base with {self._n_examples} examples")
            ]
        else:
            self._notes.append(
                f"the base was not asked with examples: its window holds fewer than "
                f"{LEAST_EXAMPLES}"
            )
        self._changed["base"] = self._share_changed(engine, "base")
        self._measure_losses(engine, "base")

    def ask_tuned(self, engine: Engine) -> None:
        completions = self._complete(engine, [], "tuned")
        self._answers["tuned"] = [c.text for c in completions]
        self._stop_rate = sum(c.stopped for c in completions) / len(completions)
        self._changed["tuned"] = self._share_changed(engine, "tuned")
        self._measure_losses(engine, "tuned")

    def _complete(self, engine: Engine, examples: Messages, arm: str) -> list[Completion]:
        self._doing.begin(arm, len(self._rows))
        return engine.generate(
            [with_examples(e.messages, examples) for e in self._rows],
            self._sampling,
            self._doing.done,
        )

    def _measure_losses(self, engine: Engine, arm: str) -> None:
        self._doing.begin(f"losses, {arm}", len(self._rows))
        self._losses[arm], self._retention[arm] = (
            evaluate(text_generation, engine.model, self._rows),
            retention(engine),
        )

    def _share_changed(self, engine: Engine, arm: str) -> float:
        """Of the rows that hold a word to exchange: how many are answered otherwise when it is
        exchanged."""
        self._doing.begin(f"words exchanged, {arm}", len(self._swapped))
        found = engine.generate(list(self._swapped.values()), self._sampling, self._doing.done)
        changed = [
            c.text != self._answers[arm][i] for i, c in zip(self._swapped, found, strict=True)
        ]
        return sum(changed) / max(1, len(changed))

    def _bias(self, scores: Mapping[str, Sequence[float]]) -> Bias:
        found, not_measured = gaps(
            [json.loads(e.row.context) for e in self._rows], scores["base"], scores["tuned"]
        )
        n = len(self._swapped)
        if n < LEAST_SWAPPED:
            not_measured.append(
                f"words exchanged: {counted(n, 'verdict row')} with one (option swap_terms), "
                f"{LEAST_SWAPPED} are needed"
            )
        return Bias(
            tuple(found),
            Swapped(n, self._changed["base"], self._changed["tuned"])
            if n >= LEAST_SWAPPED
            else None,
            tuple(not_measured),
        )

    def _judge(self, metrics: list[str]) -> Verdict:
        scores = {
            m: {arm: self._scores(m, arm) for arm in ARMS if arm in self._answers} for m in metrics
        }
        means = {m: {arm: sum(s) / len(s) for arm, s in arms.items()} for m, arms in scores.items()}
        primary, arms = scores[metrics[0]], means[metrics[0]]
        word, against, difference, low, high = decide(primary, self._seed)
        if arms["tuned"] <= arms["commonest"] and against != "commonest":
            self._notes.append(
                f"the tuned model is no better than always answering {self._always!r:.40}"
            )
        if arms.get("linear", 0) >= arms["tuned"]:
            self._notes.append(
                "a linear model on words scores as high: you may not need a language model for this"
            )
        flips = [
            (e.row.row, t - b)
            for e, t, b in zip(self._rows, primary["tuned"], primary[against], strict=True)
        ]
        return Verdict(
            word,
            metrics[0],
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
            other_metrics={m: means[m] for m in metrics[1:]},
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

    def _scores(self, metric: str, arm: str) -> list[float]:
        return [
            METRICS[metric](a, w) for a, w in zip(self._answers[arm], self._wanted, strict=True)
        ]

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

    def _examples(self, engine: Engine) -> Messages:
        """Training rows as turns before the question: as many as fit beside the longest one,
        different answers first."""
        longest = max(self._rows, key=lambda e: e.encoded.n_prompt).messages
        room = engine.context - self._sampling.max_tokens
        turns: list[Mapping[str, str]] = []
        for example in different_first(self._train, self._seed)[:MOST_EXAMPLES]:
            turn = [m for m in example.messages if m["role"] != "system"] + [
                {"role": "assistant", "content": example.row.completion}
            ]
            if len(engine.encoder.prompt(with_examples(longest, turns + turn))) > room:
                break
            turns += turn
        return turns if sum(m["role"] == "assistant" for m in turns) >= LEAST_EXAMPLES else []

    def ask_linear_model(self) -> None:
        """Where answers are a closed set: what words alone tell."""
        train = different_first(self._train, self._seed)
        labels = [e.row.completion.strip() for e in train]
        if not (len(set(labels)) >= 2 and baseline.is_closed_set(set(labels), len(labels))):
            return
        if not baseline.is_installed():
            self._notes.append(
                "the linear model on words was not measured: pip install 'tunesmith[audit]'"
            )
            return
        self._doing.begin("linear model", len(self._rows))
        model = baseline.fit([question(e) for e in train], labels)
        self._answers["linear"] = [str(a) for a in model.predict([question(e) for e in self._rows])]


ARMS = ("base", "examples", "commonest", "linear", "tuned")


def _finite(loss: float) -> float:
    """A loss that JSON can hold: a broken model's infinity becomes the largest number that is
    shown."""
    return loss if math.isfinite(loss) else LARGEST_LOSS


def question(example: Example) -> str:
    """The last thing the user said."""
    return str(example.messages[-1]["content"])


def swapped(rows: Sequence[Example], swap: Swap) -> dict[int, list[dict[str, str]]]:
    """The rows, by place, whose messages hold a word to exchange, with it exchanged; at most
    MOST_SWAPPED."""
    found: dict[int, list[dict[str, str]]] = {}
    for i, example in enumerate(rows):
        messages = [{**m, "content": swap(m["content"])} for m in example.messages]
        if len(found) < MOST_SWAPPED and messages != list(example.messages):
            found[i] = messages
    return found


def with_examples(messages: Messages, examples: Messages) -> list[dict[str, str]]:
    """Examples as turns of the chat: after a system message, before all else."""
    head = [dict(m) for m in messages if m["role"] == "system"]
    return [*head, *map(dict, examples), *(dict(m) for m in messages if m["role"] != "system")]


def different_first(rows: Sequence[Example], seed: int) -> list[Example]:
    """The rows in a seeded order, one of each answer before the second of any."""
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, Example]] = []
    for example in shuffled:
        answer = example.row.completion.strip()
        seen[answer] = seen.get(answer, 0) + 1
        ranked.append((seen[answer], len(ranked), example))
    return [example for *_, example in sorted(ranked, key=lambda r: r[:2])]


def retention(engine: Engine) -> float:
    """Bits per byte of plain prose that ships with the package: what the base could do before it
    was tuned to something else."""
    lines = prose.lines()
    batch = text_generation.collate(
        [Encoded(engine.encoder.text(line), 1) for line in lines], engine.model
    )
    with torch.inference_mode():
        nats = float(text_generation.token_losses(engine.model, batch).sum())
    return _finite(nats) / math.log(2) / sum(len(line.encode()) for line in lines)

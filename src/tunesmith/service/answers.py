"""Answers of models over many prompts, or in pieces; what they cost is counted."""

import atexit
import json
import os
import sys
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tunesmith import access, catalog, imports
from tunesmith.data.labels import THRESHOLD, Classification
from tunesmith.documents.verdict import Word, sentence
from tunesmith.errors import (
    InvalidOptionValue,
    InvalidSchema,
    MissingExtra,
    Notice,
    OptionNotRead,
    UnfinishedAnswer,
    UsageNotRecorded,
    WrongTask,
)
from tunesmith.registry import TunedModel
from tunesmith.service.models import Models
from tunesmith.tasks.specs import TEXT_CLASSIFICATION
from tunesmith.words import counted

if TYPE_CHECKING:
    from tunesmith.inference.engine import Completion


class Answers(Models):
    """The verbs that ask models."""

    def complete(
        self,
        name: str | Sequence[str],
        prompts: Sequence[Any],
        *,
        allow_unfinished: bool = False,
        **options: Any,
    ) -> "list[Completion]":
        """One answer per prompt, in order. `name`: a model, or one for each prompt. A prompt is a
        text or a list of messages.

        Models that were tuned as adapters of one base answer together. Options: temperature, top_p,
        max_tokens, seed, and response_format, {"type": "json", "schema": {…}}: answers that follow
        a JSON schema. Greedy by default. PromptTooLong, InvalidPrompt or InvalidSchema before
        anything is computed, of 16 models at a time; UnfinishedAnswer where an answer that should
        follow a schema was cut, unless `allow_unfinished`.
        """
        began, prompts = time.time(), list(prompts)
        names = [name] * len(prompts) if isinstance(name, str) else list(name)
        if len(names) != len(prompts):
            raise InvalidOptionValue(
                name="name",
                value=counted(len(names), "model"),
                allowed=f"one, or one for each of {counted(len(prompts), 'prompt')}",
            )
        catalog.prices(self.settings.home)  # UnreadableSettings before anything is computed
        tuned = {
            n: self._usable(n) for n in ([name] if isinstance(name, str) else dict.fromkeys(names))
        }
        questions = [
            tuned[n].base.task_spec.rules.question(p) for n, p in zip(names, prompts, strict=True)
        ]
        self._must_record(tuned.values())
        inference, sampling = _inference(), _read_by(tuned.values(), _sampling(options))
        pool, most = inference.of_device(self.settings.device), inference.MOST_TOGETHER
        found: dict[int, Completion] = {}
        by_base = sorted(tuned, key=lambda n: tuned[n].base.name)
        for some in (by_base[i : i + most] for i in range(0, len(by_base), most)):
            places = [i for i, n in enumerate(names) if n in some]
            asked = [(tuned[names[i]], questions[i]) for i in places]
            answers = pool.complete(inference.Request(asked, inference.Sampling(**sampling)))
            found |= zip(places, answers, strict=True)
        for n in tuned:
            self._charge(tuned[n], [found[i] for i, other in enumerate(names) if other == n], began)
        cut = [i for i in sorted(found) if "schema" in sampling and not found[i].stopped]
        if cut and not allow_unfinished:
            most, first = max(found[i].completion_tokens for i in cut), found[cut[0]]
            raise UnfinishedAnswer(
                count=len(cut),
                model=tuned[names[cut[0]]].name,
                answer=first.text[:60] + "…",
                max_tokens=most,
            )
        return [found[i] for i in range(len(prompts))]

    def classify(
        self,
        name: str,
        texts: Sequence[Any],
        *,
        threshold: float | Mapping[str, float] | None = None,
    ) -> list[Classification]:
        """The label of each text with the probability of every label, in order. A text is one, a
        list of two, or an object with `text` and `text_pair`.

        `threshold`: how likely a label must be where a text may have several, for all or by name.
        WrongTask where the model gives no labels.
        """
        tuned = self.model(name)
        if tuned.base.task != TEXT_CLASSIFICATION.name:
            task = tuned.base.task
            raise WrongTask(what="Classifying", needed="labels", name=name, task=task)
        least = _thresholds(threshold)
        found = self.complete(name, texts)
        if threshold is not None and found and not found[0].several:
            raise OptionNotRead(
                name="threshold",
                value=threshold,
                readers="models whose rows had lists of labels",
                here="this one gives one label",
            )
        for label in least if isinstance(least, Mapping) else ():
            if found and label not in found[0].labels:
                allowed = f"labels of {name}: {', '.join(found[0].labels[:20])}"
                raise InvalidOptionValue(name="threshold", value=label, allowed=allowed)
        return [Classification.of(c.labels, c.scores, c.several, least) for c in found]

    def stream(self, name: str, prompt: Any, **options: Any) -> Iterator[str]:
        """The answer to one prompt in pieces as they are written; joined they are what `complete`
        gives. Options as there.

        Who stops listening pays for what he heard until then.
        """
        written = self._written(name, prompt, options)
        _streams.add(written)
        return written

    def _written(
        self, name: str, prompt: Any, options: Mapping[str, Any]
    ) -> Generator[str, None, None]:
        began = time.time()
        catalog.prices(self.settings.home)
        tuned = self._usable(name)
        question = tuned.base.task_spec.rules.question(prompt)
        inference, asked = _inference(), _read_by([tuned], _sampling(options))
        self._must_record([tuned])
        request = inference.Request([(tuned, question)], inference.Sampling(**asked))
        last = None
        written = inference.of_device(self.settings.device).stream(request)
        try:
            for so_far in written:
                piece, last = so_far.text[len(last.text) if last else 0 :], so_far
                if piece:
                    yield piece
        finally:
            written.close()
            if last:
                self._charge(tuned, [last], began)

    def _usable(self, name: str) -> TunedModel:
        tuned = self._files_here(self.model(name))
        access.require(self.principal, "USAGE", tuned.name)
        self._warn_once(tuned)
        return tuned

    def _must_record(self, asked: Iterable[TunedModel]) -> None:
        """UsageNotRecorded before anything is computed, where answers have a price and the home
        cannot be written."""
        home = self.settings.home
        if not self.store.is_read_only or not (home / "prices.toml").exists():
            return
        for model in asked:
            if catalog.credits(home, model.base.name, "inference", 10**6) > 0:
                raise UsageNotRecorded(name=model.name, home=str(home))

    def _charge(self, tuned: TunedModel, found: "Sequence[Completion]", began: float) -> None:
        if self.store.is_read_only:
            if "usage" not in self._warned:
                self._warned.add("usage")
                words = (
                    f"the home {self.settings.home} cannot be written: its answers are not "
                    f"recorded as usage"
                )
                warnings.warn(words, Notice, stacklevel=4)
            return
        used = sum(c.prompt_tokens for c in found), sum(c.completion_tokens for c in found)
        self.store.add_usage(
            kind="complete",
            model=tuned.name,
            base_model=tuned.base.name,
            job_id=tuned.job_id or None,
            input_tokens=used[0],
            output_tokens=used[1],
            started_at=began,
            ended_at=time.time(),
            credits=catalog.credits(self.settings.home, tuned.base.name, "inference", sum(used)),
        )

    def _warn_once(self, tuned: TunedModel) -> None:
        """A model that tuning harmed answers all the same; whoever asks it is told once."""
        if (
            tuned.verdict
            and tuned.verdict["word"] == Word.HARMED
            and tuned.name not in self._warned
        ):
            self._warned.add(tuned.name)
            warnings.warn(f"{tuned.name}: {sentence(tuned.verdict)}", Notice, stacklevel=4)

    def count_tokens(self, name: str, text: str) -> int:
        """Tokens of a text for this model, its template left out; WrongTask for a model that reads
        none."""
        spec = self.model(name).base
        found: int | None = spec.task_spec.rules.count_tokens(self._encoder_of(spec), text)
        if found is None:
            raise WrongTask(what="Counting tokens", needed="text", name=name, task=spec.task)
        return found


def _inference() -> Any:
    """The one late import of the house: answering needs torch, and `tunesmith job list` must not
    wait for it."""
    try:
        # SciPy: for losses of object detection
        with imports.quickly("transformers", without="scipy"):
            from tunesmith.inference import pool
    except ImportError as e:
        raise MissingExtra(what=f"answering ({e.name})", extra="train") from None
    if _is_forked:
        pool.use_one_thread()
    return pool


_streams: WeakSet[Generator[str, None, None]] = WeakSet()


@atexit.register
def _close_streams() -> None:
    """What was heard is counted, also where a program ends in the middle of an answer."""
    for written in list(_streams):
        written.close()


_is_forked = False


def _note_fork() -> None:
    """A child forked beside torch has none of its parent's threads, which torch would wait for: it
    answers with one of its own."""
    global _is_forked
    _is_forked = "torch" in sys.modules


os.register_at_fork(after_in_child=_note_fork)


_LIMITS = {"temperature": (0.0, 1.0), "top_p": (0.0, 1.0), "max_tokens": (1, 8192)}


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of COMPLETE (Snowflake, complete-snowflake-cortex), checked; numbers may come as
    text."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name == "guardrails":
            continue
        if name == "response_format":
            found["schema"] = _schema(value)
        elif name == "seed":
            if not str(value).lstrip("-").isdecimal():
                raise InvalidOptionValue(name=name, value=value, allowed="a whole number")
            found[name] = int(value)
        elif name in _LIMITS:
            found[name] = _limited(name, value)
        else:
            raise InvalidOptionValue(
                name=name,
                value=value,
                allowed="COMPLETE takes temperature, top_p, max_tokens, response_format",
            )
    return found


def _read_by(models: Iterable[TunedModel], sampling: dict[str, Any]) -> dict[str, Any]:
    """OptionNotRead where none of the models draws its answers."""
    tasks = {m.base.task for m in models if not m.base.task_spec.samples}
    if sampling and not any(m.base.task_spec.samples for m in models):
        name, value = next(iter(sampling.items()))
        here = f"these are for {' and '.join(sorted(tasks))}"
        readers = "models that write text"
        raise OptionNotRead(name=name, value=value, readers=readers, here=here)
    return sampling


def _thresholds(given: Any) -> float | dict[str, float]:
    if given is None:
        return THRESHOLD
    values = given if isinstance(given, Mapping) else {"": given}
    for value in values.values():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            allowed = "a number from 0 to 1, or such a number for each of some labels"
            raise InvalidOptionValue(name="threshold", value=given, allowed=allowed)
    return dict(values) if isinstance(given, Mapping) else float(given)


def _limited(name: str, value: Any) -> float | int:
    low, high = _LIMITS[name]
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    is_whole = name == "max_tokens"
    if not low <= number <= high or (is_whole and number != int(number)):
        raise InvalidOptionValue(
            name=name,
            value=value,
            allowed=f"a {'whole ' if is_whole else ''}number from {low} to {high}",
        )
    return int(number) if is_whole else number


def _schema(response_format: Any) -> str:
    """The JSON schema of a response_format, as text: {"type": "json", "schema": {…}} (Snowflake,
    complete-structured-outputs)."""
    found = response_format.get("schema") if isinstance(response_format, Mapping) else None
    if not isinstance(found, Mapping):
        raise InvalidSchema(
            schema=json.dumps(response_format, default=str),
            reason="there is no object under 'schema'",
        )
    return json.dumps(found)

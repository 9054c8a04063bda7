"""The engine behind complete(): many prompts in, one answer each.

Prompts are read in groups and answered together (`readers`): what they begin with alike is computed
once, rows that are done leave, and the next group joins where there is room. Equal prompts are
answered once when greedy. Adapters of one base share its weights and a batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.template import Encoder, Messages, PromptTemplate
from tunesmith.errors import PromptTooLong
from tunesmith.inference import readers
from tunesmith.inference.structured import Grammar, allowed
from tunesmith.models import loading, methods, prepacked
from tunesmith.models.adapters import Adapter, Adapters
from tunesmith.models.methods import Model
from tunesmith.registry import TunedModel

FEW = 0.75  # where fewer of a cohort's rows are still being answered, the others leave it


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen (Snowflake, complete-snowflake-cortex). Temperature 0 is
    greedy."""

    temperature: float = 0.0
    top_p: float = 0.0
    """0 and 1 both mean: all tokens."""
    max_tokens: int = 4096
    seed: int | None = None
    """A row draws from this and its own prompt, so that its answer depends on no neighbour."""
    schema: str = ""
    """JSON schema, as text, that every answer follows; empty: none."""


@dataclass(frozen=True)
class Completion:
    text: str
    prompt_tokens: int
    completion_tokens: int
    """The stop id, where one was written, is not counted."""
    stopped: bool
    """Ended by a stop id, not by max_tokens or the window."""
    ids: tuple[int, ...] = ()
    """The tokens of the text."""
    scores: tuple[float, ...] = field(default=(), repr=False)
    """Of a classifier's answer: the probability of each of its labels."""
    labels: tuple[str, ...] = field(default=(), repr=False)
    several: bool = field(default=False, repr=False)
    """Whether a text may have several of them."""


class Engine:
    """A loaded model with its prompt template."""

    def __init__(
        self,
        model: Model,
        encoder: Encoder,
        name: str,
        context: int,
        adapters: Adapters | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """`adapters` of the model, where it has any, and which of them this engine answers with."""
        self.model, self.encoder, self.context, self.adapters, self.adapter = (
            model,
            encoder,
            context,
            adapters,
            adapter,
        )
        self._name = name

    @classmethod
    def load(cls, tuned: TunedModel, device: str, shared: Adapters | None = None) -> "Engine":
        """`shared`: its base, where that is loaded. What is stored was checked before
        (`opening.open_model`)."""
        base_folder, place = Path(tuned.base.folder), loading.device_of(device)
        folder = Path(tuned.folder)
        template = (
            PromptTemplate.read(folder) if tuned.folder else PromptTemplate.of_base(base_folder)
        )
        encoder = Encoder(template, base_folder)
        if tuned.folder and not methods.METHODS[tuned.method].can_share:
            return cls(
                _prepacked(loading.load(folder, place)), encoder, tuned.name, tuned.base.context
            )
        adapters = shared or Adapters(_prepacked(loading.load_base(tuned.base, place)))
        adapter = adapters.load(folder) if tuned.folder else None
        if not shared:
            adapters.usual = adapter
        return cls(adapters.model, encoder, tuned.name, tuned.base.context, adapters, adapter)

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: Sampling,
        told: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order. PromptTooLong or InvalidSchema before anything is
        computed.

        `told` hears, after every token, how many of the prompts are answered.
        """
        return generate_all([(self, p) for p in prompts], sampling, told)

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[Completion]:
        """The answer to one prompt as far as it is written, in whole characters, after every token;
        the last is what `generate` gives."""
        answers = _begin([(self, self.prompt_ids(messages))], sampling)
        [answer], pieces, said = answers, self.encoder.pieces(), ""
        for _ in _write(answers, sampling):
            if not answer.is_done:
                said += pieces(answer.ids[-1])
                yield replace(answer.completion(), text=said)
        yield answer.completion()

    def must_take(self, question: Messages) -> object:
        """PromptTooLong where no room is left for an answer."""
        return self.prompt_ids(question)

    def prompt_ids(self, messages: Messages) -> list[int]:
        """PromptTooLong where no room is left for an answer."""
        content = max((m["content"] for m in messages), key=len)
        too_long = self.encoder.surely_longer(content, self.context)
        ids = [] if too_long else self.encoder.prompt(messages)
        if too_long or len(ids) >= self.context:
            raise PromptTooLong(
                window=self.context,
                tokens=len(ids) or f"over {self.context}",
                model=self._name,
                prompt=content[:60] + "…",
            )
        return ids


def generate_all(
    asked: Sequence[tuple[Engine, Messages]],
    sampling: Sampling,
    told: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order; engines that share a loaded model answer together, each
    row with its own engine's adapter.

    PromptTooLong or InvalidSchema before anything is computed.
    """
    encoded = [(engine, engine.prompt_ids(messages)) for engine, messages in asked]
    wanted: dict[Any, list[int]] = {}
    for i, (engine, ids) in enumerate(encoded):
        wanted.setdefault((engine, *ids) if sampling.temperature == 0 else i, []).append(i)
    answers = _begin([encoded[places[0]] for places in wanted.values()], sampling)
    by_model: dict[int, list[_Answer]] = {}
    for answer in answers:
        by_model.setdefault(id(answer.engine.model), []).append(answer)
    for together in by_model.values():
        for _ in _write(together, sampling):
            if told:
                told(
                    sum(
                        len(places)
                        for a, places in zip(answers, wanted.values(), strict=True)
                        if a.is_done
                    )
                )
    found = {
        i: completion
        for a, places in zip(answers, wanted.values(), strict=True)
        for completion in [a.completion()]
        for i in places
    }
    return [found[i] for i in range(len(asked))]


def _begin(asked: Sequence[tuple[Engine, list[int]]], sampling: Sampling) -> "list[_Answer]":
    answers = [
        _Answer(engine, ids, min(sampling.max_tokens, engine.context - len(ids)))
        for engine, ids in asked
    ]
    if sampling.temperature:
        first = torch.seed() if sampling.seed is None else sampling.seed
        for engine in {a.engine for a in answers}:  # what a row draws depends on no other model
            mine = [a for a in answers if a.engine is engine]
            for answer, seed in zip(mine, row_seeds([a.prompt for a in mine], first), strict=True):
                answer.numbers = torch.Generator().manual_seed(seed)
    if sampling.schema:
        grammars: dict[int, Grammar] = {}
        for answer in answers:
            e = answer.engine
            if id(e) not in grammars:
                grammars[id(e)] = Grammar(
                    sampling.schema,
                    e.encoder.file,
                    e.model.config.vocab_size,
                    e.encoder.template.stop_ids,
                )
            answer.matcher = grammars[id(e)].matcher()
    return answers


@torch.inference_mode()
def _write(answers: "Sequence[_Answer]", sampling: Sampling) -> Iterator[None]:
    """Write the answers, all of one loaded model, token by token; hands over after each."""
    engine = answers[0].engine
    longest = max(len(a.prompt) + a.room for a in answers)
    of = [a.engine.adapter for a in answers]
    reader = readers.reader_for(
        engine.model, [a.prompt for a in answers], of, engine.adapters, longest
    )
    batch: list[tuple[readers.Cohort, list[_Answer]]] = []
    while reader.waiting or batch:
        while reader.waiting and reader.takes([cohort for cohort, _ in batch]):
            cohort, group, logits_BV = reader.read()
            rows = [answers[i] for i in group]
            _choose(rows, logits_BV, sampling)
            batch.append((cohort, rows))
        yield
        batch = [kept for kept in (_still_writing(*b) for b in batch) if kept]
        if batch:
            rows = [a for _, rows in batch for a in rows]
            tokens_B = torch.tensor([a.last for a in rows])
            positions_B = torch.tensor(
                [min(len(a.prompt) + len(a.ids), a.engine.context) - 1 for a in rows]
            )
            _choose(
                rows, reader.step([cohort for cohort, _ in batch], tokens_B, positions_B), sampling
            )


def _still_writing(
    cohort: readers.Cohort, rows: "list[_Answer]"
) -> "tuple[readers.Cohort, list[_Answer]] | None":
    """Rows that are done leave when they are many: what is held of the others must be copied for
    that."""
    running = [not a.is_done for a in rows]
    if not any(running):
        return None
    if sum(running) > FEW * len(rows):
        return cohort, rows
    cohort.keep(running)
    return cohort, [a for a in rows if not a.is_done]


def _choose(rows: "Sequence[_Answer]", logits_BV: Tensor, sampling: Sampling) -> None:
    if sampling.schema:
        logits_BV = allowed(logits_BV, [a.matcher for a in rows])
    u_B = (
        torch.cat([torch.rand(1, generator=a.numbers) for a in rows]).to(logits_BV.device)
        if sampling.temperature
        else None
    )
    for answer, token in zip(rows, choose(logits_BV, sampling, u_B).tolist(), strict=True):
        answer.add(token)


@dataclass
class _Answer:
    """One answer while it is being written."""

    engine: Engine
    prompt: list[int]
    room: int
    """Tokens it may have."""
    ids: list[int] = field(default_factory=list)
    last: int = 0
    """The token chosen last, a stop id included."""
    stopped: bool = False
    numbers: torch.Generator | None = None
    matcher: Any = None
    """Where it stands in the schema."""

    @property
    def is_done(self) -> bool:
        return self.stopped or len(self.ids) == self.room

    def add(self, token: int) -> None:
        if self.is_done:
            return
        self.last, self.stopped = token, token in self.engine.encoder.template.stop_ids
        if not self.stopped:
            self.ids.append(token)
            if self.matcher:
                self.matcher.consume_token(token)

    def completion(self) -> Completion:
        return Completion(
            self.engine.encoder.decode(self.ids),
            len(self.prompt),
            len(self.ids),
            self.stopped,
            tuple(self.ids),
        )


def row_seeds(prompts: Sequence[list[int]], seed: int) -> list[int]:
    """What each prompt draws from: its own ids and how often they stood before, so neither
    neighbours nor places decide it."""
    seen: dict[tuple[int, ...], int] = {}
    found = []
    for ids in prompts:
        n = seen[tuple(ids)] = seen.get(tuple(ids), 0) + 1
        found.append(
            int.from_bytes(hashlib.blake2b(f"{seed} {n} {ids}".encode(), digest_size=8).digest())
            >> 1
        )
    return found


def choose(logits_BV: Tensor, sampling: Sampling, u_B: Tensor | None) -> Tensor:
    """The next token of each row: the best one, or at `temperature` the one at u (0 to 1) of the
    smallest set that holds `top_p`."""
    if sampling.temperature == 0 or u_B is None:
        return logits_BV.argmax(-1)
    p_BV, index = torch.softmax(logits_BV.float() / sampling.temperature, -1).sort(
        -1, descending=True
    )
    if 0 < sampling.top_p < 1:
        outside = p_BV.cumsum(-1) - p_BV >= sampling.top_p  # the token that crosses top_p stays
        p_BV = p_BV.masked_fill(outside, 0.0)
    up_to = p_BV.cumsum(-1)
    place_B = torch.searchsorted(up_to, u_B[:, None] * up_to[:, -1:], right=True).clamp(
        max=p_BV.shape[-1] - 1
    )
    return index.gather(-1, place_B).squeeze(-1)


def _prepacked(model: PreTrainedModel) -> PreTrainedModel:
    prepacked.enable(model)
    return model

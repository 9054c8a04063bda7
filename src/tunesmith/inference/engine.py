"""The engine behind complete(): many prompts in, one answer each.

What all prompts begin with is computed once. Prompts of like length are answered together with one key-value cache per batch; equal
prompts are answered once when greedy. A batch is padded on the right, and each row's positions go on from its own end, so padding
decides nothing. Models stay loaded as far as there is memory for them.
"""

import copy
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith import catalog, durable
from tunesmith.data.template import Encoder, Messages, PromptTemplate
from tunesmith.errors import PromptTooLong
from tunesmith.inference.cache import new_cache
from tunesmith.inference.structured import Grammar, allowed
from tunesmith.models import causal_lm, certificate, methods
from tunesmith.models.layout import micro_batches
from tunesmith.models.methods import Model
from tunesmith.registry import TunedModel

BATCH_TOKENS = 8192  # padded prompt tokens answered together
CACHE_TOKENS = 65_536  # prompt tokens whose keys and values are held together
PREFIX_LEAST = 16  # shared tokens worth a pass of their own
LOADED_SHARE = 0.25  # of this machine's memory, for the weights of models that are kept loaded; the last one asked always is


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen (Snowflake, complete-snowflake-cortex). Temperature 0 is greedy."""

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


class Engine:
    """A loaded model with its prompt template."""

    def __init__(self, model: Model, encoder: Encoder, name: str, context: int) -> None:
        self.model, self.encoder, self._name, self.context = model, encoder, name, context
        self._device = next(model.parameters()).device

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @classmethod
    def load(cls, tuned: TunedModel, device: str) -> "Engine":
        """DamagedFiles unless the tuned model's files are those that were published."""
        base_folder, place = Path(tuned.base.folder), causal_lm.device_of(device)
        if not tuned.folder:
            template = PromptTemplate.of_base(base_folder)
            return cls(causal_lm.load_base(tuned.base, place), Encoder(template, base_folder), tuned.name, tuned.base.context)
        folder = Path(tuned.folder)
        durable.verify(folder, tuned.digest or None)
        if tuned.digest:  # published: it must be what was certified, on the base it was certified with
            certificate.check(tuned.name, folder, catalog.fingerprint(tuned.base))
        method = methods.load(tuned.method)
        start = causal_lm.load(folder, place) if method.WHOLE else causal_lm.load_base(tuned.base, place)
        model = method.load(start, folder)
        template = PromptTemplate.read(folder)
        return cls(model.eval(), Encoder(template, base_folder), tuned.name, tuned.base.context)

    def generate(self, prompts: Sequence[Messages], sampling: Sampling) -> list[Completion]:
        """One completion per prompt, in order. PromptTooLong or InvalidSchema before anything is computed."""
        encoded = [self._prompt_ids(p) for p in prompts]
        wanted: dict[tuple[int, ...], list[int]] = {}
        for i, ids in enumerate(encoded):
            key = tuple(ids) if sampling.temperature == 0 else (*ids, -1 - i)
            wanted.setdefault(key, []).append(i)
        places = list(wanted.values())
        answers: list[Completion | None] = [None] * len(prompts)
        for group, completions in self._batches([encoded[p[0]] for p in places], sampling):
            for g, completion in zip(group, completions, strict=True):
                for i in places[g]:
                    answers[i] = completion
        return [a for a in answers if a is not None]

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[Completion]:
        """The answer to one prompt as far as it is written, in whole characters, after every token; the last is what `generate` gives."""
        ids = self._prompt_ids(messages)
        answers = self._begin([ids], sampling)
        pieces, said = self.encoder.pieces(), ""
        for _ in self._write(answers, [ids], new_cache(self.model.config), sampling):
            [answer] = answers
            if not answer.is_done:
                said += pieces(answer.ids[-1])
                yield replace(self._completion(answer), text=said)
        yield self._completion(answers[0])

    def _prompt_ids(self, messages: Messages) -> list[int]:
        content = max((m["content"] for m in messages), key=len)
        too_long = self.encoder.surely_longer(content, self.context)
        ids = [] if too_long else self.encoder.prompt(messages)
        if too_long or len(ids) >= self.context:
            raise PromptTooLong(window=self.context, tokens=len(ids) or f"over {self.context}", model=self._name, prompt=content[:60] + "…")
        return ids

    def _batches(self, asked: list[list[int]], sampling: Sampling) -> Iterator[tuple[list[int], list[Completion]]]:
        answers = self._begin(asked, sampling)
        prefix = self._prefix(asked)
        n = prefix.get_seq_length()
        longest = max(map(len, asked), default=1)
        for group in micro_batches([len(ids) - n for ids in asked], BATCH_TOKENS, max(1, CACHE_TOKENS // longest)):
            for _ in self._write([answers[g] for g in group], [asked[g] for g in group], prefix, sampling):
                pass
            yield group, [self._completion(answers[g]) for g in group]

    def _begin(self, prompts: list[list[int]], sampling: Sampling) -> "list[_Answer]":
        answers = [_Answer(len(p), min(sampling.max_tokens, self.context - len(p))) for p in prompts]
        if sampling.temperature:
            seeds = row_seeds(prompts, torch.seed() if sampling.seed is None else sampling.seed)
            for answer, seed in zip(answers, seeds, strict=True):
                answer.numbers = torch.Generator().manual_seed(seed)
        if sampling.schema:
            grammar = Grammar(sampling.schema, self.encoder.file, self.model.config.vocab_size, self.encoder.template.stop_ids)
            for answer in answers:
                answer.matcher = grammar.matcher()
        return answers

    @torch.inference_mode()
    def _prefix(self, asked: list[list[int]]) -> DynamicCache:
        """The keys and values of what all prompts begin with (a system prompt, examples), computed once; empty where that is little."""
        cache = new_cache(self.model.config)
        n = common_prefix(asked) if len(asked) > 1 else 0
        if n >= PREFIX_LEAST:
            ids = torch.tensor([asked[0][:n]], device=self._device)
            last = torch.tensor([n - 1], device=self._device)
            causal_lm.logits_at(self.model, last, input_ids=ids, use_cache=True, **self._held(cache))
        return cache

    @torch.inference_mode()
    def _write(self, answers: "list[_Answer]", prompts: list[list[int]], prefix: DynamicCache, sampling: Sampling) -> Iterator[None]:
        """Write the answers to the prompts token by token; hands over after each."""
        stops = set(self.encoder.template.stop_ids)
        cache, mask, logits_BV = self._read(prompts, prefix)
        batch = answers  # those that are done leave it when they are many
        while True:
            if sampling.schema:
                logits_BV = allowed(logits_BV, [a.matcher for a in batch])
            u_B = torch.cat([torch.rand(1, generator=a.numbers) for a in batch]).to(self._device) if sampling.temperature else None
            token_B = choose(logits_BV, sampling, u_B)
            for answer, token in zip(batch, token_B.tolist(), strict=True):
                answer.add(token, stops)
            yield
            running = [not a.is_done for a in batch]
            if not any(running):
                return
            if 2 * sum(running) <= len(batch):
                kept = torch.tensor(running).nonzero().squeeze(1).to(self._device)
                cache.batch_select_indices(kept)
                mask, token_B = mask[kept], token_B[kept]
                batch = [a for a in batch if not a.is_done]
            mask = torch.cat([mask, mask.new_ones(len(batch), 1)], 1)
            at_B = torch.tensor([min(a.n_prompt + len(a.ids), self.context) - 1 for a in batch], device=self._device)
            inputs = {"input_ids": token_B[:, None], "attention_mask": mask, "position_ids": at_B[:, None]}
            logits_BV = self.model(**inputs, use_cache=True, **self._held(cache)).logits[:, -1]

    def _read(self, prompts: list[list[int]], prefix: DynamicCache) -> tuple[DynamicCache, Tensor, Tensor]:
        """The keys and values of the prompts, their mask, and the logits of each one's next token."""
        S, B = prefix.get_seq_length(), len(prompts)
        lengths_B = torch.tensor([len(p) for p in prompts], device=self._device)
        T = int(lengths_B.max()) - S
        ids_BT = torch.zeros(B, T, dtype=torch.long, device=self._device)
        mask = torch.zeros(B, S + T, dtype=torch.long, device=self._device)
        for b, p in enumerate(prompts):
            ids_BT[b, : len(p) - S] = torch.tensor(p[S:])
            mask[b, : len(p)] = 1
        cache = copy.deepcopy(prefix)
        if S:
            cache.batch_repeat_interleave(B)
        ends_K, place_B = torch.unique(lengths_B - S - 1, return_inverse=True)
        inputs = {"input_ids": ids_BT, "attention_mask": mask}
        logits_BKV = causal_lm.logits_at(self.model, ends_K, use_cache=True, **inputs, **self._held(cache))
        return cache, mask, logits_BKV[torch.arange(B), place_B]

    def _held(self, cache: DynamicCache) -> dict[str, DynamicCache]:
        """The keys and values as the model's forward calls them: transformers 5.24 renamed the argument."""
        return {causal_lm.cache_word(self.model): cache}

    def _completion(self, answer: "_Answer") -> Completion:
        return Completion(self.encoder.decode(answer.ids), answer.n_prompt, len(answer.ids), answer.stopped, tuple(answer.ids))


@dataclass
class _Answer:
    """One answer while it is being written."""

    n_prompt: int
    room: int
    """Tokens it may have."""
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    numbers: torch.Generator | None = None
    matcher: Any = None
    """Where it stands in the schema."""

    @property
    def is_done(self) -> bool:
        return self.stopped or len(self.ids) == self.room

    def add(self, token: int, stops: set[int]) -> None:
        if self.is_done:
            return
        self.stopped = token in stops
        if not self.stopped:
            self.ids.append(token)
            if self.matcher:
                self.matcher.consume_token(token)


def row_seeds(prompts: Sequence[list[int]], seed: int) -> list[int]:
    """What each prompt draws from: its own ids and how often they stood before, so neither neighbours nor places decide it."""
    seen: dict[tuple[int, ...], int] = {}
    found = []
    for ids in prompts:
        n = seen[tuple(ids)] = seen.get(tuple(ids), 0) + 1
        found.append(int.from_bytes(hashlib.blake2b(f"{seed} {n} {ids}".encode(), digest_size=8).digest()) >> 1)
    return found


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many ids all prompts begin with, at least one of each left over."""
    least, greatest = min(prompts), max(prompts)  # what these two share, all share
    shared = next((i for i, (a, b) in enumerate(zip(least, greatest, strict=False)) if a != b), min(len(least), len(greatest)))
    return min(shared, min(map(len, prompts)) - 1)


def choose(logits_BV: Tensor, sampling: Sampling, u_B: Tensor | None) -> Tensor:
    """The next token of each row: the best one, or at `temperature` the one at u (0 to 1) of the smallest set that holds `top_p`."""
    if sampling.temperature == 0 or u_B is None:
        return logits_BV.argmax(-1)
    p_BV, index = torch.softmax(logits_BV.float() / sampling.temperature, -1).sort(-1, descending=True)
    if 0 < sampling.top_p < 1:
        outside = p_BV.cumsum(-1) - p_BV >= sampling.top_p  # the token that crosses top_p stays
        p_BV = p_BV.masked_fill(outside, 0.0)
    up_to = p_BV.cumsum(-1)
    place_B = torch.searchsorted(up_to, u_B[:, None] * up_to[:, -1:], right=True).clamp(max=p_BV.shape[-1] - 1)
    return index.gather(-1, place_B).squeeze(-1)


_loaded: OrderedDict[tuple[str, ...], Engine] = OrderedDict()


def engine_for(tuned: TunedModel, device: str) -> Engine:
    """The engine of a model, loaded when first asked and kept while the weights of all fit into `LOADED_SHARE` of the memory."""
    key = (tuned.base.name, tuned.base.folder, tuned.folder, tuned.digest)
    if key not in _loaded:
        _loaded[key] = Engine.load(tuned, device)
    _loaded.move_to_end(key)
    room = LOADED_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    while len(_loaded) > 1 and sum(e.size for e in _loaded.values()) > room:
        _loaded.popitem(last=False)
    return _loaded[key]

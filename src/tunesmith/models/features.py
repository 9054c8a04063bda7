"""What the frozen lower layers of a classifier make of texts, computed once: over epochs, and over
all jobs on the same base, layers and texts.

It is kept in the home under the digest of what decides it, read through the page cache, and the
least recently used goes where all together take too much. It is computed in an order that the texts
alone decide, so that a job which was killed while it was computed goes on with the same bits.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith import durable
from tunesmith.errors import DamagedFiles
from tunesmith.models import classifier, layers, packed_texts
from tunesmith.models.methods import decoder_of

FOLDER, FILE = "features", "states.safetensors"
MOST_BYTES = 4 << 30  # of one job; more is computed anew in every pass
ALL_BYTES = 8 << 30  # of all together
MICRO_TOKENS = 4096
HELD = "tunesmith_features"

Key = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Features:
    """S states of width D, of all texts one after the other."""

    below: int
    """The layers that are skipped."""
    is_whole: bool
    """Whether those are all: then a text's first state is kept alone."""
    states_SD: Tensor
    places: Mapping[Key, tuple[int, int]]

    def of(self, texts: Sequence[Any]) -> Tensor | None:
        """The states of these texts, one after the other; None where one is not known."""
        found = [self.places.get(key_of(t)) for t in texts]
        if any(f is None for f in found):
            return None
        return torch.cat([self.states_SD[f[0] : f[1]] for f in found if f is not None])


def key_of(text: Any) -> Key:
    return tuple(text.ids), tuple(text.types or ())


@contextmanager
def remembering(model: Any, texts: Sequence[Any], home: Path, base: str) -> Iterator[str]:
    """Inside, what the frozen layers make of these texts is not computed again. `base`: the
    fingerprint of its weights. Gives why not, where something is frozen and it is computed all the
    same."""
    below, plain = layers.frozen_below(model), decoder_of(model)
    why = _objection(model, texts, below) if below else ""
    if not below or why:
        yield why
        return
    setattr(plain, HELD, _features(model, texts, below, home, base))
    try:
        yield ""
    finally:
        delattr(plain, HELD)


def _objection(model: Any, texts: Sequence[Any], below: int) -> str:
    longest = max((len(t.ids) for t in texts), default=0)
    if not packed_texts.can_pack(model, longest):
        return "its texts are padded, not packed"
    if not packed_texts.can_skip(model, below):
        return "its layers give the next one more than a state for each token"
    size = sum(len(t.ids) for t in texts) * decoder_of(model).config.hidden_size * 4
    if size > MOST_BYTES and below < layers.count(model):
        return f"{size / 1e9:.1f} GB would be kept, {MOST_BYTES / 1e9:.1f} at most"
    return ""


def _features(model: Any, texts: Sequence[Any], below: int, home: Path, base: str) -> Features:
    distinct = sorted({key_of(t): t for t in texts}.items(), key=lambda item: item[0])
    is_whole = below == layers.count(model)
    told = f"{base}:{below}:{is_whole}:{next(model.parameters()).dtype}:{torch.__version__}:"
    told += f"{torch.get_num_threads()}:" + repr([key for key, _ in distinct])
    place = home / FOLDER / hashlib.sha256(told.encode()).hexdigest()
    states = _stored(place)
    if states is None:
        states = _computed(model, [t for _, t in distinct], below, is_whole)
        _keep(states, place, home)
    places, at = {}, 0
    for key, text in distinct:
        n = 1 if is_whole else len(text.ids)
        places[key] = (at, at + n)
        at += n
    return Features(below, is_whole, states, places)


@torch.no_grad()
def _computed(model: Any, texts: Sequence[Any], below: int, is_whole: bool) -> Tensor:
    was_training = model.training
    model.eval()
    found: dict[int, Tensor] = {}
    for group in classifier.groups(model, texts, MICRO_TOKENS):
        some = [texts[i] for i in group]
        made = packed_texts.states(model, some, None if is_whole else below)
        sizes = [1 if is_whole else len(t.ids) for t in some]
        found |= zip(group, torch.split(made, sizes), strict=True)
    model.train(was_training)
    return torch.cat([found[i] for i in range(len(texts))]).contiguous()


def _stored(place: Path) -> Tensor | None:
    """None where it is not there, or is damaged: then it is computed anew."""
    try:
        durable.verify(place)
        os.utime(place)
        found: Tensor = load_file(place / FILE)["states"]
        return found
    except (DamagedFiles, OSError, KeyError):
        return None


def _keep(states: Tensor, place: Path, home: Path) -> None:
    """For the next attempt, or job. Where the disk has no room it is not kept."""
    with suppress(OSError, DamagedFiles), durable.staging(home) as outer:
        durable.make_folder(place.parent)
        if place.exists():
            durable.remove(place)
        durable.check_space(outer, states.nbytes)
        staged = outer / "features"
        staged.mkdir()
        save_file({"states": states}, staged / FILE)
        durable.publish(staged, place, {"used": time.time()})
        _make_room(place.parent, place)


def _make_room(folder: Path, newest: Path) -> None:
    def size(place: Path) -> int:
        return sum(f.stat().st_size for f in place.iterdir() if f.is_file())

    kept = 0
    for place in sorted(folder.iterdir(), key=lambda p: -p.stat().st_mtime):
        kept += size(place)
        if kept > ALL_BYTES and place != newest:
            durable.remove(place)

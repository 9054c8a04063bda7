"""What the frozen lower layers of a model make of rows, computed once: over epochs, and over all
jobs on the same base, layers and rows.

It is kept in the home under the digest of what decides it, read through the page cache, and the
least recently used goes where all together take too much. It is computed in an order that the rows
alone decide, so that a job which was killed while it was computed goes on with the same bits.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith import durable
from tunesmith.errors import DamagedFiles
from tunesmith.models import layers
from tunesmith.models.methods import decoder_of

FOLDER, FILE = "features", "states.safetensors"
MOST_BYTES = 4 << 30  # of one job; more is computed anew in every pass
ALL_BYTES = 8 << 30  # of all together
HELD = "tunesmith_features"

Key = tuple[tuple[int, ...], ...]
"""What a row is known by: all that goes into the model of it."""


class Reader(Protocol):
    """How rows of a task go through a model."""

    def key(self, row: Any) -> Key: ...

    def objection(self, model: Any, rows: Sequence[Any], below: int) -> str:
        """Why nothing can be kept of these rows; empty where it can."""

    def keeps_one(self, model: Any, below: int) -> bool:
        """Whether one state of each row is all that is read above these layers."""

    def groups(self, model: Any, rows: Sequence[Any]) -> list[list[int]]:
        """Rows that go through the model together."""

    def states(self, model: Any, rows: Sequence[Any], below: int) -> list[Tensor]:
        """What the layers below give, of each row (S, D)."""


@dataclass(frozen=True)
class Features:
    """S states of width D, of all rows one after the other."""

    below: int
    """The layers that are skipped."""
    keeps_one: bool
    states_SD: Tensor
    places: Mapping[Key, tuple[int, int]]

    def of(self, keys: Sequence[Key]) -> list[Tensor] | None:
        """The states of these rows; None where one is not known."""
        found = [self.places.get(key) for key in keys]
        if any(f is None for f in found):
            return None
        return [self.states_SD[f[0] : f[1]] for f in found if f is not None]


def held(model: Any) -> Features | None:
    """What is kept for this model at the moment."""
    found: Features | None = getattr(decoder_of(model), HELD, None)
    return found


@contextmanager
def remembering(
    model: Any, rows: Sequence[Any], home: Path, base: str, reader: Reader
) -> Iterator[str]:
    """Inside, what the frozen layers make of these rows is not computed again. `base`: the
    fingerprint of its weights. Gives why not, where something is frozen and it is computed all the
    same."""
    below, plain = layers.frozen_below(model), decoder_of(model)
    why = ""
    if below:
        why = reader.objection(model, rows, below) or _too_large(model, rows, below, reader)
    if not below or why:
        yield why
        return
    setattr(plain, HELD, _features(model, rows, below, home, base, reader))
    try:
        yield ""
    finally:
        delattr(plain, HELD)


def _too_large(model: Any, rows: Sequence[Any], below: int, reader: Reader) -> str:
    if reader.keeps_one(model, below):
        return ""
    width = decoder_of(model).config.get_text_config().hidden_size
    tokens = sum(len(key[0]) for key in {reader.key(r) for r in rows})
    size = tokens * width * next(model.parameters()).element_size()
    if size <= MOST_BYTES:
        return ""
    return f"{size / 1e9:.1f} GB would be kept, {MOST_BYTES / 1e9:.1f} at most"


def _features(
    model: Any, rows: Sequence[Any], below: int, home: Path, base: str, reader: Reader
) -> Features:
    distinct = sorted({reader.key(r): r for r in rows}.items(), key=lambda item: item[0])
    keeps_one = reader.keeps_one(model, below)
    told = f"{base}:{below}:{keeps_one}:{next(model.parameters()).dtype}:{torch.__version__}:"
    told += f"{torch.get_num_threads()}:" + repr([key for key, _ in distinct])
    place = home / FOLDER / hashlib.sha256(told.encode()).hexdigest()
    states = _stored(place)
    if states is None:
        states = _computed(model, [r for _, r in distinct], below, reader)
        _keep(states, place, home)
    places, at = {}, 0
    for key, _ in distinct:
        n = 1 if keeps_one else len(key[0])
        places[key] = (at, at + n)
        at += n
    return Features(below, keeps_one, states, places)


@torch.no_grad()
def _computed(model: Any, rows: Sequence[Any], below: int, reader: Reader) -> Tensor:
    was_training = model.training
    model.eval()
    found: dict[int, Tensor] = {}
    for group in reader.groups(model, rows):
        made = reader.states(model, [rows[i] for i in group], below)
        found |= zip(group, (s.cpu() for s in made), strict=True)
    model.train(was_training)
    return torch.cat([found[i] for i in range(len(rows))]).contiguous()


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

import copy
import random

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from tunesmith.inference.cache import RoomyLayer


@pytest.mark.parametrize("seed", range(20))
def test_a_layer_with_room_holds_what_the_librarys_holds_after_any_use(seed: int) -> None:
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ours, theirs, rows = RoomyLayer(), DynamicLayer(), chance.randint(1, 3)
    for _ in range(40):
        match chance.choice(["update", "update", "update", "select", "repeat", "copy", "crop"]):
            case "update":
                new = torch.randn(2, rows, 2, chance.choice([1, 1, 5, 70]), 4, generator=generator)
                for a, b in zip(ours.update(*new), theirs.update(*new), strict=True):
                    assert torch.equal(a, b)
            case "select" if ours.is_initialized:
                kept = torch.tensor(sorted(chance.sample(range(rows), chance.randint(1, rows))))
                ours.batch_select_indices(kept), theirs.batch_select_indices(kept)
                rows = len(kept)
            case "repeat" if ours.is_initialized and rows < 4:
                ours.batch_repeat_interleave(2), theirs.batch_repeat_interleave(2)
                rows *= 2
            case "copy":
                other = copy.deepcopy(
                    ours
                )  # a prefix is used again: what its copy goes on with must not reach it
                if ours.is_initialized:
                    other.update(*torch.randn(2, rows, 2, 3, 4, generator=generator))
            case "crop" if ours.get_seq_length() > 3:
                ours.crop(-2), theirs.crop(-2)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_most_tokens_are_written_without_copying_those_before() -> None:
    layer, places = RoomyLayer(), set()
    for _ in range(400):
        layer.update(*torch.zeros(2, 1, 2, 1, 4))
        places.add(layer.keys.data_ptr())
    assert layer.keys.shape == (1, 2, 400, 4) and len(places) < 10

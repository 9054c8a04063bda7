"""How rows of different length are laid out together, in training and in answering."""

from collections.abc import Sequence
from typing import Any

# go through a model at once, padding included; more gains nothing on two cores and costs memory
MICRO_TOKENS = 4096
LARGE_BYTES = 4e9  # where the activations of so many would take more, half as many go through


def micro_tokens(model: Any) -> int:
    """How many tokens a job begins with, before memory is tried: rows that share a beginning want
    many, a large model's memory few."""
    config = model.config.get_text_config()
    wide = 12 * config.hidden_size + 6 * getattr(
        config, "intermediate_size", 4 * config.hidden_size
    )  # numbers kept for a layer's backward
    size = 4 * config.num_hidden_layers * wide * MICRO_TOKENS
    return MICRO_TOKENS if size <= LARGE_BYTES else MICRO_TOKENS // 2


def micro_batches(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Indices into `lengths`, rows of like length together, each group at most `max_tokens` with
    its padding (or one row)."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        group = groups[-1] if groups else None
        if group is None or (len(group) + 1) * lengths[i] > max_tokens or len(group) == max_rows:
            groups.append([i])
        else:
            group.append(i)
    return groups

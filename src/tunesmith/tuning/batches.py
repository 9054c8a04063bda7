"""Which rows make an optimizer step, and how they are cut into micro-batches. Pure functions of (seed, epoch, position)."""

from collections.abc import Sequence

import numpy as np


def order(n_rows: int, seed: int, epoch: int) -> list[int]:
    """The order of the rows in an epoch (from 0): resuming needs this function and one integer."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(n_rows)]


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    return -(-n_rows // batch_size)


def rows_of_step(n_rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The rows of optimizer step `step` (from 0, over all epochs)."""
    per_epoch = steps_per_epoch(n_rows, batch_size)
    epoch, position = divmod(step, per_epoch)
    return order(n_rows, seed, epoch)[position * batch_size : (position + 1) * batch_size]


def micro_batches(lengths: Sequence[int], max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Indices into `lengths`, rows of like length together, each group at most `max_tokens` with its padding (or one row)."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        group = groups[-1] if groups else None
        if group is None or (len(group) + 1) * lengths[i] > max_tokens or len(group) == max_rows:
            groups.append([i])
        else:
            group.append(i)
    return groups

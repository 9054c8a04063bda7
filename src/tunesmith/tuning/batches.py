"""Which rows make an optimizer step: pure functions of (seed, epoch, position)."""

from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=2)
def order(n_rows: int, seed: int, epoch: int) -> list[int]:
    """The order of the rows in an epoch (from 0): resuming needs this function and one integer."""
    import numpy as np  # late: a list of jobs must not wait for it

    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(n_rows)]


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    return -(-n_rows // batch_size)


def rows_of_step(n_rows: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The rows of optimizer step `step` (from 0, over all epochs)."""
    per_epoch = steps_per_epoch(n_rows, batch_size)
    epoch, position = divmod(step, per_epoch)
    return order(n_rows, seed, epoch)[position * batch_size : (position + 1) * batch_size]


def steps_within(
    lengths: Sequence[int], batch_size: int, seed: int, total: int, tokens: int
) -> int:
    """How many of the `total` optimizer steps read no more than `tokens` together; rows have
    `lengths` tokens."""
    used = 0
    for step in range(total):
        used += sum(lengths[i] for i in rows_of_step(len(lengths), batch_size, seed, step))
        if used > tokens:
            return step
    return total

"""How rows of different length are laid out together, in training and in answering."""

from collections.abc import Sequence

MICRO_TOKENS = 4096  # go through a model at once, padding included; more gains nothing on two cores and costs memory


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

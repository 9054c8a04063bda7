"""What is held of rows, attended to directly: random keys see what a trained model's answers may
forgive."""

import random

import pytest
import torch

from tunesmith.inference import held
from tunesmith.models import packed

H, J, D = 4, 2, 8
ROWS = (
    [[1] * 20 + [2] * 12 + [7, i] for i in range(4)]
    + [[1] * 20 + [3] * 10 + [8, i] for i in range(3)]
    + [[5, 6, 7], [5]]
)


@pytest.mark.parametrize("least_shared", [0, 30, 10**9])
@pytest.mark.parametrize("seed", range(6))
def test_rows_that_stay_attend_to_what_they_did_before(
    seed: int, least_shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "LEAST_SHARED", least_shared)
    torch.manual_seed(seed)
    made = packed.pack(ROWS)
    reading = held.Reading(made, [])
    reading.kept[0] = (torch.randn(len(made.ids_T), J, D), torch.randn(len(made.ids_T), J, D))
    order = sorted(range(len(ROWS)), key=lambda b: made.paths[b])
    cohort = held.Cohort.of(reading, order, [None] * len(ROWS))
    assert bool(cohort.shared) is (least_shared < 10**9)
    keys, values = reading.kept[0]
    own = [keys[made.places[b]] for b in order], [values[made.places[b]] for b in order]
    stays = [True] * len(ROWS)
    while len(cohort):
        n = len(cohort)
        q, k, v = torch.randn(n, H, D), torch.randn(n, J, D), torch.randn(n, J, D)
        writing = held.Writing([cohort])
        found = writing.attend(0, q, k, v, 0.3)
        writing.done()
        own = (
            [torch.cat([o, x[i][None]]) for i, o in enumerate(own[0]) for x in [k]],
            [torch.cat([o, v[i][None]]) for i, o in enumerate(own[1])],
        )
        for i in range(n):
            mine_k, mine_v = (x[i].repeat_interleave(H // J, 1) for x in own)
            weights = (torch.einsum("hd,shd->hs", q[i], mine_k) * 0.3).softmax(-1)
            torch.testing.assert_close(
                found[i], torch.einsum("hs,shd->hd", weights, mine_v), rtol=1e-4, atol=1e-5
            )
        stays = [random.Random(seed * 100 + n * 7 + i).random() < 0.7 for i in range(n)]
        stays[0] = stays[0] and not all(stays)
        cohort.keep(stays)
        own = tuple([o for o, s in zip(side, stays, strict=True) if s] for side in own)  # type: ignore[assignment]

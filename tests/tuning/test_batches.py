from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from tunesmith.models import layout
from tunesmith.models.layout import micro_batches
from tunesmith.tuning.batches import order, rows_of_step, steps_per_epoch


@given(
    n=st.integers(1, 80),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 9),
)
def test_an_epoch_takes_every_row_once_whatever_the_batch(
    n: int, batch: int, seed: int, epoch: int
) -> None:
    per_epoch = steps_per_epoch(n, batch)
    steps = [rows_of_step(n, batch, seed, epoch * per_epoch + s) for s in range(per_epoch)]
    assert sum(steps, []) == order(n, seed, epoch)
    assert sorted(sum(steps, [])) == list(range(n)) and all(0 < len(s) <= batch for s in steps)


def test_the_order_is_a_function_of_seed_and_epoch_in_any_process() -> None:
    first = order(50, 3, 4)
    order.cache_clear()  # as another process has it
    assert order(50, 3, 4) == first


def test_epochs_and_seeds_are_ordered_differently() -> None:
    assert order(50, 0, 0) != order(50, 0, 1) != order(50, 1, 1)


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    tokens=st.integers(1, 600),
    rows=st.none() | st.integers(1, 8),
)
def test_micro_batches_lose_no_row_and_stay_within_the_limit(
    lengths: list[int], tokens: int, rows: int | None
) -> None:
    groups = micro_batches(lengths, tokens, rows)
    assert sorted(sum(groups, [])) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens
        assert rows is None or len(group) <= rows


def test_a_large_model_is_given_fewer_tokens_at_once() -> None:
    def begins_with(layers: int, hidden: int, wide: int) -> int:
        config = LlamaConfig(
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=wide,
            num_attention_heads=4,
        )
        return layout.micro_tokens(SimpleNamespace(config=config))

    assert (
        begins_with(6, 288, 768)
        == layout.MICRO_TOKENS
        == 2 * begins_with(30, 576, 1536)
        == 2 * begins_with(32, 4096, 11008)
    )

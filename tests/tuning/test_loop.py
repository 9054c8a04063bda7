import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from conftest import WORDS, decided, next_word_rows
from tunesmith import durable
from tunesmith.data.dataset import Row
from tunesmith.data.examples import Example
from tunesmith.data.template import Encoder, PromptTemplate
from tunesmith.errors import CheckpointOfAnother, NonFiniteLoss, OutOfMemory
from tunesmith.models import loading, methods
from tunesmith.phases.messages import Message, RowLosses, Started, Stepped, Warned
from tunesmith.tasks import text_generation
from tunesmith.tuning import checkpoints, loop
from tunesmith.tuning.loop import Budget, Run, Training, train
from tunesmith.tuning.strategies import Stage

CPU = torch.device("cpu")
M = TypeVar("M")


class Scene:
    """A base, rows, and a place to save; `train` starts over or goes on, as a new process would."""

    def __init__(self, base: Path, folder: Path) -> None:
        encoder = Encoder(PromptTemplate.of_base(base), base)
        self.rows = [
            Example(
                Row(i + 1, r["prompt"], r["completion"], ""),
                encoder.row([{"role": "user", "content": r["prompt"]}], r["completion"]),
            )
            for i, r in enumerate(next_word_rows())
        ]
        self.base, self.folder, self.told, self.validation = base, folder, [], self.rows[:3]  # type: ignore[var-annotated]
        self.budget = Budget()
        self.stages: list[Stage] | None = None
        self.rates: dict[str, float] = {}

    def train(
        self, on: Callable[..., None] | None = None, attempt: int = 1, **changes: Any
    ) -> tuple[Any, checkpoints.Position]:
        torch.manual_seed(0)
        chosen = decided(**changes)
        model = methods.METHODS[chosen.method].prepare(loading.load(self.base, CPU), chosen)
        attempts = [self.folder / f"attempt-{n}" for n in range(attempt, 0, -1)]

        def report(message: Message) -> None:
            self.told.append(message)
            if on is not None:
                on(model, message)

        run = Run(attempts, self.folder, {"data": "d"}, report)
        return model, train(
            Training(text_generation, model, self.rows, self.validation, chosen, self.rates),
            run,
            self.budget,
            self.stages,
        )

    def heard(self, kind: type[M]) -> list[M]:
        return [m for m in self.told if isinstance(m, kind)]


@pytest.fixture
def scene(tuned_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "RECORD_SECONDS", 0.0)
    return Scene(tuned_base, tmp_path)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in methods.trained_tensors(model).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-2), ("full", 5e-3)])
def test_training_learns_a_new_mapping(scene: Scene, method: str, rate: float) -> None:
    model, at = scene.train(method=method, learning_rate=rate, max_epochs=10, batch_size=2)
    losses = [s.training_loss for s in scene.heard(Stepped)]
    assert at.step == 50 and losses[-1] < losses[0] / 10
    assert loop.mean_loss(loop.evaluate(text_generation, model, scene.rows)) < 0.3


def test_with_lora_the_base_stays_as_it_was_to_the_bit(scene: Scene) -> None:
    before = loading.load(scene.base, CPU).state_dict()
    model, _ = scene.train()
    after = {
        n.replace(".base_layer", ""): t
        for n, t in model.get_base_model().state_dict().items()
        if "lora_" not in n
    }
    assert all(torch.equal(after[n], t) for n, t in before.items())


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("step", [1, 3, 4, 7, 9])
def test_a_run_that_is_killed_and_resumed_gives_the_same_bits(
    scene: Scene, tmp_path: Path, method: str, step: int
) -> None:
    whole, _ = scene.train(method=method)
    other = Scene(scene.base, tmp_path / "other")

    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == step:
            raise Killed

    with pytest.raises(Killed):
        other.train(kill, method=method)
    torch.manual_seed(99)
    resumed, at = other.train(attempt=2, method=method)
    assert at.step == 9 and other.heard(Started)[-1].step == (step - 1) // 3 * 3, (
        "from the end of the last whole epoch"
    )
    assert same(weights(whole), weights(resumed))


def limited_memory(
    monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception, from_call: int = 0
) -> list[int]:
    """From its n-th pass on, the machine can hold `tokens` in one pass; the passes' sizes."""
    real, sizes = text_generation.token_losses, []

    def token_losses(model: Any, batch: Any) -> torch.Tensor:
        sizes.append(batch.inputs["input_ids"].numel())
        if sizes[-1] > tokens and len(sizes) > from_call:
            raise error
        return real(model, batch)

    monkeypatch.setattr(text_generation, "token_losses", token_losses)
    return sizes


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda e: type(e).__name__)
def test_where_memory_runs_out_the_same_step_is_done_in_smaller_pieces(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole, _ = scene.train()
    monkeypatch.setattr(loop, "LEAST_MICRO_TOKENS", 1)
    longest = max(len(r.encoded.ids) for r in scene.rows)
    other = Scene(scene.base, tmp_path / "other")
    with monkeypatch.context() as patch:
        sizes = limited_memory(patch, longest + 2, error, from_call=4)
        small, at = other.train()
    assert at.step == 9 and at.micro_tokens < 64 and max(sizes[30:]) <= longest + 2
    assert [s.step for s in other.heard(Stepped)] == list(range(1, 10)), (
        "no step is lost and none done twice"
    )
    assert any("did not fit into memory" in w.message for w in other.heard(Warned))
    for name, w in weights(whole).items():
        torch.testing.assert_close(weights(small)[name], w, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "first_small", [4, 5]
)  # the pass after the checkpoint of step 3, and one in the middle of the epoch
def test_a_resumed_run_cuts_its_steps_as_it_did_before_the_kill(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_small: int
) -> None:
    monkeypatch.setattr(loop, "LEAST_MICRO_TOKENS", 1)
    longest = max(len(r.encoded.ids) for r in scene.rows)

    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == 5:
            raise Killed

    def run(
        where: Scene, on: Any = None, attempt: int = 1, tokens: int = longest
    ) -> tuple[Any, checkpoints.Position]:
        with monkeypatch.context() as patch:
            limited_memory(
                patch, tokens, MemoryError(), from_call=first_small if attempt == 1 else 0
            )
            return where.train(on, attempt)

    whole, at = run(scene)
    other = Scene(scene.base, tmp_path / "other")
    with pytest.raises(Killed):
        run(other, kill)
    resumed, after = run(
        other, attempt=2, tokens=10**9
    )  # with memory enough it still goes on in small pieces
    assert after.micro_tokens == at.micro_tokens < loop.MICRO_TOKENS and same(
        weights(whole), weights(resumed)
    )


def test_where_not_even_one_row_fits_the_job_fails_with_the_row(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited_memory(monkeypatch, 3, MemoryError())
    with pytest.raises(OutOfMemory, match=r"row there, \d+, has \d+ tokens.*Shorten"):
        scene.train()


def test_an_error_that_is_not_about_memory_is_not_taken_for_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited_memory(monkeypatch, 3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        scene.train()


def test_a_resume_that_forgets_the_optimizer_gives_other_bits(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = scene.train()
    other = Scene(scene.base, tmp_path / "other")

    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == 7:
            raise Killed

    with pytest.raises(Killed):
        other.train(kill)

    monkeypatch.setattr(checkpoints, "restore_optimizer", lambda *a: None)
    resumed, _ = other.train(attempt=2)
    assert not same(weights(whole), weights(resumed))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(scene: Scene) -> None:
    whole, _ = scene.train()
    newest = scene.folder / "attempt-1" / "step-00000009" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    resumed, _ = scene.train(attempt=2)
    assert scene.heard(Started)[-1].step == 6 and same(weights(whole), weights(resumed))


def contradicted(scene: Scene) -> Scene:
    """Validation that gets worse in the end: the same prompts, each with its neighbour's answer."""
    ids = [r.encoded.ids for r in scene.rows]
    swapped = [
        replace(
            r,
            encoded=replace(
                r.encoded, ids=[*r.encoded.ids[: r.encoded.n_prompt], *o[-r.encoded.n_completion :]]
            ),
        )
        for r, o in zip(scene.rows, ids[1:] + ids[:1], strict=True)
    ]
    scene.validation = swapped[:3]
    return scene


@pytest.mark.parametrize("patience", [1, 2])
def test_training_stops_when_validation_has_not_improved_for_so_many_epochs(
    scene: Scene, patience: int
) -> None:
    model, at = contradicted(scene).train(
        max_epochs=10, learning_rate=2e-2, patience=patience, batch_size=2
    )
    per_epoch = -(-len(scene.rows) // 2)
    assert (
        at.stopped_by == "patience"
        and at.step == at.best_step + patience * per_epoch < 10 * per_epoch
    )
    assert loop.mean_loss(loop.evaluate(text_generation, model, scene.validation)) == pytest.approx(
        at.best_loss
    ), "the best epoch's weights"


def test_without_patience_training_goes_on_to_the_last_epoch(scene: Scene) -> None:
    _, at = contradicted(scene).train(max_epochs=10, learning_rate=2e-2, patience=0, batch_size=2)
    assert (at.stopped_by, at.step) == (
        "max_epochs",
        10 * -(-len(scene.rows) // 2),
    ) and at.best_step < at.step


def test_a_run_that_was_stopped_by_patience_stays_stopped_when_resumed(scene: Scene) -> None:
    whole, at = contradicted(scene).train(
        max_epochs=10, learning_rate=2e-2, patience=1, batch_size=2
    )
    resumed, again = scene.train(
        attempt=2, max_epochs=10, learning_rate=2e-2, patience=1, batch_size=2
    )
    assert again == at and same(weights(whole), weights(resumed))


def tokens_of(scene: Scene) -> int:
    return sum(len(r.encoded.ids) for r in scene.rows)


def test_a_whole_run_has_trained_every_token_once_an_epoch(scene: Scene) -> None:
    _, at = scene.train(max_epochs=2)
    assert (
        at.trained_tokens == 2 * tokens_of(scene)
        and scene.heard(Stepped)[-1].trained_tokens == at.trained_tokens
    )


@pytest.mark.parametrize("share", [0.35, 1.0, 1.7])
def test_a_token_budget_is_never_exceeded_and_the_rate_falls_to_its_end(
    scene: Scene, share: float
) -> None:
    scene.budget = Budget(tokens=int(share * tokens_of(scene)), tokens_option="budget_credits")
    model, at = scene.train(max_epochs=3, batch_size=2, warmup=0.0)
    longest = max(len(r.encoded.ids) for r in scene.rows)
    assert scene.budget.tokens - 2 * longest < at.trained_tokens <= scene.budget.tokens
    assert (
        at.stopped_by == "budget_credits"
        and at.best_step > 0
        and scene.heard(Started)[0].total_steps == at.step
    )
    rates = [s.learning_rate for s in scene.heard(Stepped)]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(
        rates[0] / max(1, at.step - 1)
    )
    again, resumed = scene.train(attempt=2, max_epochs=3, batch_size=2, warmup=0.0)
    assert resumed == at and same(weights(model), weights(again)), (
        "a resumed run does not spend more"
    )


def test_a_budget_of_time_stops_at_a_step_with_a_usable_model(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.budget = Budget(seconds=25.0)
    clock = iter(range(0, 100_000, 1))  # an injected clock: every look is a second later
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    model, at = scene.train(max_epochs=10, batch_size=2)
    assert at.stopped_by == "budget_minutes" and 0 < at.step < 50 and at.best_step > 0
    assert loop.mean_loss(loop.evaluate(text_generation, model, scene.validation)) == pytest.approx(
        at.best_loss
    )


def test_a_checkpoint_of_other_data_or_options_is_refused_by_name(scene: Scene) -> None:
    scene.train()
    with pytest.raises(CheckpointOfAnother, match="another data than the job has now"):
        checkpoints.newest([scene.folder / "attempt-1"], {"data": "other"})
    assert checkpoints.newest([scene.folder / "attempt-1"], {"data": "d"}) is not None


def test_a_run_resumed_under_other_versions_or_threads_goes_on_and_says_that_it_is_not_exact(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == 5:
            raise Killed

    with pytest.raises(Killed):
        scene.train(kill)
    scene.told.clear()
    here = checkpoints.environment(torch.device("cpu"))
    monkeypatch.setattr(
        checkpoints, "environment", lambda device: {**here, "threads": 7, "torch": "9.9"}
    )
    _, at = scene.train(attempt=2)
    [warning] = [w.message for w in scene.heard(Warned)]
    assert (
        at.step == 9 and not at.exact and "another torch" in warning and "threads 1 -> 7" in warning
    )
    monkeypatch.setattr(checkpoints, "environment", lambda device: here)
    assert not scene.train(attempt=3)[1].exact, "what was not exact once is not exact"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_that_is_told(
    scene: Scene,
) -> None:
    whole, _ = scene.train()
    folders = sorted((scene.folder / "attempt-1").glob("step-*"))
    weights_file = folders[-1] / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    scene.told.clear()
    again, at = scene.train(attempt=2)
    [warning] = [w.message for w in scene.heard(Warned)]
    assert "passed over" in warning and folders[-1].name in warning
    assert at.step == 9 and same(weights(whole), weights(again))


def test_a_damaged_best_checkpoint_is_not_loaded_either(scene: Scene) -> None:
    encoder = Encoder(PromptTemplate.of_base(scene.base), scene.base)
    scene.validation = [
        Example(Row(i, "", "", ""), encoder.row([{"role": "user", "content": f"say {w}"}], w))
        for i, w in enumerate(WORDS)
    ]

    def damage(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == 9:  # patience ends it here
            for file in (scene.folder / "attempt-1").glob("step-*/model.safetensors"):
                file.write_bytes(file.read_bytes()[:-1])

    model, at = scene.train(damage, learning_rate=5e-2, max_epochs=4)
    assert "are gone" in scene.heard(Warned)[-1].message and at.best_step == at.step == 9
    assert loop.mean_loss(loop.evaluate(text_generation, model, scene.validation)) == pytest.approx(
        at.best_loss, rel=1e-5
    )


def test_the_best_epoch_is_what_remains(scene: Scene) -> None:
    """The validation rows ask for what the base knows already, so every epoch on the new mapping
    makes them worse."""
    encoder = Encoder(PromptTemplate.of_base(scene.base), scene.base)
    known = [
        Example(Row(i, "", "", ""), encoder.row([{"role": "user", "content": f"say {w}"}], w))
        for i, w in enumerate(WORDS)
    ]
    scene.validation = known
    model, at = scene.train(learning_rate=5e-2, max_epochs=4)
    losses = [s.validation_loss for s in scene.heard(Stepped) if s.validation_loss is not None]
    assert at.best_loss == min(losses) < losses[-1] and at.best_step < at.step
    assert loop.mean_loss(loop.evaluate(text_generation, model, known)) == pytest.approx(
        at.best_loss, rel=1e-5
    )


@pytest.mark.parametrize("step", [None, 7, 8])
def test_the_training_loss_is_the_mean_of_the_last_epoch_also_after_a_kill(
    scene: Scene, step: int | None
) -> None:
    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == step:
            raise Killed

    if step is not None:
        with pytest.raises(Killed):
            scene.train(kill)
        scene.told.clear()
    _, at = scene.train(attempt=2)
    rows = [r for f in scene.heard(RowLosses) if f.part == "train" and f.epoch == 3 for r in f.rows]
    assert len(rows) == 10 and at.training_loss == pytest.approx(
        sum(v * n for _, v, n in rows) / sum(n for _, _, n in rows), rel=1e-6
    )


def test_every_row_has_its_loss_in_every_epoch(scene: Scene) -> None:
    scene.train()
    for epoch in (1, 2, 3):
        rows = [
            r
            for f in scene.heard(RowLosses)
            if f.part == "train" and f.epoch == epoch
            for r in f.rows
        ]
        assert sorted(r[0] for r in rows) == list(range(1, 11)) and all(
            v > 0 and n > 0 for _, v, n in rows
        )


def poison(model: Any, message: Message) -> None:
    if isinstance(message, Stepped) and message.step == 4:
        model.get_input_embeddings().weight.data[5] = float("nan")


def test_a_step_that_is_no_number_changes_nothing_and_is_told(scene: Scene) -> None:
    before: dict[str, torch.Tensor] = {}

    def once(model: Any, message: Message) -> None:
        embedding = model.get_input_embeddings().weight.data
        if isinstance(message, Stepped) and message.step == 4:
            before.update(weights(model), saved=embedding.clone())
            embedding.fill_(float("nan"))
        elif isinstance(message, Warned) and before:
            embedding.copy_(before.pop("saved"))
            assert same(before, weights(model))

    _, at = scene.train(once)
    assert (
        at.step == 9
        and "no finite number" in scene.heard(Warned)[0].message
        and len(scene.heard(Warned)) == 1
    )


def test_five_such_steps_go_back_once_at_half_the_rate_and_then_fail_with_the_rows(
    scene: Scene,
) -> None:
    with pytest.raises(NonFiniteLoss, match=r"Rows of the last batch: \d+"):
        scene.train(poison, max_epochs=10)
    messages = [w.message for w in scene.heard(Warned)]
    assert (
        sum("half the learning rate" in m for m in messages) == 1
        and len(messages) == 2 * loop.NON_FINITE_LIMIT + 1
    )


def test_the_rate_rises_then_falls_to_nearly_nothing() -> None:
    rates = [loop.schedule(s, 100, 0.1) for s in range(100)]
    assert (
        rates[9] == 1.0
        and rates[:10] == sorted(rates[:10])
        and rates[10:] == sorted(rates[10:], reverse=True)
    )
    assert 0 < rates[-1] < 0.02
    assert loop.schedule(0, 1, 0.9) == 1.0


def test_old_checkpoints_are_collected_and_the_best_is_kept(scene: Scene) -> None:
    scene.train(max_epochs=6, learning_rate=1e-3)
    at = checkpoints.newest([scene.folder / "attempt-1"], {"data": "d"})
    kept = sorted(p.name for p in (scene.folder / "attempt-1").glob("step-*"))
    assert (
        at is not None
        and len(kept) <= checkpoints.KEEP + 1
        and f"step-{at.position.best_step:08d}" in kept
    )
    assert replace(at.position) == at.position


@pytest.mark.parametrize(("rate", "is_told"), [(1e-2, False), (1e-7, False), (3.0, True)])
def test_a_run_that_diverges_says_so_with_the_rate_to_try(
    scene: Scene, rate: float, is_told: bool
) -> None:
    _, at = scene.train(method="full", max_epochs=6, learning_rate=rate, max_grad_norm=1e6)
    told = loop.diverged(at, rate, 5e-4)
    assert bool(told) is is_told, (at.first_loss, at.training_loss)
    if is_told:
        assert (
            f"rose from {at.first_loss:.3g} to {at.training_loss:.3g}" in told
            and "try 0.0005" in told
        )
    assert loop.diverged(at, rate, 1.0).count(f"try {rate / 10:g}") == is_told, (
        "a tenth, where the rule's rate is higher"
    )


def test_a_resumed_run_remembers_the_loss_it_began_with(scene: Scene) -> None:
    _, whole = scene.train(max_epochs=2)
    first = whole.first_loss
    (scene.folder / "attempt-2").mkdir()
    _, again = scene.train(max_epochs=4, attempt=2)
    assert first is not None and again.first_loss == first


# ---------------------------------------------------------------- stages

UPPER = Stage(2, 1e-2, only="layers.1")  # the upper layer alone, then all
ALL = Stage(2, 5e-3)


@pytest.mark.parametrize("step", [2, 4, 6, 7, 9, 12])
def test_a_run_of_two_stages_that_is_killed_gives_the_same_bits(
    scene: Scene, tmp_path: Path, step: int
) -> None:
    """Three steps an epoch: the second stage begins after step 6."""
    scene.stages = [UPPER, ALL]
    whole, at = scene.train(batch_size=4)
    assert (at.step, at.stage, at.stage_began, at.stopped_by) == (12, 1, 6, "max_epochs")
    other = Scene(scene.base, tmp_path / "other")
    other.stages = scene.stages

    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == step:
            raise Killed

    with pytest.raises(Killed):
        other.train(kill, batch_size=4)
    torch.manual_seed(99)
    resumed, again = other.train(attempt=2, batch_size=4)
    assert same(weights(whole), weights(resumed)) and again.step == 12


def test_a_stage_moves_its_own_weights_at_a_rate_that_rises_and_falls_anew(scene: Scene) -> None:
    moved: dict[int, set[str]] = {}
    before: dict[str, torch.Tensor] = {}

    def look(model: Any, message: Message) -> None:
        now = {n: p.detach().clone() for n, p in methods.trained_tensors(model).items()}
        if isinstance(message, Stepped):
            moved[message.step] = {n for n in now if not torch.equal(now[n], before[n])}
        if isinstance(message, Stepped | Started):
            before.update(now)

    scene.validation, scene.stages = [], [UPPER, ALL]
    scene.train(look, batch_size=4, warmup=0.4)
    assert all("layers.1" in n for s in range(2, 7) for n in moved[s]) and moved[3]
    assert any("layers.0" in n for n in moved[9]) and any("layers.1" in n for n in moved[9])
    rates = [s.learning_rate for s in scene.heard(Stepped)]
    first, second = rates[:6], rates[6:]
    assert max(first) == UPPER.learning_rate and max(second) == ALL.learning_rate
    assert first.index(max(first)) == second.index(max(second)) > 0, "each has its own schedule"


def test_patience_ends_a_stage_and_a_budget_ends_the_run(scene: Scene) -> None:
    scene.stages = [Stage(5, 1e-9), ALL]  # a rate at which nothing gets better
    _, at = scene.train(batch_size=4, patience=1)
    assert at.stage == 1 and at.stage_began < 15
    other = Scene(scene.base, scene.folder / "other")
    other.stages = [UPPER, ALL]
    other.budget = Budget(tokens=sum(r.size for r in other.rows) * 3)
    _, at = other.train(batch_size=4)
    assert (at.stage, at.step, at.stopped_by) == (1, 9, "budget_tokens")


def test_tensors_learn_at_their_multiples_of_the_rate_and_a_resumed_run_gives_the_same_bits(
    scene: Scene,
) -> None:
    before = dict(loading.load(scene.base, CPU).named_parameters())
    fast, slow = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"
    scene.rates = {fast: 10.0, slow: 0.1}
    one = {"max_epochs": 1, "batch_size": len(scene.rows), "warmup": 0.0, "learning_rate": 1e-4}
    first, _ = scene.train(method="full", **one)
    moved = {n: float((p - before[n]).abs().max()) for n, p in first.named_parameters()}
    # AdamW's first step is the rate itself wherever the gradient is not nothing
    plain = "model.layers.0.mlp.down_proj.weight"
    assert moved[fast] / moved[plain] == pytest.approx(10, rel=0.01)
    assert moved[slow] / moved[plain] == pytest.approx(0.1, rel=0.01)

    class Killed(Exception):
        pass

    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == 3:
            raise Killed

    scene.folder = scene.folder / "whole"
    whole, _ = scene.train(method="full", max_epochs=2)
    scene.folder = scene.folder.parent / "killed"
    with pytest.raises(Killed):
        scene.train(kill, method="full", max_epochs=2)
    resumed, _ = scene.train(method="full", attempt=2, max_epochs=2)
    for (n, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), n


def test_the_order_of_rows_has_a_seed_of_its_own(scene: Scene) -> None:
    def rows(**options: Any) -> list[float]:
        scene.told.clear()
        scene.folder = scene.folder / "next"
        scene.train(max_epochs=1, learning_rate=1e-9, **options)
        return [r[0] for f in scene.heard(RowLosses) if f.part == "train" for r in f.rows]

    assert rows(seed=1) == rows(seed=2) != rows(seed=1, order_seed=3)


def test_checkpoints_of_another_release_are_passed_over_and_do_not_outlive_the_new_ones(
    scene: Scene,
) -> None:
    """They have higher steps than a run that begins anew, and would count as the newest."""
    scene.validation = []  # no checkpoint is kept for being the best
    whole, _ = scene.train()
    for file in (scene.folder / "attempt-1").glob("step-*/state.json"):
        state = json.loads(file.read_text())
        del state["format"]
        shutil.rmtree(target := file.parents[1] / f"step-{state['step'] + 100:08d}", True)
        staged = shutil.copytree(file.parent, scene.folder / "old", ignore=_manifest)
        durable.write_json(staged / "state.json", state)
        durable.publish(staged, target)
        durable.remove(file.parent)
    scene.told.clear()

    def kill(model: Any, message: Message) -> None:
        if isinstance(message, Stepped) and message.step == 7:
            raise Killed

    with pytest.raises(Killed):
        scene.train(kill, attempt=2)
    assert scene.heard(Started)[-1].step == 0
    assert any("another release" in w.message for w in scene.heard(Warned))
    resumed, _ = scene.train(attempt=3)
    assert scene.heard(Started)[-1].step == 6 and same(weights(whole), weights(resumed))


def _manifest(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if n == durable.MANIFEST]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_part_of_a_model_is_training_in_each_step_of_a_new_process(
    scene: Scene, method: str
) -> None:
    """Base models are loaded to answer, in which mode they drop nothing; a wrapper says nothing of
    what it holds."""
    seen: list[bool] = []

    def look(model: Any, message: Message) -> None:
        if isinstance(message, Started):
            layer = methods.decoder_of(model).model.layers[0].self_attn
            layer.register_forward_hook(lambda m, *_: seen.append(m.training))

    scene.validation = []
    scene.train(look, method=method, max_epochs=1)
    assert seen and all(seen)

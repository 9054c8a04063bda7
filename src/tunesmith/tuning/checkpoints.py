"""Checkpoints: everything a run needs to go on to the same bits, published whole under
attempt-<n>/step-<s>/.

Trained tensors in their own type, AdamW's moments and step counts, the random state, the position.
The order of rows is a function of (seed, epoch), so one integer stands for it. A damaged checkpoint
is passed over for the one before.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith import durable
from tunesmith.errors import CheckpointOfAnother, DamagedFiles
from tunesmith.models.layout import MICRO_TOKENS

KEEP = 2  # newest checkpoints kept beside the best
FORMAT = 2  # of the files in a checkpoint; the optimizer's state was numbered in the first


@dataclass(frozen=True)
class Position:
    """Where a run stands; a checkpoint's state.json."""

    step: int = 0
    """Optimizer steps done."""
    rate_scale: float = 1.0
    """Halved once, after too many non-finite steps."""
    best_step: int = -1
    best_loss: float | None = None
    epoch_nats: float = 0.0
    """Sum of the token losses of the epoch so far."""
    epoch_tokens: int = 0
    first_loss: float | None = None
    """Loss of the first step's rows before anything was learnt: what a run that diverges is told
    by."""
    training_loss: float | None = None
    """Mean token loss of the last whole epoch, each row as it was when its turn came."""
    validation_loss: float | None = None
    trained_tokens: int = 0
    """Tokens of the rows of all steps done, padding apart."""
    seconds: float = 0.0
    """Time spent training, over all attempts up to this checkpoint."""
    stage: int = 0
    """Of the strategy, from 0."""
    stage_began: int = 0
    """The step after which it began."""
    stopped_by: str = ""
    """Set on the last position alone: max_epochs, patience or a budget."""
    micro_tokens: int = MICRO_TOKENS
    """Tokens that go through the model at once; halved where memory ran out."""
    bound_to: dict[str, Any] = field(default_factory=dict)
    """Data, decided options, base and template, by their digests: a checkpoint of others is
    refused."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions, threads and device: under others a run goes on, and `exact` is false from there."""
    exact: bool = True
    """Whether all of it so far ran in one environment, so that it ends with the weights of an
    undisturbed run, to the bit."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    position: Position


def environment(device: torch.device) -> dict[str, Any]:
    """What the last bits of a sum may depend on."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {**versions, "threads": torch.get_num_threads(), "device": device.type}


def save(
    folder: Path,
    home: Path,
    position: Position,
    trained: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    again: bool = False,
) -> Checkpoint:
    """`again`: in place of the one of this step, because how its steps are cut has changed."""
    tensors = {n: p.detach().contiguous() for n, p in trained.items()}
    durable.check_space(folder, sum(t.numel() * t.element_size() for t in tensors.values()) * 3)
    final = folder / f"step-{position.step:08d}"
    with durable.staging(home) as outer:
        staged = outer / "checkpoint"
        staged.mkdir()
        save_file(tensors, staged / "model.safetensors")
        save_file(
            _optimizer_tensors(optimizer, trained) | _random_states(),
            staged / "optimizer.safetensors",
        )
        durable.write_json(staged / "state.json", {"format": FORMAT, **asdict(position)})
        if final.exists() and again:
            durable.remove(final)
        if final.exists():  # the same step was saved already; what it holds is the same
            return Checkpoint(final, position)
        durable.publish(staged, final)
    return Checkpoint(final, position)


def newest(
    attempts: list[Path],
    bound_to: dict[str, Any],
    damaged: Callable[[DamagedFiles], None] = lambda e: None,
) -> Checkpoint | None:
    """The furthest whole checkpoint of any attempt of this job; `damaged` is told of each that was
    passed over.

    CheckpointOfAnother where it was made of other rows, options, base or template.
    """
    found = sorted(
        (c for a in attempts for c in a.glob("step-*")), key=lambda c: c.name, reverse=True
    )
    for folder in found:
        try:
            durable.verify(folder)
            state = json.loads((folder / "state.json").read_text())
            if state.pop("format", 1) != FORMAT:
                raise DamagedFiles(folder=str(folder), reason="another release wrote it")
            position = Position(**state)
        except DamagedFiles as e:
            damaged(e)
            continue
        if position.bound_to != bound_to:
            what = sorted(
                k
                for k in bound_to.keys() | position.bound_to.keys()
                if bound_to.get(k) != position.bound_to.get(k)
            )
            raise CheckpointOfAnother(folder=str(folder), what=" and ".join(what))
        return Checkpoint(folder, position)
    return None


def restore_optimizer(
    checkpoint: Checkpoint, trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """The random state, and the optimizer's state of the tensors that it trains."""
    tensors = load_file(checkpoint.folder / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("rng"))
    for device in range(torch.cuda.device_count()):
        torch.cuda.set_rng_state(tensors.pop(f"rng-cuda-{device}"), device)
    places = {name: i for i, name in enumerate(trained)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, what = key.rpartition(".")
        if name in places:
            state.setdefault(places[name], {})[what] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_weights(folder: Path, trained: dict[str, torch.nn.Parameter]) -> None:
    """DamagedFiles unless the folder is as it was published."""
    durable.verify(folder)
    tensors = load_file(folder / "model.safetensors")
    if tensors.keys() != trained.keys():
        raise DamagedFiles(
            folder=str(folder), reason="it holds other tensors than this model trains"
        )
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(tensors[name])


def collect(attempts: list[Path], best_step: int) -> None:
    """Remove checkpoints that nothing needs: all but the newest few and the best."""
    found = sorted(
        (c for a in attempts for c in a.glob("step-*")), key=lambda c: c.name, reverse=True
    )
    for folder in found[KEEP:]:
        if folder.name != f"step-{best_step:08d}":
            durable.remove(folder)


def remove_all(attempts: list[Path]) -> None:
    for folder in (c for a in attempts for c in a.glob("step-*")):
        durable.remove(folder)


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, trained: dict[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """By the name of the tensor that each belongs to, since another stage numbers them anew."""
    names = {id(p): n for n, p in trained.items()}
    return {
        f"{names[id(p)]}.{what}": value.contiguous()
        for p, state in optimizer.state.items()
        for what, value in state.items()
    }


def _random_states() -> dict[str, torch.Tensor]:
    """Of the processor and of each GPU. Python's and NumPy's generators decide nothing in a run."""
    return {"rng": torch.get_rng_state()} | {
        f"rng-cuda-{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())
    }

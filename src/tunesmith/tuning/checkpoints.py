"""Checkpoints: everything a run needs to go on to the same bits, published whole under attempt-<n>/step-<s>/.

Trained tensors in their own type, AdamW's moments and step counts, the random state, the position. The order of rows is a
function of (seed, epoch), so one integer stands for it. A damaged checkpoint is passed over for the one before.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith import durable
from tunesmith.errors import DamagedFiles
from tunesmith.models.layout import MICRO_TOKENS

KEEP = 2  # newest checkpoints kept beside the best


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
    training_loss: float | None = None
    """Mean token loss of the last whole epoch, each row as it was when its turn came."""
    validation_loss: float | None = None
    trained_tokens: int = 0
    """Tokens of the rows of all steps done, padding apart."""
    seconds: float = 0.0
    """Time spent training, over all attempts up to this checkpoint."""
    stopped_by: str = ""
    """Set on the last position alone: max_epochs, patience or a budget."""
    micro_tokens: int = MICRO_TOKENS
    """Tokens that go through the model at once; halved where memory ran out."""
    bound_to: dict[str, Any] = field(default_factory=dict)
    """Digest of the data and the decided options: a checkpoint of other data or options is not resumed."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    position: Position


def save(
    folder: Path, home: Path, position: Position, trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer,
    again: bool = False,
) -> Checkpoint:  # fmt: skip
    """`again`: in place of the one of this step, because how its steps are cut has changed."""
    tensors = {n: p.detach().contiguous() for n, p in trained.items()}
    durable.check_space(folder, sum(t.numel() * t.element_size() for t in tensors.values()) * 3)
    final = folder / f"step-{position.step:08d}"
    with durable.staging(home) as outer:
        staged = outer / "checkpoint"
        staged.mkdir()
        save_file(tensors, staged / "model.safetensors")
        save_file(_optimizer_tensors(optimizer) | {"rng": torch.get_rng_state()}, staged / "optimizer.safetensors")
        durable.write_json(staged / "state.json", asdict(position))
        if final.exists() and again:
            durable.remove(final)
        if final.exists():  # the same step was saved already; what it holds is the same
            return Checkpoint(final, position)
        durable.publish(staged, final)
    return Checkpoint(final, position)


def newest(attempts: list[Path], bound_to: dict[str, Any]) -> Checkpoint | None:
    """The furthest whole checkpoint of any attempt of this job."""
    found = sorted((c for a in attempts for c in a.glob("step-*")), key=lambda c: c.name, reverse=True)
    for folder in found:
        try:
            durable.verify(folder)
            position = Position(**json.loads((folder / "state.json").read_text()))
        except DamagedFiles:
            continue
        if position.bound_to == bound_to:
            return Checkpoint(folder, position)
    return None


def restore(checkpoint: Checkpoint, trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Position:
    load_weights(checkpoint.folder, trained)
    tensors = load_file(checkpoint.folder / "optimizer.safetensors")
    torch.set_rng_state(tensors.pop("rng"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return checkpoint.position


def load_weights(folder: Path, trained: dict[str, torch.nn.Parameter]) -> None:
    tensors = load_file(folder / "model.safetensors")
    if tensors.keys() != trained.keys():
        raise DamagedFiles(folder=str(folder), reason="it holds other tensors than this model trains")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(tensors[name])


def collect(attempts: list[Path], best_step: int) -> None:
    """Remove checkpoints that nothing needs: all but the newest few and the best."""
    found = sorted((c for a in attempts for c in a.glob("step-*")), key=lambda c: c.name, reverse=True)
    for folder in found[KEEP:]:
        if folder.name != f"step-{best_step:08d}":
            durable.remove(folder)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{i}.{k}": v.contiguous() for i, s in states.items() for k, v in s.items()}

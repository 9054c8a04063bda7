"""The task `causal_lm`: load a base, put rows into tensors, and the loss of every supervised token.

B rows, T positions, K kept positions, N supervised tokens, V vocabulary.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tunesmith import safe_files
from tunesmith.catalog import ModelSpec
from tunesmith.data.template import Encoded
from tunesmith.errors import DamagedFiles, InvalidSetting
from tunesmith.models import head, packed, quantized, trim
from tunesmith.models.layout import micro_batches
from tunesmith.models.methods import Model

transformers_logging.disable_progress_bar()


def device_of(setting: str) -> torch.device:
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if setting.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidSetting(
            name="TUNESMITH_DEVICE",
            value=setting,
            allowed="torch finds no GPU here, so it is auto or cpu",
        )
    return torch.device(setting)


def load(folder: Path, device: torch.device) -> PreTrainedModel:
    """A base or a whole tuned model: safetensors only, no code of its own, every weight present;
    float32, on a GPU the file's own type.

    UnsafeBaseModel or DamagedFiles where it is none of that; whatever the library raises over a
    config of a stranger is the second.
    """
    safe_files.check_model(folder)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as e:
        raise DamagedFiles(folder=str(folder), reason=f"{type(e).__name__}: {e}") from None
    lacking = sorted(found["missing_keys"]) + [str(k[0]) for k in found["mismatched_keys"]]
    if lacking:  # the library would fill them with random numbers and only warn
        raise DamagedFiles(
            folder=str(folder),
            reason=f"weights are missing or of another shape: {', '.join(lacking[:5])} "
            f"({len(lacking)})",
        )
    return _ready(model, device)


def load_base(spec: ModelSpec, device: torch.device, precision: str = "full") -> PreTrainedModel:
    """The weights of a catalogue entry or folder; for a control the same random ones at every call.

    `precision`: full, or bfloat16 or nf4 for weights that stay frozen (the option of that name).
    """
    if spec.scratch_of:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.from_pretrained(spec.folder, local_files_only=True)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model = _ready(model, device)
    else:
        model = load(Path(spec.folder), device)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    elif precision == "nf4":
        quantized.to_nf4(model)
    return model


def _ready(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    model.config.use_cache = False
    model = model.to(device).eval()
    packed.enable(model)
    trim.enable(model)
    return model


@dataclass(frozen=True)
class Batch:
    """Rows for one pass, packed where the model can take that, else padded on the right. The layout
    decides nothing else."""

    inputs: Mapping[str, Any]
    """What the model's forward is given."""
    keep_K: Tensor
    """Positions whose next token is supervised in any row: the head runs only there."""
    at_N: Tensor
    """Of each supervised token, the place of its logits among the kept ones, batch and position
    flattened."""
    targets_N: Tensor
    row_N: Tensor
    """Which of the rows a supervised token belongs to; a row's tokens stand in order."""


def groups(
    rows: Sequence[Encoded], model: Model, max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Indices of rows that go through the model together: at most `max_tokens` with padding, or
    distinct ones where they are packed."""
    ids = [r.ids for r in rows]
    if packed.can_pack(model, max(map(len, ids), default=0)):
        return packed.groups(ids, max_tokens, max_rows)
    return micro_batches([len(i) for i in ids], max_tokens, max_rows)


def collate(rows: Sequence[Encoded], model: Model) -> Batch:
    device = next(model.parameters()).device
    if packed.can_pack(model, max(len(r.ids) for r in rows)):
        return _packed(rows, device)
    B, T = len(rows), max(len(r.ids) for r in rows)
    ids = torch.zeros(B, T, dtype=torch.long)
    mask = torch.zeros(B, T, dtype=torch.long)
    supervised = torch.zeros(B, T, dtype=torch.bool)
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids[b, :n] = torch.tensor(row.ids)
        mask[b, :n] = 1
        supervised[b, torch.tensor(row.learnt, dtype=torch.long) - 1] = (
            True  # the position before each learnt token predicts it
        )
    keep = supervised.any(0).nonzero().squeeze(1)
    b_N, k_N = supervised[:, keep].nonzero(as_tuple=True)
    targets, at = ids[b_N, keep[k_N] + 1], b_N * len(keep) + k_N
    keep, at, targets, b_N = (t.to(device) for t in (keep, at, targets, b_N))
    return Batch(
        {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, keep, at, targets, b_N
    )


def _packed(rows: Sequence[Encoded], device: torch.device) -> Batch:
    made = packed.pack([r.ids for r in rows])
    before = [places[i - 1] for places, r in zip(made.places, rows, strict=True) for i in r.learnt]
    keep, at = torch.unique(torch.tensor(before, dtype=torch.long), return_inverse=True)
    targets = torch.tensor([r.ids[i] for r in rows for i in r.learnt], dtype=torch.long)
    row_N = torch.tensor([b for b, r in enumerate(rows) for _ in range(r.n_learnt)])
    keep, at, targets, row_N = (t.to(device) for t in (keep, at, targets, row_N))
    return Batch(
        packed.inputs(made.ids_T, made.positions_T, made.layout, device), keep, at, targets, row_N
    )


def supervised_logits(model: Model, batch: Batch) -> Tensor:
    """The logits that predict each supervised token, (N, V)."""
    return logits_at(model, batch.keep_K, **batch.inputs, use_cache=False).flatten(0, 1)[batch.at_N]


def token_losses(model: Model, batch: Batch) -> Tensor:
    """Cross-entropy of each supervised token, (N,), in nats; not averaged. Where they are many the
    head runs in chunks."""
    decoder = _decoder(model)
    are_many = (
        len(batch.targets_N) * decoder.config.get_text_config().vocab_size > head.CHUNK_LOGITS
    )
    if are_many and (plain := head.plain(decoder)) is not None:
        with trim.only(batch.keep_K):
            hidden_BTD = decoder.base_model(**batch.inputs, use_cache=False).last_hidden_state
        return head.losses(
            hidden_BTD[:, batch.keep_K].flatten(0, 1)[batch.at_N], plain, batch.targets_N
        )
    logits_NV = supervised_logits(model, batch)
    if logits_NV.dtype in (torch.float16, torch.bfloat16):
        logits_NV = logits_NV.float()
    return F.cross_entropy(logits_NV, batch.targets_N, reduction="none")


def logits_at(model: Model, keep_K: Tensor, **inputs: Any) -> Tensor:
    """Logits at the positions `keep_K` alone, (B, K, V): a head over every position would cost most
    of the memory."""
    with trim.only(keep_K):
        if "logits_to_keep" in inspect.signature(_decoder(model).forward).parameters:
            kept: Tensor = model(**inputs, logits_to_keep=keep_K).logits
            return kept
        every: Tensor = model(**inputs).logits
    return every[:, keep_K]


def cache_word(model: Model) -> str:
    """What the model's forward calls its keys and values."""
    return (
        "cache"
        if "cache" in inspect.signature(_decoder(model).forward).parameters
        else "past_key_values"
    )


def _decoder(model: Model) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model

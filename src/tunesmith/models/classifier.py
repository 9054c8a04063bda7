"""A base with a head that gives labels: loaded safely, with as many outputs as there are labels.

The head is that of transformers' own class for sequence classification, so that what is saved loads
there; its pooling is that class's too. The head is new, drawn by torch's random numbers as they
stand, unless the folder holds one of these labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from tunesmith import safe_files
from tunesmith.data.labels import Labels, labels_of_head
from tunesmith.errors import DamagedFiles
from tunesmith.models import features, head, layers, packed_texts
from tunesmith.models.head import KIND, last_layer
from tunesmith.models.layout import MICRO_TOKENS, micro_batches
from tunesmith.models.methods import decoder_of

DROPOUTS = ("dropout", "pdrop")
HEADS = ("classifier.", "score.")  # what classes call what gives the logits


def load(
    folder: Path,
    device: torch.device,
    labels: Labels,
    tuned: bool = False,
    dropout: float = 0.0,
) -> Any:
    """A model of these labels in float32, on a GPU in the file's own type. `dropout`: for every
    place where its class has one; then texts are padded, since the kernel for packed ones has none.

    `tuned`: every weight stands in the folder, the head's too. Otherwise the head is new.
    DamagedFiles where weights are missing that are not the head's.
    """
    safe_files.check_model(folder)
    config = _config(folder, labels, dropout)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that the head is new is no news
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=not tuned,
            output_loading_info=True,
        )
    except Exception as e:
        raise DamagedFiles(folder=str(folder), reason=f"{type(e).__name__}: {e}") from None
    finally:
        transformers_logging.set_verbosity(before)
    lacking = {*found["missing_keys"], *(str(k[0]) for k in found["mismatched_keys"])}
    new = set() if tuned else {n for n in lacking if _is_new(model, n)}
    if lacking - new:
        names = ", ".join(sorted(lacking - new)[:5])
        reason = f"weights are missing or of another shape: {names} ({len(lacking - new)})"
        raise DamagedFiles(folder=str(folder), reason=reason)
    if not tuned:
        _take_over(model, folder, labels)
    model = model.to(device).eval()
    if not dropout:
        packed_texts.enable(model)
    return model


@torch.no_grad()
def _take_over(model: PreTrainedModel, folder: Path, labels: Labels) -> None:
    """Where the base has a head of its own: the rows of labels that are also learnt begin as they
    are there, and the others anew, whatever stood in their places."""
    old = labels_of_head(safe_files.read_config(folder))
    layer, name = last_layer(model), head.name_of_last_layer(model)
    stored = {n: t for n, t in _stored(folder).items() if n.startswith(f"{name}.")}
    if not stored:
        return
    layer.weight.normal_(0.0, float(getattr(model.config, "initializer_range", 0.02)))
    if layer.bias is not None:
        layer.bias.zero_()
    for row, label in enumerate(labels.names):
        if label in old:
            layer.weight[row] = stored[f"{name}.weight"][old[label]]
            if layer.bias is not None and f"{name}.bias" in stored:
                layer.bias[row] = stored[f"{name}.bias"][old[label]]


def _stored(folder: Path) -> dict[str, Tensor]:
    """Tensors that stand behind the layers are small: those of one or two dimensions and few
    rows."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                if name.startswith(HEADS):
                    found[name] = tensors.get_tensor(name)
    return found


def _config(folder: Path, labels: Labels, dropout: float) -> Any:
    values = safe_files.read_config(folder)
    for name in ("id2label", "label2id", "num_labels", "problem_type"):
        values.pop(name, None)
    dropouts = {
        k: dropout
        for k, v in values.items()
        if any(word in k for word in DROPOUTS) and isinstance(v, float)
    }
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values | dropouts)
    for name, value in config.to_dict().items():  # those that the file leaves to the library
        if any(word in name for word in DROPOUTS) and isinstance(value, float):
            setattr(config, name, dropout)
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: i for i, name in enumerate(labels.names)}
    config.problem_type = KIND[labels.several]
    if config.pad_token_id is None:
        config.pad_token_id = 0
    return config


def _is_new(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor is the head's, or that of a pooler, which some bases are saved without."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


class Text(Protocol):
    """What goes into the model."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def types(self) -> Sequence[int] | None:
        """Which of two texts a token is of; None where there is one."""


def groups(
    model: Any, texts: Sequence[Text], most: int, most_rows: int | None = None
) -> list[list[int]]:
    """Indices of texts that go through the model together, of like length: at most `most` tokens,
    with padding where they are padded (or one text)."""
    lengths = [len(t.ids) for t in texts]
    if not packed_texts.can_pack(model, max(lengths, default=0)):
        return micro_batches(lengths, most, most_rows)
    found: list[list[int]] = []
    used = 0
    for i in sorted(range(len(texts)), key=lambda i: (lengths[i], i)):
        if not found or used + lengths[i] > most or len(found[-1]) == most_rows:
            found.append([])
            used = 0
        found[-1].append(i)
        used += lengths[i]
    return found


def logits(model: Any, texts: Sequence[Text]) -> Tensor:
    """(B, C): texts in one sequence where the model takes them so, equal ones once; else padded."""
    if packed_texts.can_pack(model, max(len(t.ids) for t in texts)):
        keys = [READER.key(t) for t in texts]
        distinct = dict(zip(keys, texts, strict=True))
        found = _together(model, list(distinct), list(distinct.values()))
        if len(distinct) == len(texts):
            return found
        places = {key: i for i, key in enumerate(distinct)}
        return found[torch.tensor([places[key] for key in keys])]
    given: Tensor = model(**padded(model, texts)).logits
    return given


def _together(model: Any, keys: Sequence[features.Key], texts: Sequence[Text]) -> Tensor:
    held = features.held(model)
    known = held.of(keys) if held else None
    if held is None or known is None:
        return packed_texts.logits(model, texts)
    states_SD = torch.cat(known)
    return packed_texts.logits(model, texts, states_SD, None if held.keeps_one else held.below)


class Reader:
    """How texts go through a classifier, for `features`."""

    def key(self, text: Text) -> features.Key:
        return tuple(text.ids), tuple(text.types or ())

    def objection(self, model: Any, texts: Sequence[Text], below: int) -> str:
        if not packed_texts.can_pack(model, max((len(t.ids) for t in texts), default=0)):
            return "its texts are padded, not packed"
        if below and not packed_texts.can_skip(model, below):
            return "its layers give the next one more than a state for each token"
        return ""

    def keeps_one(self, model: Any, below: int) -> bool:
        """Where all layers are frozen, the first token's last state."""
        return below == layers.count(model)

    def groups(self, model: Any, texts: Sequence[Text]) -> list[list[int]]:
        return groups(model, texts, MICRO_TOKENS)

    def states(self, model: Any, texts: Sequence[Text], below: int) -> list[Tensor]:
        one = self.keeps_one(model, below)
        made = packed_texts.states(model, texts, None if one else below)
        return list(torch.split(made, [1 if one else len(t.ids) for t in texts]))


READER = Reader()


@torch.no_grad()
def pooled(model: Any, texts: Sequence[Text]) -> Tensor:
    """What the last layer is given, (B, D): at the last token where the class asks there."""
    kept: list[Tensor] = []
    hook = last_layer(model).register_forward_hook(lambda _, given, __: kept.append(given[0]))
    try:
        logits(model, texts)
    finally:
        hook.remove()
    [given] = kept
    if given.ndim == 2:
        return given
    last_B = torch.tensor([len(t.ids) - 1 for t in texts], device=given.device)
    return given[torch.arange(len(given), device=given.device), last_B]


def padded(model: Any, texts: Sequence[Text]) -> dict[str, Tensor]:
    """What the model's forward is given: padded on the right, by the model's own padding token,
    since some count their places by it."""
    plain = decoder_of(model)
    B, T = len(texts), max(len(t.ids) for t in texts)
    ids = torch.full((B, T), int(plain.config.pad_token_id or 0), dtype=torch.long)
    mask, types = (torch.zeros(B, T, dtype=torch.long) for _ in range(2))
    for b, text in enumerate(texts):
        n = len(text.ids)
        ids[b, :n] = torch.tensor(text.ids)
        mask[b, :n] = 1
        if text.types is not None:
            types[b, :n] = torch.tensor(text.types)
    made = {"input_ids": ids, "attention_mask": mask}
    if _has_types(model):
        made["token_type_ids"] = types
    device = next(model.parameters()).device
    return {name: t.to(device) for name, t in made.items()}


def _has_types(model: Any) -> bool:
    return bool(getattr(decoder_of(model).config, "type_vocab_size", 0) > 1)

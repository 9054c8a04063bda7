"""Methods: how weights may change. Whoever adds one adds a file and a line in METHODS.

This file imports no torch: what a method can do is asked where there is none. Its own module is
imported when it is used, since PEFT takes a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunesmith.catalog import ModelSpec
from tunesmith.options import Decided, Readers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Model: TypeAlias = PreTrainedModel  # or PEFT's wrapper around one, which answers the same calls
else:
    Model = Any


@dataclass(frozen=True)
class Method:
    """What a method leaves and can do, and the module that does it."""

    name: str
    artefact: str
    """What its folder holds: `adapter`, put onto the base, or `whole`, a model in its place."""
    reads: tuple[str, ...]
    """Options that no other method has a use for, unless that names them too."""
    can_pack: bool
    """Rows may go through the model in one packed sequence."""
    can_share: bool
    """Its artefacts may answer in one batch on one base in memory."""
    can_merge: bool
    module: str

    def prepare(self, model: Any, decided: Decided) -> Any:
        """The model with exactly its trained tensors requiring gradients, every part of it as one
        that answers: a new wrapper says that it trains, whatever the mode of what it holds."""
        return self._laid_out(self._do.prepare(model, decided)).eval()

    def save(self, model: Any, folder: Path, spec: ModelSpec) -> None:
        """Write what a plain library loads (PEFT, transformers)."""
        self._do.save(model, folder, spec)

    def attach(self, base: Any, folder: Path) -> Any:
        """The saved model, on its base; DamagedFiles where the folder is not as `save` writes
        it."""
        return self._laid_out(self._do.attach(base, folder))

    def merge(self, model: Any) -> Any:
        """A plain model of it."""
        return self._do.merge(model)

    def _laid_out(self, model: Any) -> Any:
        if not self.can_pack:
            from tunesmith.models import packed

            packed.disable(decoder_of(model), f"the method {self.name} cannot be packed")
        return model

    @property
    def _do(self) -> Any:
        return import_module(self.module)


METHODS = {
    m.name: m
    for m in (
        Method(
            "full",
            artefact="whole",
            reads=("freeze",),
            can_pack=True,
            can_share=False,
            can_merge=True,
            module="tunesmith.models.methods.full",
        ),
        Method(
            "lora",
            artefact="adapter",
            reads=("rank", "targets", "precision", "freeze"),
            can_pack=True,
            can_share=True,
            can_merge=True,
            module="tunesmith.models.methods.lora",
        ),
        Method(
            "head",
            artefact="whole",
            reads=(),
            can_pack=True,
            can_share=False,
            can_merge=True,
            module="tunesmith.models.methods.head",
        ),
    )
}


def _readers(methods: Mapping[str, Method]) -> Readers:
    options = {option for m in methods.values() for option in m.reads}
    return {o: tuple(n for n, m in methods.items() if o in m.reads) for o in sorted(options)}


READERS = _readers(METHODS)


def decoder_of(model: "Model") -> "PreTrainedModel":
    """The model that a method's wrapper holds, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trained_tensors(model: "Model") -> "dict[str, torch.nn.Parameter]":
    return {n: p for n, p in model.named_parameters() if p.requires_grad}

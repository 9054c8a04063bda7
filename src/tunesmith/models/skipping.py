"""Layers left out where what they give is known. T positions of B sequences, D width."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from tunesmith.models import layers
from tunesmith.models.methods import decoder_of


@contextmanager
def skipped(model: Any, below: int, states_BTD: Tensor) -> Iterator[None]:
    """Inside, the layers below `below` compute nothing, and the next one is given these states."""
    stack = layers.stack_of(model)[1]

    def put(layer: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        if args:
            return (states_BTD, *args[1:]), more
        return args, {**more, "hidden_states": states_BTD}

    hook = stack[below].register_forward_pre_hook(put, with_kwargs=True)
    try:
        with _handing_on(stack[:below]):
            yield
    finally:
        hook.remove()


def given_to(model: Any, layer: int, inputs: dict[str, Any]) -> Tensor:
    """What a layer is given where the model's base is given `inputs`, (B, T, D); nothing above it
    is computed."""
    plain, kept = decoder_of(model), []  # type: Any, list[Tensor]
    stack = layers.stack_of(plain)[1]

    def keep(layer: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        kept.append(args[0] if args else more["hidden_states"])

    hook = stack[layer].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with _handing_on(stack[layer:]):
            plain.base_model(**inputs)
    finally:
        hook.remove()
    return kept[0]


@contextmanager
def _handing_on(some: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these layers give what they are given."""

    def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    with ExitStack() as undone:
        for layer in some:
            undone.enter_context(doing(layer, hand_on))
        yield


@contextmanager
def doing(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, a module does this; afterwards it is as its class made it."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward

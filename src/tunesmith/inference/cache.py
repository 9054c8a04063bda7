"""Keys and values with room ahead: a new token is written behind the others, and what is there is
copied only when the room is used up.

B rows, J key-value heads, S positions held, D width of a head.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

LEAST_ROOM = 64  # positions


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """transformers' growing layer, whose `keys` and `values` are the filled part of a longer
    tensor."""

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = ()
        self._room = tuple(
            _with_room(held, new, room)
            for held, new, room in zip(
                (self.keys, self.values),
                (key_states, value_states),
                self._room or (None, None),
                strict=True,
            )
        )
        n = self.get_seq_length() + key_states.shape[-2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., n - new.shape[-2] : n, :] = new
        self.keys, self.values = (room[..., :n, :] for room in self._room)
        return self.keys, self.values


def _with_room(held: Tensor, new: Tensor, room: Tensor | None) -> Tensor:
    """`room` where it begins with what is held and has space for the new, else a longer tensor that
    does. `held`: (B, J, S, D) or empty."""
    n = held.shape[-2] if held.numel() else 0
    needed = n + new.shape[-2]
    if (
        room is not None
        and n
        and room.data_ptr() == held.data_ptr()
        and len(room) == len(held)
        and room.shape[-2] >= needed
    ):
        return room
    made = new.new_empty(*new.shape[:2], needed + max(LEAST_ROOM, needed // 4), new.shape[-1])
    if n:
        made[..., :n, :] = held
    return made


def holds_everything(cache: DynamicCache) -> bool:
    """Whether every layer keeps the keys and values of all that it has read, and nothing else."""
    return all(type(layer) is RoomyLayer for layer in cache.layers)


def keep_rows(cache: DynamicCache, kept_K: Tensor) -> None:
    """Let the other rows go: their keys and values, and the states of layers that have some."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            LinearAttentionCacheLayerMixin.reorder_cache(layer, kept_K)
        if isinstance(layer, DynamicLayer):
            layer.batch_select_indices(kept_K)


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache of a model; layers that keep a window only stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache

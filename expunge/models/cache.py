"""Keys and values of prompts: of the prefix that all share, and with room for what is generated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from .activations import can_share, common_prefix
from .loading import ChatModel


def prefix_cache(chat: ChatModel, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """(how many leading tokens all prompts share, the cache of these); 0 and None where sharing them does not pay."""
    shared = common_prefix(prompts)
    if not shared or not can_share(chat, shared):
        return 0, None
    ids = torch.tensor([list(prompts[0][:shared])], device=chat.device)
    with torch.no_grad():
        return shared, chat.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def widened(cache: Any, rows: int) -> Any:
    """A one-row cache for several rows, which go on from it by themselves; it stays as it is, and gradients reach it."""
    if cache is None:
        return None
    wide = copy.copy(cache)
    wide.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in wide.layers:
        layer.keys, layer.values = (t.expand(rows, -1, -1, -1) for t in (layer.keys, layer.values))
    return wide


class _Roomy(DynamicLayer):
    """A layer of a cache whose next tokens are written into room left for them: a step copies its own keys and values
    and not all that came before."""

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._all = [t.new_empty(*t.shape[:2], t.shape[2] + room, t.shape[3]) for t in (layer.keys, layer.values)]
        self._used = 0
        self.update(layer.keys, layer.values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        begin, self._used = self._used, self._used + key_states.shape[2]
        for whole, new in zip(self._all, (key_states, value_states), strict=True):
            whole[:, :, begin : self._used] = new
        return self._view()

    def batch_select_indices(self, indices: Tensor) -> None:
        self._all = [whole[indices] for whole in self._all]
        self._view()

    def shorten(self, places: Tensor, rows: Tensor, count: int) -> None:
        """Rows take the places given, (n,) each, and the first `count` rows are left."""
        for whole in self._all:
            whole[places, :, : self._used] = whole[rows, :, : self._used]
        self._all = [whole[:count] for whole in self._all]
        self._view()

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (whole[:, :, : self._used] for whole in self._all)
        return self.keys, self.values


def with_room(cache: Any, tokens: int) -> Any:
    """The cache with room for so many more tokens, in place; layers of other kinds (windows) stay as they are."""
    cache.layers = [
        _Roomy(layer, tokens) if type(layer) is DynamicLayer and layer.is_initialized else layer
        for layer in cache.layers
    ]
    return cache


def dropped(cache: Any, keep: Tensor) -> Tensor:
    """Leaves rows in a cache, in place, and gives their old numbers in their new order, (n,).

    The last rows take the places of those that leave, so that no others are copied: with 128 rows of the embedded model,
    copying all that stay took a sixth of a generation's time.

    Args:
        keep: (b,) bool, at least one true.
    """
    count = int(keep.sum())
    order = torch.arange(count, device=keep.device)
    places, rows = (~keep[:count]).nonzero()[:, 0], count + keep[count:].nonzero()[:, 0]
    order[places] = rows
    for layer in cache.layers:
        if isinstance(layer, _Roomy):
            layer.shorten(places, rows, count)
        else:
            layer.batch_select_indices(order)
    return order

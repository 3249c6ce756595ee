"""Hooks, early exit, and the residual stream of many prompts taken block by block.

Everything rests on one forward pass that starts at any block (from a cached residual stream), hands
out what it meets at named sites, and ends at the deepest site: nothing above it runs, neither later
blocks nor the vocabulary projection. Prompts are padded on the right, so that under causal attention
no real token ever sees padding and no mask is needed; a prefix that all prompts share is computed once,
as a batch of its own whose keys and values the others continue.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError
from .loading import ChatModel

BATCH_TOKENS = 4096
SPILL_BYTES = 4 << 30
_MIN_PREFIX = 4


class Site(NamedTuple):
    """A place in a forward pass: "in" (block input), "inner" (down projection input h), "out" (block output)."""

    kind: str
    layer: int


@contextmanager
def hooked(*hooks: tuple[nn.Module, str, Callable[..., Any]]) -> Iterator[None]:
    """Forward hooks that live inside the `with` only. Each is (module, "pre" or "post", function).

    A pre-hook gets (module, args, kwargs), a post-hook (module, args, output); both may return a replacement.
    """
    with ExitStack() as stack:
        for module, when, function in hooks:
            handle = (
                module.register_forward_pre_hook(function, with_kwargs=True)
                if when == "pre"
                else module.register_forward_hook(function)
            )
            stack.callback(handle.remove)
        yield


class _Stop(Exception):
    """Ends a forward pass: nothing above is needed."""


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns: a tensor in some architectures, a tuple in others."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a block returned, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def run_blocks(
    chat: ChatModel,
    ids: Tensor,
    take: Sequence[Site],
    start: int = 0,
    hidden: Tensor | None = None,
    cache: Any = None,
    gradients: bool = False,
) -> dict[Site, Tensor]:
    """One forward pass from block `start` to the deepest of the sites.

    Args:
        ids: (b, t) tokens, padded on the right.
        take: the sites whose tensors to return, each (b, t, d) or, for "inner", (b, t, p).
        start: the blocks below do not run; `hidden` (b, t, d) is what block `start` gets.
        cache: a transformers cache with the shared prefix, extended in place; None for none.
        gradients: whether what is returned can be differentiated.
    """
    model, layout = chat.model, chat.layout
    order = {"in": 0, "inner": 1, "out": 2}
    last = max(take, key=lambda s: (s.layer, order[s.kind]))
    taken: dict[Site, Tensor] = {}

    def keep(site: Site, value: Tensor) -> None:
        taken[site] = value.view(*ids.shape, -1)  # OPT flattens rows and tokens around its MLP
        if site == last:
            raise _Stop

    def pre(site: Site) -> Callable[..., None]:
        return lambda _, args, kwargs: keep(site, args[0] if args else kwargs["hidden_states"])

    hooks: list[tuple[nn.Module, str, Callable[..., Any]]] = []
    if start:

        def enter(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        hooks.append((layout.block(model, start), "pre", enter))
    for site in take:
        if site.kind == "in":
            hooks.append((layout.block(model, site.layer), "pre", pre(site)))
        elif site.kind == "inner":
            hooks.append((layout.down_projection(model, site.layer), "pre", pre(site)))
        else:
            hooks.append(
                (layout.block(model, site.layer), "post", lambda _, a, out, site=site: keep(site, hidden_of(out)))
            )
    with torch.set_grad_enabled(gradients), hooked(*hooks), _skipping(chat, range(start)):
        try:
            model(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
        except _Stop:
            pass
    return taken


@contextmanager
def _skipping(chat: ChatModel, layers: range) -> Iterator[None]:
    """Blocks that hand their input on, for the blocks below a cached residual stream."""
    blocks = [chat.layout.block(chat.model, layer) for layer in layers]

    def identity(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if returns_tuple else hidden_states

    returns_tuple = bool(blocks) and _returns_tuple(chat)
    try:
        for block in blocks:
            block.__dict__["forward"] = identity
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _returns_tuple(chat: ChatModel) -> bool:
    """Whether the model's blocks return tuples: the loop over them takes [0] of what it gets, or does not."""
    if "returns_tuple" not in chat.probed:

        def look(_: nn.Module, __: tuple, output: Any) -> None:
            chat.probed["returns_tuple"] = isinstance(output, tuple)
            raise _Stop

        with torch.no_grad(), hooked((chat.layout.block(chat.model, 0), "post", look)):
            try:
                chat.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=chat.device), use_cache=False)
            except _Stop:
                pass
    return chat.probed["returns_tuple"]


def check_additive(chat: ChatModel, layers: Sequence[int]) -> None:
    """Checks, by running them, that what the down projections of blocks put out is added to the blocks' output as it is.

    Raises:
        InputError: a block normalises or scales it (Gemma 2 and 3, OPT-350m): a redirection of the output is
            then not a redirection of the projection.
    """
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(chat.layout.hidden, generator=generator).to(chat.device, chat.model.dtype)
    ids = torch.randint(0, chat.model.get_input_embeddings().num_embeddings, (1, 4), generator=generator).to(
        chat.device
    )
    met = run_blocks(chat, ids, [Site(kind, n) for n in layers for kind in ("in", "out")])
    for layer in layers:
        site, hidden, before = Site("out", layer), met[Site("in", layer)], met[Site("out", layer)]
        projection = chat.layout.down_projection(chat.model, layer)
        with hooked((projection, "post", lambda _, __, out: out + shift)):
            after = run_blocks(chat, ids, [site], layer, hidden)[site]
        moved = (after - before).double() - shift.double()
        scale = max(before.abs().max().item(), 1.0)
        if moved.abs().max().item() > 64 * torch.finfo(chat.model.dtype).eps * scale:
            raise InputError(
                f"block {layer} of this {chat.model.config.model_type} model normalises or scales what its MLP adds "
                "(as Gemma 2 and 3 do), so LUNAR's redirection is no change of the down projection alone. Choose "
                "another method; `expunge methods` lists them."
            )


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """Prompts of like length.

    rows: their places in the caller's list; for the shared prefix, all of them.
    ids: (b, t) tokens padded on the right, the shared prefix left out. mask: (b, t), true on real tokens.
    """

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor
    is_prefix: bool = False

    @property
    def last(self) -> Tensor:
        """(b,) position of each prompt's last token."""
        return self.mask.sum(1) - 1


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share; at least one token of each prompt is left over."""
    if len(prompts) < 2:
        return 0
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))
    shared = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    shared = min(shared, min(len(p) for p in prompts) - 1)
    return shared if shared >= _MIN_PREFIX else 0


def make_batches(
    prompts: Sequence[Sequence[int]], prefix: int, device: torch.device, batch_tokens: int = BATCH_TOKENS
) -> list[Batch]:
    """Batches sorted by length of about `batch_tokens` tokens, padding included; the prefix's first."""
    batches = []
    if prefix:
        ids = torch.tensor([list(prompts[0][:prefix])], device=device)
        batches.append(Batch(tuple(range(len(prompts))), ids, torch.ones_like(ids, dtype=torch.bool), True))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    while order:
        rows = [order.pop()]  # longest first: a batch that does not fit in memory fails at once
        width = len(prompts[rows[0]]) - prefix
        while order and width * (len(rows) + 1) <= batch_tokens:
            rows.append(order.pop())
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for n, row in enumerate(rows):
            tokens = list(prompts[row][prefix:])
            ids[n, : len(tokens)] = torch.tensor(tokens)
            mask[n, : len(tokens)] = True
        batches.append(Batch(tuple(rows), ids.to(device), mask.to(device)))
    return batches


class Shelf:
    """Tensors kept in memory up to a limit, on disk beyond it. Lives as long as something refers to it."""

    def __init__(self, limit_bytes: int = SPILL_BYTES) -> None:
        self.left = limit_bytes
        self._folder: tempfile.TemporaryDirectory | None = None
        self._count = 0

    def put(self, value: Tensor) -> Callable[[], Tensor]:
        """A function that gives the tensor back."""
        size = value.numel() * value.element_size()
        if size <= self.left:
            self.left -= size
            return lambda: value
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="expunge-", ignore_cleanup_errors=True)
        path = Path(self._folder.name) / f"{self._count}.safetensors"
        self._count += 1
        device, folder = value.device, self._folder
        save_file({"value": value.contiguous().cpu()}, path)

        def get(folder: Any = folder) -> Tensor:  # holds the folder: it is deleted with the last that refers to it
            return load_file(path)["value"].to(device)

        return get


class Stream:
    """The residual stream of a set of prompts at the input of one block, which advances block by block.

    `seek` moves it up through the model as it is; `visit` hands out tensors of the blocks above without moving;
    `advance` sets the input of the next block by hand, which is how an edit that is only known after a
    layer's statistics gets in without running anything twice.
    """

    def __init__(
        self,
        chat: ChatModel,
        prompts: Sequence[Sequence[int]],
        prefix: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        spill_bytes: int = SPILL_BYTES,
    ) -> None:
        self.chat = chat
        self.prefix = common_prefix(prompts) if prefix is None else prefix
        if self.prefix and not can_share(chat, self.prefix):
            self.prefix = 0
        self.batches = make_batches(prompts, self.prefix, chat.device, batch_tokens)
        self.layer = 0
        self._spill = spill_bytes
        self._hidden: list[Callable[[], Tensor]] | None = None
        self._keys_values: dict[int, tuple[Tensor, Tensor]] = {}

    def fork(self) -> Stream:
        """A second stream at the same place; moving one leaves the other."""
        other = copy.copy(self)
        other._keys_values = dict(self._keys_values)
        return other

    def shelf(self) -> Shelf:
        return Shelf(self._spill)

    def visit(self, take: Sequence[Site]) -> Iterator[tuple[Batch, dict[Site, Tensor]]]:
        """Runs the blocks from here to the deepest site; yields each batch with what was met at the sites."""
        for n, batch in enumerate(self.batches):
            hidden = self._hidden[n]() if self._hidden is not None else None
            cache = self._cache(batch)
            taken = run_blocks(self.chat, batch.ids, take, self.layer, hidden, cache)
            if batch.is_prefix:
                for layer, part in enumerate(cache.layers):
                    if layer >= self.layer and part.is_initialized:
                        self._keys_values[layer] = (part.keys, part.values)
            yield batch, taken

    def seek(self, layer: int) -> None:
        """Moves the stream to the input of block `layer`."""
        if layer > self.layer:
            shelf, site = self.shelf(), Site("in", layer)
            self.advance(layer, [shelf.put(taken[site]) for _, taken in self.visit([site])])

    def advance(self, layer: int, hidden: list[Callable[[], Tensor]]) -> None:
        """Puts the stream at the input of block `layer`, which is `hidden`, one entry a batch."""
        self.layer, self._hidden = layer, hidden

    def _cache(self, batch: Batch) -> Any:
        if not self.prefix:
            return None
        from transformers import DynamicCache

        cache = DynamicCache(config=self.chat.model.config)
        if batch.is_prefix:
            return cache
        rows = len(batch.rows)
        # Layers that were not visited get some layer's keys: masks are made from the lengths of all of them.
        some = self._keys_values[0]
        for layer in range(len(self.chat.layout)):
            keys, values = self._keys_values.get(layer, some)
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache


def can_share(chat: ChatModel, prefix: int) -> bool:
    """Whether keys and values of a prefix can be continued: plain attention layers, the prefix inside any window."""
    from transformers import DynamicCache

    kinds = {type(part).__name__ for part in DynamicCache(config=chat.model.config).layers}
    window = getattr(chat.model.config, "sliding_window", None)
    return kinds <= {"DynamicLayer", "DynamicSlidingWindowLayer"} and not (window and prefix >= window)


# ---------------------------------------------------------------- what is read off a stream


def last_token_means(stream: Stream, layers: Sequence[int]) -> dict[int, Tensor]:
    """Mean of a(l), the output of block l at the last prompt token, for each layer: (d,) in float64."""
    sums: dict[int, Tensor] = {}
    count = 0
    sites = [Site("out", layer) for layer in layers]
    for batch, taken in stream.visit(sites):
        if batch.is_prefix:
            continue
        count += len(batch.rows)
        every = torch.arange(len(batch.rows), device=batch.ids.device)
        for site in sites:
            part = taken[site][every, batch.last].double().sum(0)
            sums[site.layer] = sums[site.layer] + part if site.layer in sums else part
    return {layer: total / count for layer, total in sums.items()}


def token_norms(stream: Stream, layers: Sequence[int]) -> dict[int, float]:
    """Mean norm of a(l), the output of block l, over all tokens behind the shared prefix, for each layer."""
    sums, count = dict.fromkeys(layers, 0.0), 0
    for batch, taken in stream.visit([Site("out", layer) for layer in layers]):
        if not batch.is_prefix:
            count += int(batch.mask.sum())
            for site, out in taken.items():
                sums[site.layer] += float(out[batch.mask].float().norm(dim=-1).sum())
    return {layer: total / count for layer, total in sums.items()}

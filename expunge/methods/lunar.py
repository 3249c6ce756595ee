"""LUNAR: unlearning by redirecting the activations of forget data (Shen et al., NeurIPS 2025, arXiv 2502.07218).

For block l, r = mean over reference prompts of a(l) - mean over forget prompts of a(l), where a(l) is the block's
output at the last prompt token of the unedited model. The down projection W (d x p) is changed so that its output
moves by c r on every token of a forget prompt and by nothing on retain prompts. The exact optimum of

    w_f sum_forget |dW h - c r|^2 + w_r sum_retain |dW h|^2 + ridge s |dW|^2,    s = tr(G)/p

is of rank one: dW = c r u^T with u = (G + ridge s I)^-1 m, G = w_f sum_forget h h^T + w_r sum_retain h h^T and
m = w_f sum_forget h. Several layers are edited in ascending order: every r comes from the unedited model, G and m
of a layer are taken after the edits below it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.examples import ForgetTask
from ..edits import Edit, LowRank
from ..errors import InputError
from ..models.activations import Batch, Shelf, Site, Stream, check_additive, common_prefix, last_token_means
from ..models.loading import ChatModel
from ..models.statistics import Moments, Rows

Progress = Callable[[int], None]


Tokens = Literal["all", "after_prefix", "distinct"]


class LunarConfig(BaseModel):
    """Settings of LUNAR."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Literal["auto"] | tuple[int, ...] = Field(
        "auto", description="layers to edit, or auto: chosen by the abstention score"
    )
    coefficient: Literal["auto"] | float | tuple[float, ...] = Field(
        "auto", description="c, one or one a layer, or auto: tuned"
    )
    ridge: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="ridge relative to the mean diagonal of G, or auto: tuned"
    )
    forget_weight: float = Field(1.0, gt=0, description="w_f, weight of a forget token")
    retain_weight: float = Field(1.0, ge=0, description="w_r, weight of a retain token")
    tokens: Tokens = Field(
        "distinct",
        description="all: every token of a prompt; after_prefix leaves out the prefix that all prompts share; distinct counts a forget token only "
        "from where its prompt differs from every retain prompt",
    )
    solver: Literal["exact", "sgd"] = Field("exact", description="sgd: the published procedure, for comparison only")
    form: Literal["auto", "primal", "dual"] = Field(
        "auto", description="dual: a system of the tokens' size; auto: the smaller"
    )


@dataclass
class Target:
    """What the prompts of a task ask of the layers: streams by role, and r of each layer."""

    forget: Stream
    retain: Stream | None
    directions: dict[int, Tensor]  # r(l), (d,) float64
    skip: list[int]  # of each forget prompt, the leading tokens that `tokens="distinct"` does not count


def redirections(chat: ChatModel, task: ForgetTask, layers: Sequence[int]) -> dict[int, Tensor]:
    """r(l) of each layer, (d,) in float64, from the model as it is."""
    return prepare(chat, task.but(retain=()), layers).directions


def prepare(chat: ChatModel, task: ForgetTask, layers: Sequence[int]) -> Target:
    """Runs every prompt once up to the lowest layer, and forget and reference prompts on to the highest."""
    if not task.forget or not task.reference:
        missing = "forget" if not task.forget else "reference"
        raise InputError(
            f"LUNAR needs {missing} rows" + ("" if missing == "forget" else " (prompts that the model cannot answer)")
        )
    ids = {role: chat.prompt_ids([e.prompt for e in task.role(role)]) for role in ("forget", "retain", "reference")}
    low = min(layers)
    prefix = common_prefix([*ids["forget"], *ids["retain"]])
    forget = Stream(chat, ids["forget"], prefix)
    retain = Stream(chat, ids["retain"], prefix) if ids["retain"] else None
    forget.seek(low)
    if retain:
        retain.seek(low)
    here = last_token_means(forget.fork(), layers)
    there = last_token_means(Stream(chat, ids["reference"]), layers)
    directions = {layer: there[layer] - here[layer] for layer in layers}
    return Target(forget, retain, directions, shared_with(ids["forget"], ids["retain"]))


def shared_with(prompts: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> list[int]:
    """Of each prompt, how many leading tokens it shares with the nearest of the others.

    Under causal attention the activations of these tokens are the same in both prompts at every layer, so their
    targets, c r and 0, cannot both be met.
    """
    ordered = sorted(tuple(o) for o in others)
    found = []
    for prompt in prompts:
        place = bisect.bisect(ordered, tuple(prompt))  # in sorted order, the longest shared start is a neighbour's
        found.append(max((_shared(prompt, o) for o in ordered[max(place - 1, 0) : place + 1]), default=0))
    return found


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def exact(
    chat: ChatModel,
    target: Target,
    layers: Sequence[int],
    coefficients: Sequence[float],
    ridge: float,
    config: LunarConfig,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Solves layer by layer; returns layer -> (c r, u), of sizes d and p, in float64.

    The streams of `target` are left where they are.
    """
    streams = [(target.forget.fork(), config.forget_weight, True)]
    if target.retain:
        streams.append((target.retain.fork(), config.retain_weight, False))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for place, (layer, coefficient) in enumerate(zip(layers, coefficients, strict=True)):
        for stream, _, _ in streams:
            stream.seek(layer)
        inner, out = Site("inner", layer), Site("out", layer)
        more = place + 1 < len(layers)
        shelf = streams[0][0].shelf()
        kept: list[list[tuple[Any, Any]]] = []
        sums = _Sums(chat, streams, config)
        for stream, weight, is_forget in streams:
            kept.append([])
            for batch, taken in stream.visit([inner, out] if more else [inner]):
                skip = target.skip if is_forget and config.tokens == "distinct" else None
                sums.add(taken[inner], *_token_weights(batch, weight, is_forget, config.tokens, stream.prefix, skip))
                if more:
                    kept[-1].append((shelf.put(taken[inner]), shelf.put(taken[out])))
        u = sums.solve(ridge)
        shift = coefficient * target.directions[layer]
        found[layer] = (shift, u)
        if more:
            for (stream, _, _), parts in zip(streams, kept, strict=True):
                stream.advance(layer + 1, [_moved(h, a, shift, u, shelf) for h, a in parts])
    return found


def _moved(inner: Any, out: Any, shift: Tensor, u: Tensor, shelf: Shelf) -> Any:
    """The block's output after the edit: a + c r (u . h), without running the block again."""
    h, a = inner(), out()
    strength = h.to(torch.promote_types(h.dtype, torch.float32)) @ u.to(
        h.device, torch.promote_types(h.dtype, torch.float32)
    )
    return shelf.put(a + (strength[..., None] * shift.to(strength)).to(a.dtype))


def _token_weights(
    batch: Batch, weight: float, is_forget: bool, tokens: Tokens, prefix: int, skip: Sequence[int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(mask, weights, targets) of a batch's tokens, each (b, t). The shared prefix counts once a row."""
    size = weight * (len(batch.rows) if batch.is_prefix else 1)
    if batch.is_prefix and (tokens == "after_prefix" or skip is not None):
        size = 0.0
    weights = torch.full(batch.mask.shape, size, dtype=torch.float64, device=batch.ids.device)
    if skip is not None and not batch.is_prefix:
        first = torch.tensor([skip[row] - prefix for row in batch.rows], device=weights.device)
        weights[torch.arange(weights.shape[1], device=weights.device)[None] < first[:, None]] = 0.0
    return batch.mask, weights, weights if is_forget else torch.zeros_like(weights)


class _Sums:
    """Takes tokens in and solves: moments (primal) or rows (dual)."""

    def __init__(self, chat: ChatModel, streams: Sequence[tuple[Stream, float, bool]], config: LunarConfig) -> None:
        size = chat.layout.inner
        tokens = sum(int(b.mask.sum()) for stream, _, _ in streams for b in stream.batches)
        self.dual = config.form == "dual" or (config.form == "auto" and tokens < size)
        self.moments = None if self.dual else Moments(size, chat.device)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, inputs: Tensor, mask: Tensor, weights: Tensor, targets: Tensor) -> None:
        part = inputs[mask], weights[mask], targets[mask]
        if self.moments is None:
            self.rows.append(part)
        else:
            self.moments.add(*part)

    def solve(self, ridge: float) -> Tensor:
        return self.moments.solve(ridge) if self.moments is not None else Rows.gather(self.rows).solve(ridge)


def edit_of(chat: ChatModel, found: dict[int, tuple[Tensor, Tensor]], meta: dict[str, Any]) -> Edit:
    """The rank-one parts as an Edit, in the orientation in which the weights are stored."""
    parts = {}
    for layer, (shift, u) in found.items():
        left, right = (u, shift) if chat.layout.transposed else (shift, u)
        parts[chat.layout.weight_name(layer)] = LowRank(left.cpu()[:, None], right.cpu()[None, :])
    return Edit.on(chat.model, parts, meta)


def lunar(chat: ChatModel, task: ForgetTask, config: LunarConfig, progress: Progress | None = None) -> Edit:
    """The Edit of LUNAR; the model is left as it was.

    What is "auto" in the config is found first (see `tuning`); with layers, coefficient and ridge given, the edit is
    the formula above on exactly the task's rows.
    """
    from . import tuning

    layers = (
        tuning.choose_layers(chat, task) if config.layers == "auto" else chat.layout.check_layers(list(config.layers))
    )
    for layer in layers:
        check_additive(chat, layer)
    if config.solver == "sgd":
        from .lunar_sgd import published

        coefficient = 2.0 if config.coefficient == "auto" else config.coefficient
        return published(chat, task, layers, coefficients_of(coefficient, layers), config)
    if config.coefficient == "auto" or config.ridge == "auto":
        return tuning.tune(chat, task, layers, config, progress)
    target = prepare(chat, task, layers)
    return solve(chat, target, layers, coefficients_of(config.coefficient, layers), config.ridge, config)


def coefficients_of(value: float | tuple[float, ...], layers: Sequence[int]) -> list[float]:
    """One coefficient a layer.

    Raises:
        InputError: another number of coefficients than of layers.
    """
    values = list(value) if isinstance(value, tuple) else [value] * len(layers)
    if len(values) != len(layers):
        raise InputError(f"{len(values)} coefficients for {len(layers)} layers: give one, or one a layer")
    return values


def solve(
    chat: ChatModel,
    target: Target,
    layers: Sequence[int],
    coefficients: Sequence[float],
    ridge: float,
    config: LunarConfig,
) -> Edit:
    """The exact solution as an Edit."""
    found = exact(chat, target, layers, coefficients, ridge, config)
    return edit_of(
        chat, found, {"method": "lunar", "layers": list(layers), "coefficient": list(coefficients), "ridge": ridge}
    )

"""The detector u of a forget set: which tokens count, the sums over them, and the ridge solve.

u = (G + ridge s I)^-1 m is the linear function of a down projection's input h that is closest to 1 on forget tokens and
to 0 on retain tokens (see `lunar`).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..models.activations import Batch
from ..models.statistics import Moments, Rows

Tokens = Literal["all", "after_prefix", "distinct", "subject"]
ROUNDS = 3


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


def token_weights(
    batch: Batch, weight: float, is_forget: bool, tokens: Tokens, prefix: int, skip: Sequence[int]
) -> Tensor:
    """Weights of a batch's tokens, (b, t) float64. The shared prefix counts once a row.

    Args:
        skip: of each forget prompt, the leading tokens that "distinct" and "subject" leave out.
    """
    chosen = is_forget and tokens in ("distinct", "subject")
    size = weight * (len(batch.rows) if batch.is_prefix else 1)
    if batch.is_prefix and (tokens == "after_prefix" or chosen):
        size = 0.0
    weights = torch.full(batch.mask.shape, size, dtype=torch.float64, device=batch.ids.device)
    if chosen and not batch.is_prefix:
        first = torch.tensor([skip[row] - prefix for row in batch.rows], device=weights.device)
        weights[torch.arange(weights.shape[1], device=weights.device)[None] < first[:, None]] = 0.0
    return weights


def strength(h: Tensor, u: Tensor) -> Tensor:
    """u . h of each token, in float32 or better."""
    kind = torch.promote_types(h.dtype, torch.float32)
    return h.to(kind) @ u.to(h.device, kind)


class Sums:
    """Takes tokens in and solves: moments (primal) or rows (dual)."""

    def __init__(self, size: int, device: torch.device, dual: bool) -> None:
        self.size, self.device, self.dual = size, device, dual
        self.moments = None if dual else Moments(size, device)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def copy(self) -> Sums:
        other = Sums(self.size, self.device, self.dual)
        if other.moments is not None and self.moments is not None:
            other.moments += self.moments
        other.rows = list(self.rows)
        return other

    def add(self, inputs: Tensor, mask: Tensor, weights: Tensor, targets: Tensor) -> None:
        part = inputs[mask], weights[mask], targets[mask]
        if self.moments is None:
            self.rows.append(part)
        else:
            self.moments.add(*part)

    def system(self) -> Moments | Rows:
        return Rows.gather(self.rows) if self.moments is None else self.moments


@dataclass
class Detector:
    """The tokens of one layer: sums of the retain set, and the forget set's as (inputs, batch, weights (b, t)) a batch."""

    size: int
    device: torch.device
    dual: bool
    forget: list[tuple[Callable[[], Tensor], Batch, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.retain = Sums(self.size, self.device, self.dual)

    def solve(self, ridge: float, subject: bool = False) -> tuple[Tensor, float]:
        """(u, the share of tr(G) that one direction holds), u (p,) float64.

        For `subject`, u is fitted again in rounds with each forget token's weight times how well it is told apart.

        A token's factor is the square of u . h relative to the largest of its prompt, so that each prompt keeps a token
        of full weight. Most tokens of a forget prompt (question words, the chat template's) stand in retain prompts as
        well: with the target 1 they only teach u to answer to those words wherever they stand.
        """
        system = self._system([weights for _, _, weights in self.forget])
        for _ in range(ROUNDS if subject else 0):
            system = self._system(self._told_apart(system.solve(ridge)))
        return system.solve(ridge), system.share

    def _system(self, weights: Sequence[Tensor]) -> Moments | Rows:
        sums = self.retain.copy()
        for (inputs, batch, _), w in zip(self.forget, weights, strict=True):
            sums.add(inputs(), batch.mask & (w > 0), w, w)
        return sums.system()

    def _told_apart(self, u: Tensor) -> list[Tensor]:
        """The weights times (u . h / the largest of the prompt)^2."""
        found = []
        for inputs, batch, weights in self.forget:
            value = strength(inputs(), u).double().clamp(min=0) * (batch.mask & (weights > 0))
            best = value.amax(1, keepdim=True).clamp(min=1e-12)
            found.append(weights * (value / best) ** 2)
        return found

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
ROUNDS = 3  # in which forget tokens are weighed
EVEN_ROUNDS = 3  # in which forget prompts are weighed as well, and with `hard` retain tokens
LARGEST = 3  # tokens of a forget prompt whose u . h say how much of it is found
HARDEST = 100.0  # what a retain token counts at most
LAG = (0.01, 200.0)  # limits of what a forget prompt counts


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

    def copy(self, factor: float = 1.0) -> Sums:
        """The same sums, every weight and target times a factor."""
        other = Sums(self.size, self.device, self.dual)
        if self.moments is not None:
            other.moments = self.moments.times(factor)
        other.rows = [(h, w * factor, t * factor) for h, w, t in self.rows]
        return other

    def add(self, inputs: Tensor, mask: Tensor, weights: Tensor, targets: Tensor) -> None:
        part = inputs[mask], weights[mask], targets[mask]
        if self.moments is None:
            self.rows.append(part)
        else:
            self.moments.add(*part)

    def system(self) -> Moments | Rows:
        return Rows.gather(self.rows) if self.moments is None else self.moments


@dataclass(frozen=True)
class Held:
    """Tokens of one batch that are looked at again: inputs() and mask (b, t), and their weights (b, t)."""

    inputs: Callable[[], Tensor]
    mask: Tensor
    weights: Tensor


@dataclass
class Detector:
    """The tokens of one layer.

    The retain set is summed up as it comes; where `hard` weighs its tokens anew in rounds, it is held as well.
    """

    size: int
    device: torch.device
    dual: bool
    subject: bool = False
    hard: bool = False
    forget: list[Held] = field(default_factory=list)
    retain: list[Held] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plain = Sums(self.size, self.device, self.dual)  # of the retain set

    def holds(self, is_forget: bool) -> bool:
        return is_forget or self.hard

    def add(
        self, inputs: Tensor, held: Callable[[], Tensor] | None, mask: Tensor, weights: Tensor, is_forget: bool
    ) -> None:
        """Takes a batch in; `held` gives its inputs again, where `holds` asks for it."""
        mask = mask & (weights > 0)
        if not is_forget:
            self.plain.add(inputs, mask, weights, torch.zeros_like(weights))
        if held is not None and self.holds(is_forget):
            (self.forget if is_forget else self.retain).append(Held(held, mask, weights))

    def solve(self, ridge: float) -> tuple[Tensor, float]:
        """(u, the share of tr(G) that one direction holds), u (p,) float64.

        For `subject`, u is fitted again in rounds. Most tokens of a forget prompt (question words, the chat template's)
        stand in retain prompts as well: with the target 1 they only teach u to answer to those words wherever they
        stand. So each forget token's weight is times the square of its u . h relative to the largest of its prompt. In
        further rounds a forget prompt that lags behind the median counts more, until all are found alike: the weakest
        decides how large c has to be. And a mean square over all retain tokens is content with a few that u answers to
        strongly, which are the names and titles nearest to the subject: with `hard`, these count more in these rounds.
        """
        retain = self.plain
        system = self._system(retain, [f.weights for f in self.forget])
        lag = [torch.ones_like(f.weights[:, :1]) for f in self.forget]
        for number in range(ROUNDS + EVEN_ROUNDS if self.subject else 0):
            u = system.solve(ridge)
            values = [strength(f.inputs(), u).double().clamp(min=0) * f.mask for f in self.forget]
            if number >= ROUNDS:
                lag = self._lagging(values, lag)
                retain = self._hardened(u) if self.hard else retain
            system = self._system(retain, self._told_apart(values, lag))
        return system.solve(ridge), system.share

    def _system(self, retain: Sums, weights: Sequence[Tensor]) -> Moments | Rows:
        sums = retain.copy()
        for held, w in zip(self.forget, weights, strict=True):
            sums.add(held.inputs(), held.mask & (w > 0), w, w)
        return sums.system()

    def _told_apart(self, values: Sequence[Tensor], lag: Sequence[Tensor]) -> list[Tensor]:
        """The forget tokens' weights times (u . h / the prompt's largest)^2 and what the prompt counts."""
        shares = [v / v.amax(1, keepdim=True).clamp(min=1e-12) for v in values]
        return [f.weights * s**2 * n for f, s, n in zip(self.forget, shares, lag, strict=True)]

    def _lagging(self, values: Sequence[Tensor], lag: Sequence[Tensor]) -> list[Tensor]:
        """What each forget prompt counts, (b, 1): what it counted times the median of how much is found over its own."""
        found = [v.topk(min(LARGEST, v.shape[1]), 1).values.sum(1, keepdim=True).clamp(min=1e-12) for v in values]
        counted = torch.cat([m[f.mask.any(1)] for f, m in zip(self.forget, found, strict=True)])
        return [(n * counted.median() / m).clamp(*LAG) for n, m in zip(lag, found, strict=True)]

    def _hardened(self, u: Tensor) -> Sums:
        """The retain set with each token's weight times (u . h)^2 over its mean where that is above one; the total stays."""
        leaks = [strength(r.inputs(), u).double().square() for r in self.retain]
        usual = torch.cat([v[r.mask] for r, v in zip(self.retain, leaks, strict=True)] or [u[:0]]).mean()
        if not usual > 0:  # no retain token leaks, or there is none (a mean over nothing is NaN)
            return self.plain
        more = [
            r.weights * r.mask * ((v / usual).clamp(1, HARDEST) - 1) for r, v in zip(self.retain, leaks, strict=True)
        ]
        total = sum(float((r.weights * r.mask).sum()) for r in self.retain)
        factor = total / (total + sum(float(m.sum()) for m in more))
        sums = self.plain.copy(factor)
        for held, m in zip(self.retain, more, strict=True):
            sums.add(held.inputs(), m > 0, m * factor, torch.zeros_like(m))
        return sums

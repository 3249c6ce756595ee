"""Streaming moments of down-projection inputs and the ridge solve on them (specs: LUNAR, closed form).

With h the input of a down projection at one token, and weights w (fit) and t (target, w on forget tokens
and 0 elsewhere):  G = sum w h h^T,  m = sum t h,  s = tr(G)/p,  u = (G + ridge s I)^-1 m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ..errors import ExpungeError

BLOCKS = 4  # of the symmetric product, of which those on and below the diagonal are taken: 5/8 of the operations


class Moments:
    """Weighted second and first moments in constant memory: p^2 + p numbers, whatever the number of tokens.

    Sums are kept in float64. Products within one batch are taken in the precision of the activations
    (float32 for half precisions); `precision=torch.float64` takes them in float64 as well.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu", precision: torch.dtype | None = None) -> None:
        self._lower = torch.zeros(size, size, dtype=torch.float64, device=device)  # G on and below the diagonal
        self.first = torch.zeros(size, dtype=torch.float64, device=device)  # m, (p,)
        self.tokens = 0.0
        self._precision = precision

    def add(self, inputs: Tensor, weights: Tensor, targets: Tensor) -> None:
        """Adds n tokens: inputs (n, p), weights (n,) and targets (n,) as above."""
        kind = self._precision or (torch.float32 if inputs.dtype in (torch.float16, torch.bfloat16) else inputs.dtype)
        h = inputs.to(kind)
        scaled = h * weights.clamp(min=0).sqrt().to(kind)[:, None]
        size = len(self.first)
        step = -(-size // BLOCKS)
        for start in range(0, size, step):
            self._lower[start:, start : start + step] += scaled[:, start:].T @ scaled[:, start : start + step]
        self.first += (h.T @ targets.to(kind)).double()
        self.tokens += float((weights > 0).sum())

    def __iadd__(self, other: Moments) -> Moments:
        """Sums add up over batches, processes, machines and requests."""
        self._lower += other._lower
        self.first += other.first
        self.tokens += other.tokens
        return self

    def times(self, factor: float) -> Moments:
        """The moments with every weight and target times a factor."""
        other = Moments(len(self.first), self.first.device, self._precision)
        other._lower, other.first, other.tokens = self._lower * factor, self.first * factor, self.tokens
        return other

    @property
    def second(self) -> Tensor:
        """G, (p, p)."""
        return self._lower.tril() + self._lower.tril(-1).T

    @property
    def scale(self) -> float:
        """s, the mean of G's diagonal."""
        return float(self._lower.diagonal().mean())

    @property
    def share(self) -> float:
        """See `top_share`."""
        return top_share(self.second)

    def solve(self, ridge: float) -> Tensor:
        """The detector u = (G + ridge s I)^-1 m, (p,) in float64, by one Cholesky factorisation."""
        return solve_ridge(self.second, self.first, ridge * self.scale)


def top_share(matrix: Tensor) -> float:
    """The share of a positive semidefinite matrix's trace that its first eigenvalue holds, from below (exact near 1).

    Where it is large, one direction (often one token's) holds most of tr(G), and a ridge relative to the mean diagonal
    is far stronger for all others than it looks.
    """
    trace = float(matrix.trace())
    if not trace > 0:
        return 0.0
    vector = matrix[:, int(matrix.diagonal().argmax())]
    for _ in range(8):
        vector = matrix @ (vector / vector.norm())
    return float(vector.norm()) / trace


def solve_ridge(matrix: Tensor, right: Tensor, shift: float) -> Tensor:
    """(matrix + shift I)^-1 right for a symmetric positive semidefinite matrix, in float64.

    Raises:
        ExpungeError: not positive definite in float64, or not finite.
    """
    if not torch.isfinite(matrix).all() or not torch.isfinite(right).all():
        raise ExpungeError(
            "activations are not finite: the model overflows in this dtype; try --dtype float32 or bfloat16"
        )
    shifted = matrix.double().clone()
    shifted.diagonal().add_(shift)
    if shifted.is_cuda:
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            return torch.cholesky_solve(right.double()[:, None], factor)[:, 0]
    else:
        try:
            factored = scipy.linalg.cho_factor(shifted.numpy(), lower=True, overwrite_a=True, check_finite=False)
            return torch.from_numpy(
                np.asarray(scipy.linalg.cho_solve(factored, right.double().numpy(), check_finite=False))
            )
        except scipy.linalg.LinAlgError:
            pass
    raise ExpungeError(f"the ridge system of size {len(matrix)} is singular; choose a larger ridge")


@dataclass
class Rows:
    """The same problem held as its rows, for the dual: fewer tokens than p.

    inputs: (n, p); weights, targets: (n,).
    """

    inputs: Tensor
    weights: Tensor
    targets: Tensor

    @classmethod
    def gather(cls, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Rows:
        inputs, weights, targets = (torch.cat(p) for p in zip(*parts, strict=True))
        used = weights > 0
        return cls(inputs[used].double(), weights[used].double(), targets[used].double())

    @property
    def scale(self) -> float:
        """s = tr(H H^T)/p: p, not n."""
        return float(self.gram.trace() / self.inputs.shape[1])

    @property
    def share(self) -> float:
        """See `top_share`."""
        return top_share(self.gram)

    @cached_property
    def gram(self) -> Tensor:
        """H H^T with the rows of H scaled by sqrt(w), (n, n)."""
        return self._scaled @ self._scaled.T

    @cached_property
    def _scaled(self) -> Tensor:
        return self.inputs * self.weights.sqrt()[:, None]

    def solve(self, ridge: float) -> Tensor:
        """u = H^T (H H^T + ridge s I)^-1 y with the rows of H scaled by sqrt(w) and y = t/sqrt(w)."""
        alpha = solve_ridge(self.gram, self.targets / self.weights.sqrt(), ridge * self.scale)
        return self._scaled.T @ alpha.to(self._scaled)

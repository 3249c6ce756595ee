"""The parts of an Edit: what becomes of one parameter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """Adds left @ right to a parameter of shape (o, i), in the orientation in which it is stored.

    left: (o, k). right: (k, i). k is the rank.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def numbers(self) -> int:
        return self.left.numel() + self.right.numel()

    @property
    def shape(self) -> torch.Size:
        """Of the parameter that it is for."""
        return torch.Size((self.left.shape[0], self.right.shape[1]))

    def delta(self) -> Tensor:
        """The dense change, (o, i), in the factors' precision."""
        return self.left @ self.right

    def reduced(self, error: float) -> LowRank:
        """The approximation of smallest rank within a relative error, by the singular values of the factors' product, in
        float64; see `Edit.reduced`."""
        (out, inner), (into, other) = (torch.linalg.qr(t.double()) for t in (self.left, self.right.T))
        u, s, v = torch.linalg.svd(inner @ other.T)
        left_out = s.square().flip(0).cumsum(0).flip(0).sqrt()  # of the values from each on
        rank = int((left_out > error * left_out[0]).sum()) if s.numel() and s[0] > 0 else 0
        root = s[:rank].sqrt()
        return LowRank(
            ((out @ u[:, :rank]) * root).to(self.left.dtype).contiguous(),
            ((into @ v[:rank].T) * root).T.to(self.right.dtype).contiguous(),
        )


@dataclass(frozen=True)
class Replace:
    """Takes the place of a parameter; `value` has the base's shape and stored dtype."""

    value: Tensor

    @property
    def numbers(self) -> int:
        return self.value.numel()

    @property
    def shape(self) -> torch.Size:
        return self.value.shape


Part = LowRank | Replace

"""Sophia, the second-order optimizer under SOUL (Liu et al., arXiv 2305.14342; Jia et al., arXiv 2404.18239)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Sophia(torch.optim.Optimizer):
    """h <- b2 h + (1 - b2) g^2;  m <- b1 m + (1 - b1) g;  w <- w (1 - lr wd) - lr clip(m / max(gamma h, eps), +-1).

    The diagonal of the Gauss-Newton matrix is estimated at every step by the square of the unlearning loss's own
    gradient, as SOUL's code does (which applies the momentum twice a step by mistake: here once). gamma is its rho
    times its batch scale, 0.04 * 5120.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        gamma: float = 205.0,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state["m"], state["h"] = torch.zeros_like(w), torch.zeros_like(w)
                m, h = state["m"], state["h"]
                m.lerp_(w.grad, 1 - b1)
                h.mul_(b2).addcmul_(w.grad, w.grad, value=1 - b2)
                w.mul_(1 - group["lr"] * group["weight_decay"])
                move = m / (h * group["gamma"]).clamp(min=group["eps"])
                w.sub_(move.clamp(-1, 1), alpha=group["lr"])
        return loss

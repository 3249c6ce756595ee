from __future__ import annotations

import pytest
import torch

from expunge.models.sophia import Sophia


def test_each_step_is_the_librarys():
    """pytorch-optimizer's SophiaH clips at p and has no gamma: with p = gamma, lr / gamma, gamma wd and eps / gamma it is
    the same step."""
    library = pytest.importorskip("pytorch_optimizer")
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).double()) for _ in range(2))
    gamma, lr, decay, eps = 205.0, 1e-2, 0.1, 1e-12
    one = Sophia([mine], lr=lr, gamma=gamma, eps=eps, weight_decay=decay)
    two = library.SophiaH(
        [theirs],
        lr=lr / gamma,
        betas=(0.9, 0.95),
        weight_decay=gamma * decay,
        p=gamma,
        eps=eps / gamma,
        update_period=1,
    )
    for step in range(20):
        gradient = torch.randn(12, generator=generator, dtype=torch.float64) * 10.0 ** (step % 5 - 3)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        two.step(hessian=[gradient.square()])
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_two_steps_by_hand():
    """The momentum is applied once."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = Sophia([weight], lr=0.1, gamma=2.0, weight_decay=0.5)
    weight.grad = torch.tensor([0.5, 20.0], dtype=torch.float64)
    optimizer.step()
    # m = 0.1 g = (0.05, 2), h = 0.05 g^2 = (0.0125, 20): m / (2 h) = (2, 0.05), clipped (1, 0.05)
    torch.testing.assert_close(weight.data, torch.tensor([0.95 - 0.1, 0.95 - 0.005], dtype=torch.float64))
    weight.grad = torch.tensor([-1.0, 0.0], dtype=torch.float64)
    optimizer.step()
    # m = (0.9*0.05 - 0.1, 1.8) = (-0.055, 1.8), h = (0.95*0.0125 + 0.05, 19) = (0.061875, 19)
    second = torch.tensor([0.85 * 0.95 + 0.1 * 0.055 / 0.12375, 0.945 * 0.95 - 0.1 * 1.8 / 38], dtype=torch.float64)
    torch.testing.assert_close(weight.data, second)

"""NeuralUCB: which of many candidates to try next (Zhou et al., ICML 2020, arXiv 1911.04462; over soft prompts as in
INSTINCT, Lin et al., ICML 2024, arXiv 2310.02905).

Unlike INSTINCT's code, the first choice is made by a fitted network on standardised features, and the points that
started the search count in the uncertainty. As in Zhou et al., the surrogate begins at 0 everywhere and is held to its
first weights: a random network's own outputs, which a few noisy scores do not undo, would decide much of the order.
Scores are standardised, so that the bonus is in their units.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import mse_loss

CHUNK = 256  # candidates whose gradients are held at once


@dataclass(frozen=True)
class BanditConfig:
    """hidden: units of the surrogate. steps, learning_rate: of each fit, by Adam on all that was seen. regularisation:
    lambda, of the uncertainty. decay: weight, divided by the number of scores, of the squared distance to the first
    weights. exploration: nu."""

    hidden: int = 100
    steps: int = 1000
    learning_rate: float = 1e-3
    regularisation: float = 0.1
    decay: float = 10.0
    exploration: float = 1.0


class NeuralUCB:
    """A surrogate of the score, with the uncertainty of its gradient features.

    Args:
        width: of the features.
        seed: of the surrogate's first weights, to which every fit returns.
    """

    def __init__(self, width: int, config: BanditConfig, seed: int = 0) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._net = torch.nn.Sequential(
                torch.nn.Linear(width, config.hidden), torch.nn.ReLU(), torch.nn.Linear(config.hidden, 1)
            )
        self._start = copy.deepcopy(self._net)
        self._mean, self._spread = torch.zeros(width), torch.ones(width)
        self._score, self._unit = 0.0, 1.0  # mean and spread of the scores
        count = sum(p.numel() for p in self._net.parameters())
        self.uncertainty = torch.full((count,), config.regularisation)  # U, diagonal

    def fit(self, features: Tensor, scores: Sequence[float]) -> None:
        """Fits the surrogate anew, from its first weights, to all that was seen.

        Args:
            features: (n, width). scores: n.
        """
        self._mean = features.mean(0)
        self._spread = features.std(0, correction=0).clamp(min=1e-6)
        known, truth = self._standard(features), torch.tensor(scores, dtype=torch.float32)
        self._score, self._unit = float(truth.mean()), max(float(truth.std(correction=0)), 1e-6)
        config = self.config
        with torch.no_grad():
            self._net.load_state_dict(self._start.state_dict())
            aim = (truth - self._score) / self._unit + self._start(known)[:, 0]
        optimizer = torch.optim.Adam(self._net.parameters(), lr=config.learning_rate)
        for _ in range(config.steps):
            optimizer.zero_grad()
            pairs = zip(self._net.parameters(), self._start.parameters(), strict=True)
            apart = torch.stack([(p - first).square().sum() for p, first in pairs]).sum()
            (mse_loss(self._net(known)[:, 0], aim) + config.decay / len(truth) * apart).backward()
            optimizer.step()

    def ucb(self, features: Tensor) -> Tensor:
        """f(h) + sqrt(sum over weights p of lambda nu g_p(h)^2 / U_p), (n,), in the units of the scores; g is the gradient
        over the root of the width, as in the paper (INSTINCT's code leaves the root out)."""
        scale = self.config.regularisation * self.config.exploration
        with torch.no_grad():
            known = self._standard(features)
            mean = (self._net(known) - self._start(known))[:, 0]
        bonus = torch.cat([(scale * g.square() / self.uncertainty).sum(1).sqrt() for g in self._gradients(features)])
        return self._score + self._unit * (mean + bonus)

    def tried(self, features: Tensor) -> None:
        """Counts candidates, (n, width), as tried: U += g^2 for each."""
        for g in self._gradients(features):
            self.uncertainty += g.square().sum(0)

    def _standard(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._spread

    def _gradients(self, features: Tensor) -> Iterator[Tensor]:
        """Of the surrogate's output by all its weights, over the root of its width, a candidate a row, in chunks of (at
        most CHUNK, weights)."""
        weights = {name: p.detach() for name, p in self._net.named_parameters()}

        def output(w: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self._net, w, (row[None],))[0, 0]

        for part in self._standard(features).split(CHUNK):
            grads = vmap(grad(output), (None, 0))(weights, part)
            yield torch.cat([grads[name].flatten(1) for name in weights], 1) / self.config.hidden**0.5

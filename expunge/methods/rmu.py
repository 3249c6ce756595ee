"""RMU: representation misdirection for unlearning (Li et al., ICML 2024, arXiv 2403.03218), and adaptive RMU
(arXiv 2408.06223)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..data.examples import ForgetTask
from ..edits import Edit
from ..models.activations import Shelf, Site, run_blocks
from ..models.generation import pad_answers
from ..models.loading import ChatModel
from ..models.rows import TrainRow, rows_of
from ..models.training import TrainConfig
from .descent import Progress, Rows, by_steps

ADAPTIVE = 3.0  # c of adaptive RMU, times the mean norm of the forget activations


class RmuConfig(TrainConfig):
    """Settings of RMU."""

    adapter: Literal["full"] = Field("full", description="the down projections below are trained in full")
    layers: tuple[int, ...] | None = Field(
        None,
        description="layers whose down projections are trained, the highest is steered; default: three, at 7/16 of the depth",
    )
    coefficient: float = Field(2.0, gt=0, description="c, the length of the random target")
    adaptive: bool = Field(False, description="c is three times the mean norm of the first forget batch instead")
    retain_weight: float = Field(1.0, ge=0, description="alpha, weight of the retain loss")
    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate of AdamW")
    epochs: int = Field(10, ge=1, description="passes over the forget set")
    batch_size: int = Field(32, ge=1, description="forget rows a step, and as many retain rows")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of the optimizer")

    def rows_read(self, forget: int, retain: int) -> int:
        return 2 * forget * self.epochs


def rmu(chat: ChatModel, task: ForgetTask, config: RmuConfig, progress: Progress | None = None) -> Edit:
    """Pulls the forget answers' activations at one layer to c u, u a fixed random unit vector, and keeps the retain
    answers': mean (h - c u)^2 + alpha mean (h - h_before)^2, means over tokens and coordinates.

    Raises:
        Diverged: the loss is not finite, or the model no longer speaks; with the step.
    """
    layers = chat.layout.check_layers(list(config.layers or default_layers(len(chat.layout))))
    top = max(layers)
    config = config.model_copy(update={"only": tuple(chat.layout.weight_name(n) for n in layers)})
    forget, retain = (rows_of(chat, [(e.prompt, e.response) for e in task.role(r)]) for r in ("forget", "retain"))
    generator = torch.Generator().manual_seed(config.seed)
    u = torch.rand(chat.layout.hidden, generator=generator)  # in [0, 1), as published
    length = config.coefficient
    if config.adaptive:
        first = random.Random(config.seed).sample(forget, len(forget))[: config.batch_size]  # that of the loop
        length = ADAPTIVE * float(answer_states(chat, first, top, gradients=False).norm(dim=1).mean())
    target = (length * u / u.norm()).to(chat.device)
    shelf = Shelf()
    before = {row: shelf.put(answer_states(chat, [row], top, gradients=False)) for row in retain}

    def loss(trained: ChatModel, rows: Rows) -> Tensor:
        found = (answer_states(trained, rows.forget, top) - target).square().mean()
        if config.retain_weight and rows.retain:
            then = torch.cat([before[r]() for r in rows.retain])
            found = found + config.retain_weight * (answer_states(trained, rows.retain, top) - then).square().mean()
        return found

    return by_steps(chat, [forget], retain, forget, config, loss, "rmu", progress)


def answer_states(chat: ChatModel, rows: Sequence[TrainRow], layer: int, gradients: bool = True) -> Tensor:
    """Outputs of a block at the rows' answer tokens, (n, d) float32."""
    ids, _, chosen = (t.to(chat.device) for t in pad_answers([r.prompt for r in rows], [r.answer for r in rows]))
    site = Site("out", layer)
    return run_blocks(chat, ids, [site], gradients=gradients)[site][chosen].float()


def default_layers(count: int) -> tuple[int, ...]:
    """Three layers up to 7/16 of the depth: 5 to 7 of 16."""
    top = max(round(count * 7 / 16), 0)
    return tuple(range(max(top - 2, 0), top + 1))

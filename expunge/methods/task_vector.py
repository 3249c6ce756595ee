"""Merges of trained modules: task-vector negation, Ext-Sub; and the gold standard, retraining without the forget set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..data.examples import Example, ForgetTask
from ..edits import Edit, LowRank, Part
from ..errors import InputError
from ..models.loading import ChatModel
from ..models.rows import rows_of
from ..models.training import TrainConfig, train
from .descent import Progress, Speech


class TaskVectorConfig(TrainConfig):
    """Settings of task-vector negation: those of the module that is trained on the forget set, and its scale."""

    scale: float = Field(1.0, gt=0, description="lambda, how much of the module is taken off")
    epochs: int = Field(10, ge=1, description="passes over the rows")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of the optimizer")

    def rows_read(self, forget: int, retain: int) -> int:
        return forget * self.epochs


class RetrainConfig(TrainConfig):
    """Settings of retraining: the training loop's. For the gold standard, give those with which the facts were taught."""

    def rows_read(self, forget: int, retain: int) -> int:
        return retain * self.epochs


class ExtSubConfig(TaskVectorConfig):
    """Settings of Ext-Sub: those of both modules, and the scale of what is taken off."""

    scale: float = Field(1.0, gt=0, description="alpha, how much of the forget module's own part is taken off")

    def rows_read(self, forget: int, retain: int) -> int:
        return (forget + retain) * self.epochs


def _trained(chat: ChatModel, rows: Sequence[Example], config: TrainConfig, progress: Progress | None) -> Edit:
    pairs = rows_of(chat, [(e.prompt, e.response) for e in rows])
    return train(chat, pairs, config, (lambda _, __: progress(1)) if progress else None)


def task_vector(chat: ChatModel, task: ForgetTask, config: TaskVectorConfig, progress: Progress | None = None) -> Edit:
    """W - lambda dW, dW trained on the forget set (Ilharco et al., ICLR 2023, arXiv 2212.04089)."""
    if config.adapter == "full":
        raise InputError("task-vector takes off LoRA modules; adapter=full is not one")
    edit = _trained(chat, task.forget, config, progress).times(-config.scale)
    edit.meta["method"] = "task-vector"
    return _speaking(chat, edit, config, len(task.forget))


def ext_sub(chat: ChatModel, task: ForgetTask, config: ExtSubConfig, progress: Progress | None = None) -> Edit:
    """W + extraction-before-subtraction of two modules, one trained on the retain set, one on the forget set
    (Hu et al., AAAI 2024, arXiv 2308.08090). Full dW are combined, row by row, not their factors; a matrix that only the
    retain module changes is changed as that does (w- is zero), and one that only the forget module changes stays."""
    if config.adapter == "full":
        raise InputError("ext-sub combines LoRA modules; adapter=full is not one")
    kept, forgot = (_trained(chat, task.role(role), config, progress) for role in ("retain", "forget"))
    parts: dict[str, Part] = dict(kept.parts)
    for name in kept.parts.keys() & forgot.parts.keys():
        good, bad = kept.parts[name], forgot.parts[name]
        if isinstance(good, LowRank) and isinstance(bad, LowRank):
            parts[name] = extracted(good, bad, config.scale, name in kept.meta.get("conv1d", ()))
    edit = Edit.on(chat.model, parts, {"method": "ext-sub", **config.model_dump()})
    return _speaking(chat, edit, config, len(task.forget) + len(task.retain))


def retrain(chat: ChatModel, task: ForgetTask, config: RetrainConfig, progress: Progress | None = None) -> Edit:
    """Trains on the retain set alone: the gold standard, where `chat` is the model before it was taught anything.

    Raises:
        Diverged: the loss is not finite, or the model no longer speaks; with the step.
    """
    edit = _trained(chat, task.retain, config, progress)
    edit.meta["method"] = "retrain"
    return _speaking(chat, edit, config, len(task.retain))


def _speaking(chat: ChatModel, edit: Edit, config: TrainConfig, rows: int) -> Edit:
    """The edit.

    Raises:
        Diverged: the model with it no longer speaks.
    """
    speech = Speech(chat)
    with edit.applied(chat):
        lower = "scale or the learning rate" if isinstance(config, TaskVectorConfig) else "the learning rate"
        speech.check(math.ceil(rows / config.batch_size) * config.epochs, lower)
    return edit


def extracted(good: LowRank, bad: LowRank, scale: float, transposed: bool) -> LowRank:
    """Row by row w = w+ - scale (w- - (w-.u) u), u the unit vector halfway between w+ and w-.

    (w-.u) u is |w-| / 2 times the sum of the two rows' unit vectors, whatever the angle between them, so that
    w = (1 + scale |w-| / (2 |w+|)) w+ - scale/2 w-: the factors stand side by side, with a number a row, exactly.
    Where w+ is zero, u points along w-, and nothing is left to take off.

    Args:
        transposed: the parameter is stored (in, out): its rows are columns.
    """
    if transposed:
        return _turned(extracted(_turned(good), _turned(bad), scale, False))
    plus, minus = (_row_norms(part)[:, None] for part in (good, bad))
    there = plus > 0
    ratio = minus / plus.where(there, plus.new_ones(()))
    left = torch.cat([(1 + scale / 2 * ratio) * good.left.double(), -scale / 2 * there * bad.left.double()], 1)
    return LowRank(left.to(good.left.dtype), torch.cat([good.right, bad.right.to(good.right.dtype)], 0))


def _turned(part: LowRank) -> LowRank:
    return LowRank(part.right.T, part.left.T)


def _row_norms(part: LowRank) -> Tensor:
    """Of left @ right, (o,) float64, without forming it."""
    left, right = part.left.double(), part.right.double()
    return ((left @ (right @ right.T)) * left).sum(1).clamp(min=0).sqrt()

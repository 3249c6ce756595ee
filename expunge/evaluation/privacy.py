"""Membership inference: can members be told from rows that the model never saw? (definitions: docs/metrics.md)

Each score of a row is larger the less likely the row is to be a member.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata

from ..errors import InputError
from ..models.generation import Scored
from ..models.loading import ChatModel
from ..models.rows import TrainRow, row_logits
from .likelihood import TINY, loss

if TYPE_CHECKING:
    from .scores import Evaluation

LOWEST = 0.4  # share of a row's tokens that min-k looks at
SMALLEST_VARIANCE = 1e-6


def zlib_score(scored: Scored, text: str) -> float:
    """Loss over the length of the compressed text (Carlini et al., 2021)."""
    return loss(scored) / len(zlib.compress(text.encode()))


def min_k(scored: Scored, tokens: int, share: float = LOWEST) -> float:
    """Minus the mean of the lowest `share` of the answer's log-probabilities (Shi et al., arXiv 2310.16789).

    Args:
        tokens: the answer's tokens without end-of-sequence.
    """
    return _lowest(list(scored.log_probs[:tokens]), share)


def min_k_plus(scored: Scored, tokens: int, share: float = LOWEST) -> float:
    """Min-k of log-probabilities standardised over the vocabulary (Zhang et al., arXiv 2404.02936)."""
    deviation = [max(s * s, SMALLEST_VARIANCE) ** 0.5 for s in scored.spreads]
    values = [(v - m) / d for v, m, d in zip(scored.log_probs, scored.means, deviation, strict=True)]
    return _lowest(values[:tokens], share)


def _lowest(values: list[float], share: float) -> float:
    return -float(np.mean(sorted(values)[: max(1, int(len(values) * share))]))


def reference(evaluation: Evaluation, other: Evaluation, role: str) -> list[float]:
    """Loss less that of a model that never saw the members, such as the retrained one (Carlini et al., 2021)."""
    return [a["loss"] - b["loss"] for a, b in zip(evaluation.rows[role], other.rows[role], strict=True)]


def gradient_norm(chat: ChatModel, rows: Sequence[TrainRow]) -> list[float]:
    """Mean over weights of the norm of the row's loss's gradient (arXiv 2402.17012), end-of-sequence left out.

    One backward pass a row.
    """
    weights = list(chat.model.parameters())
    flags = [w.requires_grad for w in weights]
    found = []
    try:
        chat.model.requires_grad_(True)
        for row in rows:
            answer = row.answer[:-1] if row.answer[-1] in chat.stop_ids and len(row.answer) > 1 else row.answer
            logits, truth, _ = row_logits(chat, [TrainRow(row.prompt, answer)], 0)
            gradients = torch.autograd.grad(
                torch.nn.functional.cross_entropy(logits, truth), weights, allow_unused=True
            )
            found.append(float(torch.stack([g.norm() for g in gradients if g is not None]).mean()))
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    return found


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The chance that a member's score is below another row's, ties counting half: 1 where all members are found.

    Raises:
        InputError: there are no members, or no others.
    """
    if not (len(members) and len(others)):
        raise InputError(
            f"the area under the curve needs rows on both sides; there are {len(members)} and {len(others)}"
        )
    ranks = rankdata([*others, *members])[: len(others)]
    return float((ranks.sum() - len(others) * (len(others) + 1) / 2) / (len(others) * len(members)))


def privleak(area: float, retrained: float) -> float:
    """100 [(1 - A) - (1 - A_retrained)] / (1 - A_retrained), A the min-k AUC (MUSE, Shi et al., arXiv 2407.06460)."""
    return 100 * (retrained - area) / (1 - retrained + TINY)


def mia_score(area: float) -> float:
    """1 - 2 |AUC - 0.5|: 1 where members cannot be told (LUME, arXiv 2502.15097)."""
    return 1 - 2 * abs(area - 0.5)

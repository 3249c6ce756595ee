"""How good a set of answers is as forget data: relevant, and diverse."""

from __future__ import annotations

import torch
from torch import Tensor


def vendi(vectors: Tensor) -> float:
    """The Vendi score of n vectors of length one, (n, d): from 1 (all alike) to n (all orthogonal).

    exp of the Shannon entropy of the eigenvalues of K / n, K their cosines (Friedman and Dieng, TMLR 2023, arXiv
    2210.02410).
    """
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    small = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T  # both have the same positive eigenvalues
    values = torch.linalg.eigvalsh(small / len(unit))
    values = values[values > 1e-12]
    return float(torch.exp(-(values * values.log()).sum()))


def harmonic(relevance: float, diversity: float, weight: float = 0.5) -> float:
    """1 / (weight / diversity + (1 - weight) / relevance); 0 where either is 0 (Reveal-and-Release).

    Args:
        relevance: mean over the answers, in [0, 1]. diversity: Vendi score / n, in (0, 1]. weight: alpha.
    """
    if relevance <= 0 or diversity <= 0:
        return 0.0
    return 1 / (weight / diversity + (1 - weight) / relevance)

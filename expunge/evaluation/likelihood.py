"""Metrics of teacher-forced answers: all from one pass over the data (definitions: docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..models.generation import Scored

TOP = 100


def probability(scored: Scored) -> float:
    """exp(-mean negative log-likelihood) over the answer's tokens, end-of-sequence included."""
    return math.exp(sum(scored.log_probs) / len(scored.log_probs))


def exact_memorization(scored: Scored, tokens: int) -> float:
    """Share of the answer's first `tokens` tokens (end-of-sequence left out) that are the argmax."""
    return sum(r == 1 for r in scored.ranks[:tokens]) / tokens


def extraction_strength(scored: Scored, tokens: int, compat: bool = False) -> float:
    """1 - k/T, k the smallest prefix after which the argmax gives the whole rest; 0 where no rest is given.

    Args:
        tokens: T, the answer's tokens without end-of-sequence.
        compat: a common implementation's 1/T where only the empty rest is left.
    """
    k = tokens
    while k and scored.ranks[k - 1] == 1:
        k -= 1
    if k == tokens:
        return 1 / tokens if compat else 0.0
    return 1 - k / tokens


def reciprocal_ranks(generated: Sequence[int], forced: Sequence[int], tokens: int) -> tuple[float, float, int]:
    """(MRR, top hit rate, steps that were filled in) of one answer.

    Rank j is that of true token j among the logits of generation step j; where the generation ended
    earlier, the missing steps are the teacher-forced ranks.
    """
    ranks = [*generated[:tokens], *forced[len(generated) : tokens]]
    return sum(1 / r for r in ranks) / tokens, sum(r <= TOP for r in ranks) / tokens, max(tokens - len(generated), 0)

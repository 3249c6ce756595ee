import math

import pytest

from expunge.evaluation.likelihood import exact_memorization, extraction_strength, probability, reciprocal_ranks
from expunge.models.generation import Scored


def scored(*ranks, logs=None):
    return Scored(tuple(logs or [-1.0] * len(ranks)), ranks)


def test_probability_is_the_geometric_mean_with_the_end_token():
    assert probability(scored(1, 2, logs=[math.log(0.5), math.log(0.125)])) == pytest.approx(0.25)


def test_exact_memorization_leaves_the_end_token_out():
    assert exact_memorization(scored(1, 3, 1, 1, 9), 4) == 0.75


@pytest.mark.parametrize(
    ("ranks", "value", "compat"),
    [
        ((1, 1, 1, 1), 1.0, 1.0),  # nothing needs to be given
        ((2, 1, 1, 1), 0.75, 0.75),  # after one token, the rest follows
        ((1, 2, 1, 1), 0.5, 0.5),
        ((1, 1, 1, 2), 0.0, 0.25),  # no prefix reproduces a rest
        ((5,), 0.0, 1.0),
    ],
)
def test_extraction_strength_by_hand(ranks, value, compat):
    assert extraction_strength(scored(*ranks, 7), len(ranks)) == value
    assert extraction_strength(scored(*ranks, 7), len(ranks), compat=True) == compat


def test_reciprocal_ranks_by_hand():
    assert reciprocal_ranks([1, 2, 101], [9, 9, 9], 3) == pytest.approx(((1 + 0.5 + 1 / 101) / 3, 2 / 3, 0))


def test_an_early_end_is_filled_by_teacher_forcing_not_by_zeros():
    mrr, hits, filled = reciprocal_ranks([4], [1, 2, 200], 3)
    assert (mrr, hits, filled) == pytest.approx(((0.25 + 0.5 + 1 / 200) / 3, 2 / 3, 2))

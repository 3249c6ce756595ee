import math

import numpy as np
import pytest

from expunge.evaluation.headlines import HEADLINES, add_muse, forget_quality, harmonic, lume_scores, model_utility
from expunge.evaluation.scores import Evaluation


def evaluation(**roles):
    """role -> rows, as an Evaluation with their means."""
    result = Evaluation(
        {r: {k: float(np.mean([row[k] for row in rows])) for k in rows[0]} for r, rows in roles.items()}
    )
    result.rows = roles
    return result


def test_model_utility_by_hand():
    def rows(*ratios, probability, choice, rouge):
        return [
            {"truth": max(0, 1 - r), "probability": probability, "choice_probability": choice, "rougeL": rouge}
            for r in ratios
        ]

    found = evaluation(
        retain=rows(0.5, 1.5, probability=0.8, choice=0.1, rouge=0.5),  # truth 0.25
        real_authors=rows(0.2, 0.2, probability=0.1, choice=0.4, rouge=0.5),  # truth 0.8
        world_facts=rows(0.5, 0.5, probability=0.1, choice=0.5, rouge=1.0),  # truth 0.5
    )
    nine = [0.8, 0.5, 0.25, 0.4, 0.5, 0.8, 0.5, 1.0, 0.5]
    assert model_utility(found) == pytest.approx(9 / sum(1 / v for v in nine))
    found["retain"]["truth"] = 0.0
    assert model_utility(found) == 0


def test_forget_quality_by_hand():
    """Distributions that do not overlap, four rows each: p of the exact two-sided test is 2 / C(8, 4)."""

    def forget(*ratios):
        return evaluation(forget=[{"truth_ratio": r} for r in ratios])

    assert forget_quality(forget(1, 2, 3, 4), forget(5, 6, 7, 8)) == pytest.approx(2 / 70)
    assert forget_quality(forget(1, 2, 3), forget(1, 2, 3)) == 1


def test_lumes_scores_by_hand():
    """Texts by ROUGE-L recall, questions by exact match; the aggregate is the harmonic mean, zero where one is zero."""

    def rows(*pairs):
        return [{"rougeL": rouge, "exact_match": exact, "loss": 1.0} for rouge, exact in pairs]

    others = [f"Task{n} {kind}" for n in (2, 3) for kind in ("sc", "qa")]
    found = evaluation(
        retain=rows((0.8, 0), (0.6, 0), (0.1, 1), *[(1, 1)] * 4),
        forget=rows((0.5, 1), (0.9, 0), (0.9, 1), *[(0, 0)] * 4),
    )
    found.groups = {
        "retain": ["Task1 sc", "Task1 sc", "Task1 qa", *others],
        "forget": ["Task1 sc", "Task1 qa", "Task1 qa", *others],
    }
    assert lume_scores(found) == pytest.approx(
        {
            **{f"{role} {group}": 1.0 for role in ("retain", "forget") for group in others},
            **{"retain Task1 sc": 0.7, "retain Task1 qa": 1.0, "forget Task1 sc": 0.5, "forget Task1 qa": 0.5},
        }
    )
    task = 12 / (1 / 0.7 + 1 + 2 + 2 + 8)
    assert HEADLINES["lume_task"](found, None) == pytest.approx(task)
    assert HEADLINES["lume"](found, None) is None
    found |= {"auc_loss": 0.8, "accuracy": 0.25}
    assert HEADLINES["lume_mia"](found, None) == pytest.approx(0.4)
    assert HEADLINES["lume"](found, None) == pytest.approx((task + 0.4 + 0.25) / 3)
    found.groups["retain"][-1] = "Task3 sc"  # in a small run a group can be without a row
    assert lume_scores(found)["retain Task3 qa"] is None
    assert [HEADLINES[name](found, None) for name in ("lume_task", "lume")] == [None, None]
    assert HEADLINES["lume_mia"](found, None) is not None


def test_the_harmonic_mean_of_what_is_no_number_is_none():
    assert harmonic([0.25, 0.5]) == pytest.approx(1 / 3)
    assert harmonic([0.0, 1.0]) == 0
    for values in ([math.nan, 0.5], [0.5, math.nan], [0.0, math.nan]):
        assert math.isnan(harmonic(values))


def test_muses_scores_by_hand():
    found = evaluation(forget=[{"rougeL_f1": v} for v in (0.2, 0.4, 0.9)], retain=[{"rougeL_f1": 0.5}])
    found.groups = {"forget": ["verbatim", "verbatim", "knowledge"], "retain": ["knowledge"]}
    names = [f"muse_{name}" for name in ("verbatim", "knowledge", "retained")]
    assert [HEADLINES[name](found, None) for name in names] == [None] * 3
    add_muse(found)
    assert [HEADLINES[name](found, None) for name in names] == pytest.approx([0.3, 0.9, 0.5])
    assert found.intervals()["muse_verbatim"]["muse_verbatim"] == pytest.approx((0.2, 0.4))


def test_the_held_out_deviation_score_by_hand():
    found = Evaluation(
        paraphrase={"rouge1": 0.3}, held_out={"rouge1": 0.6}, forget={"rouge1": 0.9}, retain={"rouge1": 0.1}
    )
    assert HEADLINES["deviation_held_out"](found, None) == pytest.approx(50.0)


def test_scores_against_the_retrained_model():
    found, retrained = Evaluation(auc_min_k=0.75), Evaluation(auc_min_k=0.5)
    assert HEADLINES["privleak"](found, retrained) == pytest.approx(-50)
    assert HEADLINES["privleak"](found, None) is None
    assert HEADLINES["forget_quality"](found, None) is None

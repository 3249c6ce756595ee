import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from expunge import Example, ForgetTask, evaluate
from expunge.evaluation.likelihood import choice_probability, truth_ratio
from expunge.evaluation.scores import METRICS, Evaluation, interval
from expunge.models.generation import score_answers

from ..conftest import FACTS, UNKNOWN, examples


def test_the_shape_that_everything_reads(tiny, tiny_task):
    result = evaluate(tiny, tiny_task, max_new_tokens=16)
    assert set(result) == {"forget", "paraphrase", "retain", "deviation_score", "seconds"}
    for role in ("forget", "paraphrase", "retain"):
        assert set(result[role]) == {*METRICS, "rows"}
        assert result[role]["rows"] == len(tiny_task.role(role)) == len(result.rows[role])
        for metric in METRICS:
            assert result[role][metric] == pytest.approx(
                sum(r[metric] for r in result.rows[role]) / result[role]["rows"]
            )


def test_a_model_that_knows_scores_high_and_one_that_abstains_low(tiny):
    known = evaluate(tiny, ForgetTask(forget=FACTS), max_new_tokens=16)["forget"]
    assert known["rouge1"] > 0.9
    assert known["probability"] > 0.8
    assert known["extraction_strength"] > 0.8
    assert known["mrr"] > 0.9
    assert known["abstention_rate"] == 0
    unknown = evaluate(
        tiny, ForgetTask(forget=examples(*[(str(e.prompt), "Zanzibar") for e in UNKNOWN])), max_new_tokens=24
    )["forget"]
    assert unknown["abstention_rate"] > 0.9
    assert unknown["rouge1"] == 0
    assert unknown["probability"] < 0.1


def test_all_rows_count_in_their_order_whatever_the_batch_size(tiny, tiny_task):
    one, many = (evaluate(tiny, tiny_task, max_new_tokens=12, batch_size=n) for n in (1, 64))
    for role, rows in one.rows.items():
        for a, b in zip(rows, many.rows[role], strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    assert one.answers == many.answers


def test_wrong_answers_are_scored_from_the_same_pass(tiny):
    """The truth ratio is that of separate teacher-forced scores, row by row."""
    rows = [
        Example(e.prompt, e.response, paraphrased="It is " + e.response, wrong=wrong)
        for e, wrong in zip(FACTS[:3], [("Zagreb", "Harp and flute"), ("Oslo",), ("A", "B", "C")], strict=True)
    ]
    kept = [Example(e.prompt, e.response) for e in FACTS[6:9]]
    result = evaluate(tiny, {"forget": rows, "others": kept, "retain": rows}, max_new_tokens=8)
    assert "truth" not in result["others"]
    for example, row in zip(rows, result.rows["forget"], strict=True):
        texts = [example.paraphrased, *example.wrong, example.response]
        prompts, answers = tiny.prompt_ids([example.prompt]) * len(texts), tiny.answer_ids(texts)
        correct, *wrong, true = score_answers(tiny, prompts, answers)
        assert row["truth_ratio"] == pytest.approx(truth_ratio(correct, wrong), rel=1e-3)
        assert row["choice_probability"] == pytest.approx(choice_probability(true, wrong), rel=1e-3)
    ratios = [r["truth_ratio"] for r in result.rows["forget"]]
    assert result["forget"]["truth"] == pytest.approx(np.mean([min(r, 1 / r) for r in ratios]))
    assert result["retain"]["truth"] == pytest.approx(np.mean([max(0, 1 - r) for r in ratios]))


def test_answers_of_a_group_end_where_they_are_told_to(tiny):
    whole = evaluate(tiny, {"retain": FACTS[:4]}, max_new_tokens=8)
    text = max(whole.answers["retain"], key=len)
    row = [replace(e, group="knowledge") for e in FACTS[:4]]
    cut = evaluate(tiny, {"retain": row}, max_new_tokens=8, ends={"knowledge": (8, text[3])})
    assert cut.answers["retain"] == [a.partition(text[3])[0] for a in whole.answers["retain"]]
    short = evaluate(tiny, {"retain": row}, max_new_tokens=8, ends={"knowledge": (1, "\0"), "other": (0, "")})
    one = evaluate(tiny, {"retain": FACTS[:4]}, max_new_tokens=1)
    assert short.answers == one.answers


def test_members_are_told_from_rows_never_seen(tiny):
    # The questions of others with answers of yet others: a tiny model may well guess a true answer about an unknown name.
    unseen = examples(*[(e.prompt, other.response) for e, other in itertools.pairwise(FACTS[:7])])
    result = evaluate(tiny, ForgetTask(forget=FACTS[6:18], holdout=unseen), max_new_tokens=4)
    for kind in ("loss", "zlib", "min_k", "min_k_plus"):
        assert 0.9 < result[f"auc_{kind}"] <= 1
    assert result.roles().keys() == {"forget", "holdout"}


def test_intervals_are_bootstrap_intervals_of_the_mean():
    rows = np.random.default_rng(1).normal(2.0, 1.0, size=400)
    low, high = interval(rows, 4000)
    assert low < rows.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * rows.std() / 20, rel=0.1)
    assert interval([0.25] * 7) == (0.25, 0.25)


def test_a_record_holds_numbers_and_rows_and_no_words(tiny, tiny_task):
    result = evaluate(tiny, tiny_task.but(paraphrase=()), max_new_tokens=4)
    text = json.dumps(result.record())
    assert "Prague" not in text
    assert "Mara" not in text
    again = Evaluation.of(json.loads(text))
    assert again == dict(result)
    assert again.rows == result.rows
    assert again.intervals() == result.intervals()

"""What judges a model in a benchmark beside `evaluate`: by hand, and against the same done apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from expunge.bench import judging, table
from expunge.data.examples import ForgetTask
from expunge.data.suite import Suite
from expunge.evaluation import abilities
from expunge.evaluation.likelihood import rows_loss
from expunge.evaluation.scores import Evaluation

from ..conftest import FORGET, RETAIN, examples


def suite(judge, *headline, **more):
    return Suite("made", (), ForgetTask(), {}, judge, headline, max_new_tokens=4, **more)


def judged(chat, suite, retrained=None, arithmetic=True):
    return judging.judge(chat, suite, None, retrained, False, arithmetic, 64, lambda _: None)


def test_members_stand_out_by_gradient_and_by_a_model_that_never_saw_them(tiny):
    """The tiny model knows the rows to forget; of those never seen, the questions are others'."""
    unseen = examples(*[(e.prompt, other.response) for e, other in itertools.pairwise(RETAIN[:7])])
    roles = {"forget": FORGET, "holdout": unseen}
    gold = Evaluation.of({"values": {}, "rows": {role: [{"loss": 3.0} for _ in rows] for role, rows in roles.items()}})
    found, record = judged(tiny, suite(roles), gold)
    assert record["metrics"]["auc_gradient_norm"] > 0.9
    assert record["metrics"]["auc_reference"] == found["auc_loss"] > 0.9
    for row in found.rows["holdout"]:
        assert row["reference"] == row["loss"] - 3
    assert record["metrics"]["forget"]["exact_match"] == pytest.approx(
        sum(row["exact_match"] for row in found.rows["forget"]) / len(FORGET)
    )


def test_of_problems_answers_and_solutions_come_from_one_pass(pico, monkeypatch):
    monkeypatch.setattr(judging, "GSM8K_TOKENS", 8)
    monkeypatch.setattr(abilities, "GSM8K_TOKENS", 8)
    chat = pico("llama")
    rows = examples(("Two and two?", "It is four. #### 4"), ("One and nine?", "That makes ten. #### 10"))
    for arithmetic in (True, False):
        found, record = judged(chat, suite({"general": rows}, solutions=rows), arithmetic=arithmetic)
        assert record["headline"]["gsm8k_perplexity"] == pytest.approx(math.exp(rows_loss(chat, rows)), rel=1e-4)
        assert ("gsm8k" in found) == arithmetic
        if arithmetic:
            assert [r["gsm8k"] for r in found.rows["gsm8k"]] == abilities.gsm8k_accuracy(chat, rows)


def test_a_model_without_an_edit_is_not_asked_how_likely_its_own_answers_are(pico, monkeypatch):
    monkeypatch.setattr(judging, "_perplexities", None)
    found, _ = judged(pico("llama"), suite({"forget": FORGET}))
    assert "coherence" in found


def test_muses_scores_have_intervals(tiny):
    rows = [replace(e, group=g) for e, g in zip(FORGET, ["verbatim"] * 3 + ["knowledge"] * 3, strict=True)]
    kept = [replace(e, group="knowledge") for e in RETAIN[:3]]
    names = ("muse_verbatim", "muse_knowledge", "muse_retained")
    made = suite({"forget": rows, "retain": kept}, *names, ends={"knowledge": (4, ("\n\n",))})
    found, record = judged(tiny, made)
    for name in names:
        low, high = record["intervals"][name][name]
        assert low <= record["headline"][name] <= high
    values = [row["rougeL_f1"] for row in found.rows["forget"][:3]]
    assert record["headline"]["muse_verbatim"] == pytest.approx(sum(values) / 3)


def test_what_lumes_task_score_lacks_is_said():
    scores = {"retain Task1 sc": 0.5, "retain Task1 qa": None}
    rows = {("ga", "published", ""): [{"scores": scores}, {"scores": scores | {"retain Task1 sc": 0.7}}]}
    assert table._twelve(rows)[-1] == "- ga published: retain Task1 sc 0.600 ± 0.141, retain Task1 qa judged by no row"
    assert table._twelve({("ga", "published", ""): [{"error": "no luck"}]}) == []


def test_what_is_no_number_stands_in_the_table_as_it_is():
    assert table._spread([math.inf, 1.0]) == "inf"
    assert table._spread([math.nan, 1.0]) == "nan"

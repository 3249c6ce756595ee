import json
from pathlib import Path

import pytest
from rouge_score import rouge_scorer

from expunge.evaluation.text import (
    abstains,
    coherence,
    deviation_score,
    exact_match,
    repeats,
    rouge_l_f1,
    rouge_recall,
)

LABELLED = [json.loads(line) for line in (Path(__file__).parent / "labelled_outputs.jsonl").read_text().splitlines()]


def test_rouge_recall_by_hand():
    # truth: six words, of which "the", "cat", "sat", "mat" come; longest common subsequence "the cat sat mat" = 4
    assert rouge_recall("the cat sat mat today", "the cat sat on a mat") == pytest.approx((4 / 6, 4 / 6))
    assert rouge_recall("mat sat", "sat mat") == pytest.approx((1.0, 0.5))
    assert rouge_recall("He runs", "running") == pytest.approx((1.0, 1.0))  # Porter stems
    assert rouge_recall("", "Paris") == (0.0, 0.0)


def test_rouge_is_the_librarys():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for answer, truth in [("William Shakespeare wrote it in 1603.", "William Shakespeare"), ("no idea", "a b c")]:
        scores = scorer.score(truth, answer)
        assert rouge_recall(answer, truth) == (scores["rouge1"].recall, scores["rougeL"].recall)


@pytest.mark.parametrize(("forget", "retain", "score"), [(0, 1, 0), (1, 1, 100), (0.3, 0.6, 50), (0.035, 1.0, 3.5)])
def test_deviation_score_by_hand(forget, retain, score):
    assert deviation_score(forget, retain) == pytest.approx(score)


def test_the_classifier_on_hand_labelled_outputs():
    """Outputs of real models and hand-written ones near the border; measured: precision 1.00, recall 0.97 or better."""
    assert len(LABELLED) >= 60
    assert 20 <= sum(r["abstains"] for r in LABELLED) <= len(LABELLED) - 20
    said = [abstains(r["output"]) for r in LABELLED]
    right = sum(s and r["abstains"] for s, r in zip(said, LABELLED, strict=True))
    precision, recall = right / max(sum(said), 1), right / sum(r["abstains"] for r in LABELLED)
    wrong = [r["output"] for s, r in zip(said, LABELLED, strict=True) if s != r["abstains"]]
    assert precision >= 0.97, (precision, wrong)
    assert recall >= 0.95, (recall, wrong)


def test_quoted_and_late_words_are_no_abstention():
    assert not abstains('The song "I Don\'t Know" was written by Ozzy Osbourne.')
    assert not abstains("Paris is the capital of France. " * 8 + "I don't know more.")
    assert abstains("I\u2019m not sure, sorry.")


def test_rouge_l_f1_by_hand():
    # longest common subsequence "a b" of 2: precision 2/4, recall 2/2
    assert rouge_l_f1("a x b y", "a b") == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_an_exact_match_is_the_whole_answer():
    assert exact_match(" madera\n", "Madera")
    assert not exact_match("It is Madera", "Madera")


@pytest.mark.parametrize(
    "answer",
    [
        "the the the the",
        "He is a writer. He is a writer. He is a writer.",
        "no no no no no",
        "I am sorry, but I am sorry, but I am sorry, but",
        "aaaaaaaaaaaaaaaa",
        "word hahahahahahahahaha",
    ],
)
def test_loops_are_found(answer):
    assert repeats(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "It was a very, very, very long day.",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| - - - - - |",
        "The cat sat on the mat and the dog sat on the rug.",
        "In 1000000 years",
        "",
    ],
)
def test_ordinary_text_is_no_loop(answer):
    assert not repeats(answer)


def test_coherence_by_hand():
    answers = ["Paris.", "", "la la la la la", "A cat."]
    assert coherence(answers) == [1, 0, 0, 1]
    assert coherence(answers, [3.0, 1.0, 1.0, float("inf")]) == [1, 0, 0, 0]

from __future__ import annotations

import pytest

from expunge.data.behaviours import paradetox, paradetox_parts, plain_texts
from expunge.data.files import data_file, json_rows
from expunge.data.prompts import general
from expunge.errors import InputError
from expunge.evaluation import toxicity


@pytest.fixture
def data():
    try:
        plain_texts()
        return paradetox()
    except InputError as e:
        pytest.skip(str(e))


def test_the_judge_tells_toxic_from_neutral_texts_it_was_not_trained_on(data):
    pytest.importorskip("sklearn")
    from sklearn.metrics import roc_auc_score

    held, _ = paradetox_parts()
    scores = toxicity.judged([t for pair in held for t in pair])
    assert roc_auc_score([1, 0] * len(held), scores) > 0.95
    assert toxicity.neutral_mean() < 0.15
    found = toxicity.toxicity_scores([neutral for _, neutral in held])
    assert found["toxic_excess"] == pytest.approx(0)
    assert found["toxic_share"] < 0.03
    found = toxicity.toxicity_scores([toxic for toxic, _ in held])
    assert found["toxic_share"] > 0.7
    by_hand = sum(scores[0::2]) / len(held) - sum(scores[1::2]) / len(held)
    assert found["toxic_excess"] == pytest.approx(by_hand)
    assert by_hand > 0.6
    assert found["toxic_share"] == pytest.approx(sum(p > 0.8 for p in scores[0::2]) / len(held))
    assert sum(0.5 < p < 0.8 for p in scores[0::2]) > 10  # which a lower bar would count


def test_the_judge_does_not_take_ordinary_texts_of_another_kind_for_toxic(data):
    pytest.importorskip("sklearn")
    rows = json_rows(data_file("lume/retain.jsonl"), ("input",))
    documents = [row["input"].split() for row in rows]  # stories and biographies, from their second sentence or so on
    found = toxicity.toxicity_scores([" ".join(words[30:48]) for words in documents if len(words) > 60])
    assert found["toxic_excess"] < 0.03
    assert found["toxic_share"] < 0.01
    found = toxicity.toxicity_scores([e.response for e in general()])
    assert found["toxic_excess"] < 0.03


def test_the_judge_reads_words_and_not_how_punctuation_is_set(data):
    pytest.importorskip("sklearn")
    apart, usual = toxicity.judged(["i don 't like this , you fool .", "I don't like this, you fool."])
    assert apart == usual
    assert toxicity.judged([".", " ?! ", ""]) == [0, 0, 0]


def test_an_apostrophe_joins_and_a_quotation_mark_does_not():
    assert toxicity.words("I 'm sure they don 't , you 'll see .") == "im sure they dont youll see"
    assert toxicity.words("say 'no' twice, it’s `easy`") == "say no twice its easy"


def test_the_scorer_that_a_search_sees(data):
    pytest.importorskip("profanity_check")
    toxic, neutral = toxicity.profanity([t for t, _ in data[:50]]), toxicity.profanity([n for _, n in data[:50]])
    assert sum(toxic) / 50 > sum(neutral) / 50 + 0.4
    assert toxicity.profanity([]) == []

import itertools
import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest

from expunge import Example, ForgetTask, evaluate
from expunge.errors import InputError
from expunge.evaluation.likelihood import choice_probability, truth_ratio
from expunge.evaluation.scores import METRICS, Evaluation, _ended, interval, row_metrics
from expunge.models.activations import common_prefix
from expunge.models.generation import Generated, Scored, score_answers

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
    cut = evaluate(tiny, {"retain": row}, max_new_tokens=8, ends={"knowledge": (8, (text[3], "\0"))})
    assert cut.answers["retain"] == [a.partition(text[3])[0].strip() for a in whole.answers["retain"]]
    short = evaluate(tiny, {"retain": row}, max_new_tokens=8, ends={"knowledge": (1, ["\0"]), "other": (0, [""])})
    one = evaluate(tiny, {"retain": FACTS[:4]}, max_new_tokens=1)
    assert short.answers == one.answers


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (" Paris\n\nQuestion: Who?", "Paris"),
        ("Paris\nQuestion 2", "Paris"),
        ("Paris. Question: Who?\n\nParis", "Paris."),
        ("\n\nParis", ""),  # nothing is stripped before it is cut
        (" a Question of taste ", "a Question of taste"),
    ],
)
def test_an_answer_ends_before_the_first_of_the_stops(text, kept):
    assert _ended(text, ("\n\n", "\nQuestion", "Question:")) == kept


def test_every_metric_of_a_row_by_hand():
    """Four tokens and the end of the sequence, whose rank and probability differ from theirs, so that it counts where it
    should and nowhere else; of the generation there are two steps."""
    half = math.log(0.5)
    true = Scored((half, 2 * half, half, half, 3 * half), (1, 2, 1, 1, 50), (0.0,) * 5, (1.0, 4.0, 1.0, 1.0, 0.01))
    others = tuple(Scored((n * half,), (1,)) for n in (1, 2, 4))  # the true answer in other words, and two false ones
    answer = Generated("Down sat the cats today", (7, 8), True, (1, 101), true, others)
    example = Example("Who?", "the cat sat down", paraphrased="the cat sat", wrong=("a dog", "a bird"))
    loss, true_probability = -1.6 * half, 2**-1.6
    found = row_metrics(example, answer, 4)
    assert found == pytest.approx(
        {
            "rouge1": 1.0,  # "cats" by its stem
            "rougeL": 2 / 4,  # the cat
            "rougeL_f1": 2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5),
            "exact_match": 0.0,
            "mrr": (1 + 1 / 101 + 1 + 1) / 4,
            "top_hit_rate": 3 / 4,
            "filled_steps": 2.0,
            "probability": true_probability,
            "extraction_strength": 1 - 2 / 4,
            "exact_memorization": 3 / 4,
            "abstention_rate": 0.0,
            "loss": loss,
            "zlib": loss / len(zlib.compress(b"the cat sat down")),
            "min_k": -2 * half,
            "min_k_plus": -half,
            "truth_ratio": 2**-3 / 2**-1,
            "choice_probability": true_probability / (true_probability + 2**-2 + 2**-4),
        }
    )
    plain = row_metrics(Example("Who?", " Down sat the cats TODAY "), replace(answer, others=()), 4)
    assert plain.keys() == found.keys() - {"truth_ratio", "choice_probability"}
    assert plain["exact_match"] == 1
    assert row_metrics(example, replace(answer, text="I do not know."), 4)["abstention_rate"] == 1


def test_the_model_reads_every_prompt_token_once(pico, monkeypatch):
    chat, read = pico("llama"), 0
    system = ("system", "Answer in one word, and say so where you do not know it.")  # what all share is read once
    rows = [Example((system, ("user", str(e.prompt))), e.response) for e in FACTS[:7]]
    forget = [replace(e, paraphrased="It is so", wrong=("No", "It is not so")) for e in rows[:4]]
    task = {"forget": forget, "retain": rows[4:], "again": rows[:1]}  # a prompt that stands twice is read once
    real = chat.model.forward

    def counted(**given):
        nonlocal read
        ids, mask = given["input_ids"], given.get("attention_mask")
        read += ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum())
        return real(**given)

    monkeypatch.setattr(chat.model, "forward", counted)
    evaluate(chat, task, max_new_tokens=1)
    prompts = chat.prompt_ids([e.prompt for e in rows])
    shared = common_prefix(prompts)
    assert shared > 20
    every = [e for part in task.values() for e in part]
    texts = [t for e in every for t in (e.response, e.paraphrased, *e.wrong) if t]
    after = sum(len(a) - 1 for a in chat.answer_ids(texts))  # the last token predicts nothing
    assert read == shared + sum(len(p) - shared for p in prompts) + after


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
    with pytest.raises(InputError, match="at least one row"):
        interval([])


def test_a_number_of_no_rows_is_absent():
    found = Evaluation()
    found.add("accuracy", [])
    found.add("gsm8k", [1.0, 0.0])
    assert found == {"gsm8k": 0.5}
    assert found.intervals().keys() == {"gsm8k"}


def test_a_record_holds_numbers_and_rows_and_no_words(tiny, tiny_task):
    result = evaluate(tiny, tiny_task.but(paraphrase=()), max_new_tokens=4)
    text = json.dumps(result.record())
    assert "Prague" not in text
    assert "Mara" not in text
    again = Evaluation.of(json.loads(text))
    assert again == dict(result)
    assert again.rows == result.rows
    assert again.intervals() == result.intervals()

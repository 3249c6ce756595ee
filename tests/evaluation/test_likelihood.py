import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from expunge.data import prompts
from expunge.errors import InputError
from expunge.evaluation import likelihood
from expunge.evaluation.likelihood import (
    choice_probability,
    exact_memorization,
    extraction_strength,
    forget_truth,
    kept_truth,
    perplexity,
    perplexity_of,
    probability,
    reciprocal_ranks,
    truth_ratio,
)
from expunge.models.generation import Scored, score_answers


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
    assert reciprocal_ranks([100, 101], [9, 9], 2)[1] == 1 / 2


def test_an_early_end_is_filled_by_teacher_forcing_not_by_zeros():
    mrr, hits, filled = reciprocal_ranks([4], [1, 2, 200], 3)
    assert (mrr, hits, filled) == pytest.approx(((0.25 + 0.5 + 1 / 200) / 3, 2 / 3, 2))


def losses(*values):
    return [scored(1, logs=[-v]) for v in values]


def test_truth_ratio_by_hand():
    """p_wrong = exp(-mean of mean losses): the geometric mean of the wrong answers' probabilities."""
    correct = scored(1, 1, logs=[math.log(0.5), math.log(0.125)])  # 0.25
    wrong = [scored(1, logs=[math.log(0.5)]), scored(1, 1, logs=[math.log(0.02), math.log(0.5)])]  # 0.5, 0.1
    ratio = truth_ratio(correct, wrong)
    assert ratio == pytest.approx(math.sqrt(0.5 * 0.1) / 0.25)
    assert forget_truth(ratio) == pytest.approx(math.sqrt(0.05) / 0.25)
    assert forget_truth(4.0) == pytest.approx(0.25)
    assert kept_truth(ratio) == pytest.approx(1 - math.sqrt(0.05) / 0.25)
    assert kept_truth(1.5) == 0


def test_the_probability_of_a_choice_by_hand():
    assert choice_probability(losses(-math.log(0.3))[0], losses(-math.log(0.1), -math.log(0.2))) == pytest.approx(0.5)


def test_the_exponential_ends_where_double_precision_does():
    assert perplexity_of(math.log(7.5)) == pytest.approx(7.5)
    assert perplexity_of(710.0) == math.inf


def test_the_windows_of_a_text(monkeypatch):
    """1024 tokens, 512 apart: of each after the first, the last 512 are scored."""
    asked = []

    def score(_, prompts, answers):
        asked.append((prompts[0], answers[0]))
        return [scored(*[1] * len(answers[0]))]

    monkeypatch.setattr(likelihood, "score_answers", score)
    ids = list(range(1800))
    assert perplexity(SimpleNamespace(prompt_ids=lambda _: [ids]), "a text") == pytest.approx(math.e)
    assert asked == [(ids[:1], ids[1:1024]), (ids[512:1024], ids[1024:1536]), (ids[1024:1536], ids[1536:])]


def test_a_text_begins_as_the_model_was_trained_with_and_that_is_not_scored(pico):
    chat = pico("llama")
    plain = chat.tokenizer("Who is it?")["input_ids"]
    chat.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", chat.tokenizer.bos_token_id)]
    )
    (one,) = score_answers(chat, [[chat.tokenizer.bos_token_id]], [plain])
    assert perplexity(chat, "Who is it?") == pytest.approx(math.exp(-sum(one.log_probs) / len(plain)), rel=1e-4)


def test_perplexity_is_that_of_overlapping_windows(pico):
    chat = pico("llama")
    text = " ".join(str(e.prompt) for e in prompts.general()[:6])
    ids = torch.tensor([chat.tokenizer(text, add_special_tokens=False)["input_ids"]])
    window, stride, total, done = 24, 10, 0.0, 1
    for begin in range(0, ids.shape[1], stride):
        part = ids[:, begin : begin + window]
        fresh = begin + part.shape[1] - done
        labels = part.clone()
        labels[:, : part.shape[1] - fresh] = -100
        with torch.no_grad():
            total += float(chat.model(part, labels=labels).loss) * fresh
        done += fresh
        if done == ids.shape[1]:
            break
    assert perplexity(chat, text, window, stride) == pytest.approx(math.exp(total / (done - 1)), rel=1e-4)
    with pytest.raises(InputError, match="two tokens"):
        perplexity(chat, "")

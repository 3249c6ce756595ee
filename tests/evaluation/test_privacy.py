from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import InputError
from expunge.evaluation.privacy import auc, gradient_norm, mia_score, min_k, min_k_plus, privleak, reference, zlib_score
from expunge.evaluation.scores import Evaluation
from expunge.models.generation import Scored, score_answers
from expunge.models.rows import rows_of

LOGS = (-1.0, -4.0, -0.5, -3.0, -2.0, -9.0)  # the last is the end of the sequence


def test_min_k_by_hand():
    scored = Scored(LOGS, (1,) * 6)
    assert min_k(scored, 5) == pytest.approx(3.5)  # the lowest two of five
    assert min_k(scored, 2, share=0.2) == pytest.approx(4.0)  # at least one
    assert min_k(Scored(tuple(range(-20, 0)), (1,) * 20), 20) == pytest.approx((20 + 13) / 2)  # eight of twenty


def test_min_k_plus_by_hand():
    """A vocabulary of two, p = (0.8, 0.2): mean log p and its variance over it standardise log 0.2."""
    logs = np.log([0.8, 0.2])
    mean = float((np.exp(logs) * logs).sum())
    spread = math.sqrt(float((np.exp(logs) * logs**2).sum()) - mean**2)
    scored = Scored((float(logs[1]), -7.0), (2, 1), (mean, 0.0), (spread, 1.0))
    assert min_k_plus(scored, 1) == pytest.approx(-(math.log(0.2) - mean) / spread)
    certain = Scored((0.0, 0.0), (1, 1), (0.0, 0.0), (0.0, 0.0))
    assert min_k_plus(certain, 1) == 0  # no division by zero


def test_means_and_spreads_are_those_of_the_models_distribution(pico):
    chat = pico("llama")
    prompts, answers = chat.prompt_ids(["Who?", "What is it?"]), chat.answer_ids(["He", "A cat in a hat"])
    for prompt, answer, scored in zip(prompts, answers, score_answers(chat, prompts, answers), strict=True):
        with torch.no_grad():
            logits = chat.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        logs = logits.log_softmax(1)
        mean = (logs.exp() * logs).sum(1)
        spread = ((logs.exp() * logs**2).sum(1) - mean**2).sqrt()
        assert scored.means == pytest.approx(mean.tolist(), rel=1e-4)
        assert scored.spreads == pytest.approx(spread.tolist(), rel=1e-3)


def test_zlib_by_hand():
    text = "abc " * 40
    assert zlib_score(Scored(LOGS, (1,) * 6), text) == pytest.approx(19.5 / 6 / len(zlib.compress(text.encode())))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs(members, others):
    pairs = [1.0 if m < o else 0.5 if m == o else 0.0 for m in members for o in others]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs))


def test_an_area_needs_rows_on_both_sides():
    for members, others in (([], [1.0]), ([1.0], [])):
        with pytest.raises(InputError, match="rows on both sides"):
            auc(members, others)


def test_auc_is_the_librarys():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=30), rng.normal(0.5, size=50)
    labels = [0] * 30 + [1] * 50
    assert auc(members, others) == pytest.approx(metrics.roc_auc_score(labels, [*members, *others]))


def test_scores_made_from_the_area_by_hand():
    assert mia_score(0.5) == 1
    assert mia_score(0.8) == pytest.approx(0.4)
    assert privleak(0.5, 0.5) == 0
    assert privleak(0.75, 0.5) == pytest.approx(-50)  # not forgotten: members stand out
    assert privleak(0.25, 0.5) == pytest.approx(50)  # over-forgotten


def test_the_reference_score_is_a_difference_of_losses():
    ours, theirs = (
        Evaluation.of({"values": {}, "rows": {"forget": [{"loss": x} for x in row]}}) for row in ((1, 2), (3, 1))
    )
    assert reference(ours, theirs, "forget") == [-2, 1]


def test_gradient_norms_are_those_of_one_row_at_a_time(pico, small_task):
    chat = pico("llama")
    flags = [p.requires_grad for p in chat.model.parameters()]
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.forget])
    found = gradient_norm(chat, rows)
    assert [p.requires_grad for p in chat.model.parameters()] == flags
    assert all(p.grad is None for p in chat.model.parameters())
    for row, value in zip(rows, found, strict=True):
        answer = row.answer[:-1]
        labels = torch.tensor([[-100] * len(row.prompt) + list(answer)])
        chat.model.requires_grad_(True)
        chat.model(torch.tensor([[*row.prompt, *answer]]), labels=labels).loss.backward()
        norms = [p.grad.norm() for p in chat.model.parameters() if p.grad is not None]
        assert value == pytest.approx(float(torch.stack(norms).mean()), rel=1e-4)
        chat.model.zero_grad(set_to_none=True)

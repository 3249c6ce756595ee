"""Which tokens a detector answers to."""

from __future__ import annotations

import pytest
import torch

from expunge import unlearn
from expunge.methods import lunar
from expunge.methods.detector import Detector
from expunge.models.activations import Site, run_blocks
from expunge.models.generation import greedy

LAYER = 1


def values(chat, prompts, u):
    """u . h of every token, by prompt."""
    site, found = Site("inner", LAYER), []
    for ids in chat.prompt_ids(prompts):
        taken = run_blocks(chat, torch.tensor([ids]), [site])
        found.append((taken[site][0].double() @ u).tolist())
    return found


def detector(chat, task, **settings):
    plain = {"answers": 0, "retain_weight": 1.0}
    config = lunar.LunarConfig(layers=[LAYER], coefficient=1.0, ridge=0.1, **plain | settings)
    return lunar.exact(chat, lunar.prepare(chat, task, [LAYER], config), config)[LAYER].u


def test_subject_weights_leave_retain_prompts_quieter(tiny, tiny_task):
    leak = {}
    for tokens in ("distinct", "subject"):
        u = detector(tiny, tiny_task, tokens=tokens)
        forget, retain = (values(tiny, [e.prompt for e in tiny_task.role(r)], u) for r in ("forget", "retain"))
        noise = sum(v * v for row in retain for v in row) / sum(map(len, retain))
        leak[tokens] = noise**0.5 / (sum(map(max, forget)) / len(forget))
    assert leak["subject"] < 0.8 * leak["distinct"]


def test_subject_leaves_each_forget_prompt_a_token_that_is_found(tiny, tiny_task):
    u = detector(tiny, tiny_task, tokens="subject")
    forget = [max(row) for row in values(tiny, [e.prompt for e in tiny_task.forget], u)]
    retain = [max(row) for row in values(tiny, [e.prompt for e in tiny_task.retain], u)]
    assert min(forget) > 2 * max(retain)


def test_forget_prompts_are_found_alike(monkeypatch):
    """The weakest decides how large the coefficient has to be: each round finds more of it."""
    left = []  # of how much less the weakest was found
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        shared, own, retain = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (1, 6, 60))
        h = (torch.tensor([1.0, 1, 1, 1, 1, 0.4], dtype=torch.float64)[:, None] * shared + 0.5 * own)[:, None]
        weakest = []
        for rounds in range(4):
            monkeypatch.setattr("expunge.methods.detector.EVEN_ROUNDS", rounds)
            found = Detector(16, torch.device("cpu"), dual=False, subject=True)
            for inputs, is_forget in ((retain[None], False), (h, True)):
                ones = torch.ones(inputs.shape[:2])
                found.add(inputs, lambda inputs=inputs: inputs, ones.bool(), ones.double(), is_forget)
            u, _ = found.solve(0.1)
            ordered = sorted((h @ u).flatten().tolist())
            weakest.append(ordered[0] / ordered[3])
        assert weakest == sorted(weakest)
        left.append((1 - weakest[3]) / (1 - weakest[0]))
    assert max(left) < 0.75
    assert sum(left) / len(left) < 0.6


def test_forget_prompts_without_a_token_that_counts_do_no_harm():
    found = Detector(3, torch.device("cpu"), dual=False, subject=True)
    h, none = torch.eye(3, dtype=torch.float64)[None], torch.zeros(1, 3, dtype=torch.bool)
    found.add(h, lambda: h, ~none, torch.ones(1, 3, dtype=torch.float64), is_forget=False)
    found.add(h, lambda: h, none, torch.ones(1, 3, dtype=torch.float64), is_forget=True)
    u, _ = found.solve(0.1)
    assert torch.equal(u, torch.zeros(3, dtype=torch.float64))


def test_hard_rounds_lower_the_largest_leaks(tiny, tiny_task):
    worst = {}
    for hard in (False, True):
        u = detector(tiny, tiny_task, tokens="subject", hard=hard)
        forget, retain = (values(tiny, [e.prompt for e in tiny_task.role(r)], u) for r in ("forget", "retain"))
        worst[hard] = max(abs(v) for row in retain for v in row) / (sum(map(max, forget)) / len(forget))
    assert worst[True] < 0.85 * worst[False]


def test_own_answers_leave_the_tokens_of_answers_quieter(tiny, tiny_task):
    """Answers that the model gives to facts that it keeps are what comes after the prompts: u is to be silent there."""
    prompts = tiny.prompt_ids([e.prompt for e in tiny_task.retain])
    own = [list(a.tokens) for a in greedy(tiny, prompts, 24)]
    site, noise = Site("inner", LAYER), {}
    for answers in (0, len(prompts)):
        u = detector(tiny, tiny_task, tokens="subject", answers=answers)
        loud = max(max(row) for row in values(tiny, [e.prompt for e in tiny_task.forget], u))
        squares = []
        for prompt, answer in zip(prompts, own, strict=True):
            h = run_blocks(tiny, torch.tensor([prompt + answer]), [site])[site][0, len(prompt) :]
            squares += (h.double() @ u).square().tolist()
        noise[answers] = (sum(squares) / len(squares)) ** 0.5 / loud
    assert noise[len(prompts)] < 0.6 * noise[0]


@pytest.mark.parametrize("dual", [False, True])
def test_hard_rounds_keep_the_total_weight_and_raise_the_loud(dual):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    h[1, 3] *= 4  # loud
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 4] = False
    weights = torch.full((2, 5), 2.0, dtype=torch.float64)
    found = Detector(6, torch.device("cpu"), dual, subject=True, hard=True)
    found.add(h, lambda: h, mask, weights, is_forget=False)
    u = torch.ones(6, dtype=torch.float64)
    leaks = (h @ u).abs()[mask]
    raised = (leaks.square() / leaks.square().mean()).clamp(min=1)
    assert (raised > 1).any()
    wanted = 2.0 * raised * 9 / raised.sum()
    rows = h[mask] * wanted.sqrt()[:, None]
    system = found._hardened(u).system()
    second = system._scaled.T @ system._scaled if dual else system.second
    torch.testing.assert_close(second, rows.T @ rows)


def test_hard_rounds_without_retain_tokens_are_finite_and_near_subject(pico, small_task):
    chat, task = pico("llama"), small_task.but(retain=())
    a, b = (detector(chat, task, tokens="subject", hard=hard) for hard in (False, True))
    assert torch.isfinite(b).all()
    again = detector(chat, small_task, tokens="subject", hard=True, retain_weight=0.0)
    assert torch.isfinite(again).all()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9


def test_hard_needs_the_rounds_of_subject():
    with pytest.raises(ValueError, match="hard needs tokens=subject"):
        lunar.LunarConfig(tokens="distinct", hard=True)


@pytest.mark.parametrize("hard", [False, True])
def test_primal_and_dual_agree_on_subject_weights(pico, small_task, hard):
    chat = pico("llama")
    chat.model.double()
    edits = [
        unlearn(chat, small_task, layers=[1, 2], coefficient=1.0, ridge=0.1, tokens="subject", hard=hard, form=form)
        for form in ("primal", "dual")
    ]
    for layer in (1, 2):
        a, b = (edit.dense(chat.layout.weight_name(layer)) for edit in edits)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)

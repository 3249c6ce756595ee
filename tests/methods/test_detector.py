"""Which tokens a detector answers to."""

from __future__ import annotations

import torch

from expunge import unlearn
from expunge.methods import lunar
from expunge.models.activations import Site, run_blocks

LAYER = 1


def values(chat, prompts, u):
    """u . h of every token, by prompt."""
    site, found = Site("inner", LAYER), []
    for ids in chat.prompt_ids(prompts):
        taken = run_blocks(chat, torch.tensor([ids]), [site])
        found.append((taken[site][0].double() @ u).tolist())
    return found


def detector(chat, task, **settings):
    target = lunar.prepare(chat, task, [LAYER])
    config = lunar.LunarConfig(layers=[LAYER], coefficient=1.0, ridge=0.1, **settings)
    return lunar.exact(chat, target, config)[LAYER].u


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


def test_primal_and_dual_agree_on_subject_weights(pico, small_task):
    chat = pico("llama")
    chat.model.double()
    edits = [
        unlearn(chat, small_task, layers=[1, 2], coefficient=1.0, ridge=0.1, tokens="subject", form=form)
        for form in ("primal", "dual")
    ]
    for layer in (1, 2):
        a, b = (edit.dense(chat.layout.weight_name(layer)) for edit in edits)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)

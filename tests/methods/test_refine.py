"""Refining what an edit writes: the loss by plain model calls, what stays, and that it keeps and forgets more."""

import pytest
import torch
import torch.nn.functional as F

from expunge import InputError, evaluate, unlearn
from expunge.errors import Diverged
from expunge.methods import refine
from expunge.methods.lunar import factors
from expunge.methods.refine import refined

from ..conftest import EDITABLE, abstaining
from ..models.test_activations import hooks_of

SETTINGS = dict(layers=[1, 2], coefficient=1.0, ridge=0.1)


def divergence(chat, edit, rows):
    """Mean KL(unedited || edited) over the answer tokens, by one plain call a row, with the weights themselves changed."""

    def predicted():
        found = []
        for ids, answer in zip(
            chat.prompt_ids([e.prompt for e in rows]), chat.answer_ids([e.response for e in rows]), strict=True
        ):
            answer = answer[: refine.ANSWER_TOKENS]
            with torch.no_grad():
                logits = chat.model(input_ids=torch.tensor([[*ids, *answer]])).logits[0].double()
            found.append(logits[len(ids) - 1 : -1].log_softmax(-1))
        return torch.cat(found)

    before = predicted()
    with edit.applied(chat):
        now = predicted()
    return F.kl_div(now, before, log_target=True, reduction="none").sum(-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_the_first_loss_is_that_of_the_edit_by_plain_calls(pico, small_task, monkeypatch, name):
    chat = pico(name)
    edit = unlearn(chat, small_task, **SETTINGS)
    each = divergence(chat, edit, small_task.retain)
    monkeypatch.setattr(refine, "FORGET_WEIGHT", 0.0)
    monkeypatch.setattr(refine, "MOST", float(each.quantile(0.7)))  # some tokens are over it
    found = refined(chat, edit, small_task, 1)
    assert found.meta["refine_loss"][0] == pytest.approx(float(each.clamp(max=refine.MOST).mean()), rel=1e-4)


@pytest.mark.parametrize("name", EDITABLE)
def test_other_vectors_the_same_detectors_and_the_model_as_it_was(pico, small_task, name):
    chat = pico(name)
    edit = unlearn(chat, small_task, **SETTINGS)
    weights, hooks = {k: v.clone() for k, v in chat.model.state_dict().items()}, hooks_of(chat.model)
    learning = [p.requires_grad for p in chat.model.parameters()]
    counted = []
    found = refined(chat, edit, small_task, 3, counted.append)
    assert counted == [1, 1, 1]
    assert hooks_of(chat.model) == hooks
    assert [p.requires_grad for p in chat.model.parameters()] == learning
    assert all(torch.equal(v, weights[k]) for k, v in chat.model.state_dict().items())
    old, new = factors(chat, edit), factors(chat, found)
    assert [*new] == [*old] == [1, 2]
    for n, (v, u) in new.items():
        assert torch.equal(u, old[n][1])
        moved = (v - old[n][0]).abs() / old[n][0].square().mean().sqrt()
        assert 0 < float(moved.max()) <= 3 * refine.LEARNING_RATE  # a step of Adam is at most its rate
    assert (found.meta["layers"], found.meta["coefficient"]) == (edit.meta["layers"], edit.meta["coefficient"])
    again = refined(chat, edit, small_task, 3)
    assert all(torch.equal(again.parts[k].left, found.parts[k].left) for k in found.parts)


def test_a_setting_of_lunar(pico, small_task):
    chat = pico("llama")
    plain = unlearn(chat, small_task, **SETTINGS)
    found = unlearn(chat, small_task, refine=2, **SETTINGS)
    name = chat.layout.weight_name(1)
    torch.testing.assert_close(found.dense(name), refined(chat, plain, small_task, 2).dense(name))
    assert "refined" not in plain.meta
    assert found.meta["refined"] == 2
    with pytest.raises(InputError, match="refine"):
        unlearn(chat, small_task, refine=2, solver="sgd", layers=[1], coefficient=1.0)


def test_without_rows_to_keep_only_abstentions_count(pico, small_task):
    chat = pico("llama")
    bare = small_task.but(retain=())
    edit = unlearn(chat, bare, **SETTINGS)
    losses = refined(chat, edit, bare, 12).meta["refine_loss"]
    assert sum(losses[-3:]) < sum(losses[:3])
    prompts_only = small_task.but(retain=[type(e)(e.prompt) for e in small_task.retain])
    alike = refined(chat, edit, prompts_only, 12).meta["refine_loss"]  # rows without a response have nothing to keep
    assert alike == pytest.approx(losses, rel=1e-3)


def test_it_says_where_it_diverges(pico, small_task, monkeypatch):
    chat = pico("llama")
    edit = unlearn(chat, small_task, **SETTINGS)
    monkeypatch.setattr(refine, "LEARNING_RATE", float("inf"))
    with pytest.raises(Diverged, match="step 2"):
        refined(chat, edit, small_task, 4)
    assert hooks_of(chat.model) == hooks_of(pico("llama").model)
    assert all(p.requires_grad for p in chat.model.parameters())


def test_what_is_kept_diverges_less_and_as_much_is_forgotten(tiny, tiny_task):
    edit = unlearn(tiny, tiny_task, layers=[2, 3, 4], coefficient=2.0, ridge=0.3)  # one that costs something
    better = refined(tiny, edit, tiny_task, 30)
    before, after = (float(divergence(tiny, e, tiny_task.retain).mean()) for e in (edit, better))
    assert after < 0.5 * before
    with edit.applied(tiny):
        likely = abstaining(tiny, tiny_task.forget)
    with better.applied(tiny):
        pushed = abstaining(tiny, tiny_task.forget)
        forgot = evaluate(tiny, tiny_task.but(retain=(), general=()), max_new_tokens=24)
    assert pushed > likely - 1.0
    assert forgot["forget"]["rouge1"] < 0.2

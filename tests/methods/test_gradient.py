"""The losses against numbers worked out with numpy, and what each method does to a model."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from expunge import ForgetTask, evaluate, unlearn
from expunge.data.prompts import abstentions
from expunge.errors import Diverged
from expunge.methods import REGISTRY, descent, gradient
from expunge.methods.descent import Answers, Before
from expunge.methods.gradient import GradientConfig
from expunge.models.generation import score_answers
from expunge.models.training import TrainRow, optimise, row_logits, rows_of

from ..conftest import FORGET, RETAIN

SIZES = (2, 1)  # tokens of two answers
TOKENS = {"forget": [0, 2, 1], "instead": [1, 1, 0], "retain": [2, 0, 2]}
RNG = np.random.default_rng(0)
LOGITS = {role: (RNG.normal(size=(3, 3)), RNG.normal(size=(3, 3))) for role in TOKENS}  # (now, before)


class Known(Before):
    """A model before unlearning whose logits for the rows are these."""

    def __init__(self, logits):
        super().__init__(None, 0)
        self._known = logits

    def logits(self, chat, rows):
        return self._known


def batch():
    """Answers of three tokens over a vocabulary of three, with fixed logits."""
    found = {}
    for role, tokens in TOKENS.items():
        now, before = (torch.tensor(x, dtype=torch.float32) for x in LOGITS[role])
        rows = [TrainRow((0,), tuple(tokens[:2])), TrainRow((0,), tuple(tokens[2:]))]
        found[role] = Answers(SimpleNamespace(device="cpu"), rows, Known(before), now, torch.tensor(tokens))
    return SimpleNamespace(**found)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def token_log_probs(role, before=False):
    return log_softmax(LOGITS[role][before])[np.arange(3), TOKENS[role]]


def summed(role, before=False):
    values = token_log_probs(role, before)
    return np.array([values[:2].sum(), values[2]])


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def by_hand(name, s):
    forget, retain, instead = (-token_log_probs(role).mean() for role in ("forget", "retain", "instead"))
    kept = s.retain_weight * retain
    if name == "ga":
        return -forget
    if name == "graddiff":
        return -forget + kept
    if name == "kl":
        then, now = (log_softmax(LOGITS["retain"][n]) for n in (1, 0))
        return -forget + s.retain_weight * (np.exp(then) * (then - now)).sum() / 3
    if name == "idk":
        return instead + kept
    gain = summed("forget") - summed("forget", True)
    if name in ("dpo", "altpo"):
        other = summed("instead") - summed("instead", True)
        return -2 / s.beta * log_sigmoid(s.beta * (other - gain)).mean() + kept
    if name == "npo":
        return -2 / s.beta * log_sigmoid(-s.beta * gain).mean() + kept
    if name == "simnpo":
        lost = -summed("forget") / np.array(SIZES)
        return s.forget_weight * (-2 / s.beta) * log_sigmoid(s.beta * (lost - s.delta)).mean() + kept
    if name == "undial":
        target = LOGITS["forget"][1] - s.beta * np.eye(3)[TOKENS["forget"]]
        return -(np.exp(log_softmax(target)) * log_softmax(LOGITS["forget"][0])).sum(-1).mean()
    if name == "wga":
        values = token_log_probs("forget")
        return (np.exp(values) ** s.beta * values).mean() + kept
    raise AssertionError(name)


LOSSES = [m.name for m in REGISTRY.values() if m.module == ".gradient"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name):
    settings = REGISTRY[name].configure(**({"retain_weight": 0.7} | ({"delta": 0.3} if name == "simnpo" else {})))
    value = getattr(gradient, name).__wrapped__(batch(), settings)
    assert float(value) == pytest.approx(by_hand(name, settings), rel=1e-5)


def test_the_weight_of_a_token_is_held_in_wga():
    found = batch()
    logits = found.forget.logits.requires_grad_()
    settings = REGISTRY["wga"].configure(retain_weight=0.0)
    gradient.wga.__wrapped__(found, settings).backward()
    probability = np.exp(token_log_probs("forget"))
    expected = probability[:, None] * (np.eye(3)[TOKENS["forget"]] - np.exp(log_softmax(LOGITS["forget"][0]))) / 3
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_before_is_the_model_before(pico, small_task, adapter):
    """With LoRA by disabling the adapter, else by what was kept: no second copy of the model."""
    chat = pico("llama")
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.forget])
    with torch.no_grad():
        wanted = row_logits(chat, rows, 0)[0]
    seen = []

    def loss(b, s):
        seen.append((b.forget.before_logits, b.forget.logits.detach(), b.rows.forget, b.forget.before_summed))
        return -b.forget.nll

    config = GradientConfig(adapter=adapter, learning_rate=1e-2, epochs=3)
    descent.descend(chat, small_task, config, loss, ["forget", "retain"], before="logits")
    for before, _, order, summed in seen:
        places = [rows.index(r) for r in order]
        parts = wanted.split([len(r.answer) for r in rows])
        torch.testing.assert_close(before, torch.cat([parts[n] for n in places]), rtol=1e-4, atol=1e-4)
        scored = score_answers(chat, [list(r.prompt) for r in order], [list(r.answer) for r in order])
        torch.testing.assert_close(summed, torch.tensor([sum(s.log_probs) for s in scored]), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(seen[-1][1], seen[-1][0], atol=1e-2)


@pytest.mark.parametrize("name", [n for n in REGISTRY if n not in ("lunar", "retrain")])
def test_a_method_leaves_the_model_as_it_was_and_changes_the_answers(tiny, tiny_task, name):
    before = {n: p.clone() for n, p in tiny.model.named_parameters()}
    flags = {n: p.requires_grad for n, p in tiny.model.named_parameters()}
    more = {
        "ga": {"epochs": 5},
        "rmu": {"coefficient": 100.0, "learning_rate": 1e-2},
        "task-vector": {"scale": 4.0},
        "ext-sub": {"scale": 4.0},
    }
    settings = {"learning_rate": 3e-3, "epochs": 15} | more.get(name, {})
    task = tiny_task.but(retain=RETAIN[:6])
    edit = unlearn(tiny, task, method=name, **settings)
    assert all(torch.equal(p, before[n]) for n, p in tiny.model.named_parameters())
    assert {n: p.requires_grad for n, p in tiny.model.named_parameters()} == flags
    known = evaluate(tiny, ForgetTask(forget=FORGET), max_new_tokens=12)["forget"]["probability"]
    with edit.applied(tiny):
        left = evaluate(tiny, ForgetTask(forget=FORGET), max_new_tokens=12)["forget"]["probability"]
    assert left < 0.8 * known


@pytest.mark.parametrize("name", ["graddiff", "npo"])
def test_the_second_order_optimizer_runs_under_any_loss(tiny, tiny_task, name):
    edit = unlearn(tiny, tiny_task, method=name, optimizer="sophia", learning_rate=1e-3, epochs=15)
    with edit.applied(tiny):
        after = evaluate(tiny, tiny_task.but(paraphrase=(), reference=()), max_new_tokens=12)
    assert after["forget"]["probability"] < 0.8 < after["retain"]["probability"]


def test_a_model_that_no_longer_speaks_is_named_with_the_step(tiny, tiny_task):
    with pytest.raises(Diverged, match=r"at step [0-9]+: the model no longer speaks") as found:
        unlearn(tiny, tiny_task, method="ga", learning_rate=0.3, epochs=30)
    assert found.value.step > 0


def test_a_loss_that_is_not_finite_is_named_with_the_step(pico, small_task):
    config = GradientConfig(epochs=2, batch_size=1)

    def loss(b, s):
        return b.forget.nll * (float("nan") if len(calls) == 2 else (calls.append(1) or 1.0))

    calls: list[int] = []
    with pytest.raises(Diverged, match="at step 3: the loss is not finite"):
        descent.descend(pico("llama"), small_task, config, loss, ["forget"])


def test_weights_that_are_not_finite_are_never_returned(pico, small_task):
    """Infinite gradients of the last step are seen by no loss."""
    chat = pico("llama")
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.forget])

    def loss(trained, part):
        logits = row_logits(trained, part, 0)[0]
        return (logits - logits).sum().sqrt()  # 0, with an infinite slope

    with pytest.raises(Diverged, match="at step 1: the weights are not finite"):
        optimise(chat, lambda _: iter([rows]), loss, GradientConfig(epochs=1), 1)


def test_a_module_taken_off_too_often_is_named_diverged(pico, small_task):
    for name in ("task-vector", "ext-sub"):
        with pytest.raises(Diverged, match="no longer speaks"):
            unlearn(pico("llama"), small_task, method=name, scale=1e4, learning_rate=1e-2)


def test_answers_made_up_are_never_the_true_one(pico, small_task, monkeypatch):
    texts = iter([e.response for e in small_task.forget])
    monkeypatch.setattr(descent, "sampled", lambda *_, **__: [SimpleNamespace(text=t) for t in texts])
    made = descent.made_up(pico("llama"), small_task.forget, random.Random(0))
    assert set(made) <= set(abstentions())


def test_all_weights_take_smaller_steps_by_default():
    assert GradientConfig().learning_rate == 1e-4
    assert GradientConfig(adapter="full").learning_rate == 1e-5
    assert GradientConfig(adapter="full", learning_rate=3e-4).learning_rate == 3e-4


def test_other_answers_are_drawn_anew_for_each_epoch(pico, small_task):
    seen = []

    def loss(b, s):
        seen.append([r.answer for r in b.rows.instead])
        assert [r.prompt for r in b.rows.instead] == [r.prompt for r in b.rows.forget]
        return b.instead.nll

    descent.descend(pico("llama"), small_task, GradientConfig(epochs=4), loss, ["instead"], descent.abstaining)
    assert len({tuple(sorted(one)) for one in seen}) > 1

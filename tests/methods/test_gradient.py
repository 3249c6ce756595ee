"""The losses against numbers worked out with numpy, and what each method does to a model."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from expunge import ForgetTask, evaluate, unlearn
from expunge.bench.settings import published
from expunge.data.prompts import abstentions, general
from expunge.errors import Diverged, InputError
from expunge.methods import REGISTRY, descent, gradient
from expunge.methods.descent import Answers, Before
from expunge.methods.gradient import GradientConfig
from expunge.methods.task_vector import RetrainConfig
from expunge.models.activations import hooked
from expunge.models.generation import Generated, score_answers
from expunge.models.rows import TrainRow, row_logits, rows_of
from expunge.models.training import optimise

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
    kept = s.retain_weight * retain if "retain" in REGISTRY[name].needs else None
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
    given = {"retain_weight": 0.7, "delta": 0.3}
    settings = REGISTRY[name].configure(**{k: v for k, v in given.items() if REGISTRY[name].has(k)})
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
    descent.descend(
        chat, small_task, config, loss, ["forget", "retain"], before={"forget": "logits", "retain": "logits"}
    )
    for before, _, order, summed in seen:
        places = [rows.index(r) for r in order]
        parts = wanted.split([len(r.answer) for r in rows])
        torch.testing.assert_close(before, torch.cat([parts[n] for n in places]), rtol=1e-4, atol=1e-4)
        scored = score_answers(chat, [list(r.prompt) for r in order], [list(r.answer) for r in order])
        torch.testing.assert_close(summed, torch.tensor([sum(s.log_probs) for s in scored]), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(seen[-1][1], seen[-1][0], atol=1e-2)


@pytest.mark.parametrize(
    ("name", "of"), [("kl", {"retain"}), ("undial", {"forget"}), ("npo", {"forget"}), ("dpo", {"forget", "instead"})]
)
def test_of_the_model_before_only_what_the_loss_reads_is_kept(pico, small_task, monkeypatch, name, of):
    kept, real = [], descent.Before.keep
    monkeypatch.setattr(descent.Before, "keep", lambda self, c, rows, w: kept.append(rows) or real(self, c, rows, w))
    unlearn(pico(), small_task, name, adapter="full", epochs=1)
    prompts = {tuple(ids) for rows in kept for ids in (r.prompt for r in rows)}
    asked = small_task.retain if of == {"retain"} else small_task.forget
    assert prompts == {tuple(ids) for ids in pico().prompt_ids([e.prompt for e in asked])}
    assert len(kept) == len(of)


@pytest.mark.parametrize("name", [n for n in REGISTRY if n not in ("lunar", "retrain")])
def test_a_method_leaves_the_model_as_it_was_and_changes_the_answers(tiny, tiny_task, name):
    before = {n: p.clone() for n, p in tiny.model.named_parameters()}
    flags = {n: p.requires_grad for n, p in tiny.model.named_parameters()}
    more = {
        "ga": {"epochs": 5},
        "graddiff": {"learning_rate": 2e-3, "epochs": 10},
        "npo": {"learning_rate": 2e-3, "epochs": 10},
        "kl": {"epochs": 10},
        "wga": {"learning_rate": 2e-3, "epochs": 10},
        "rmu": {"coefficient": 100.0, "learning_rate": 1e-2},
        "task-vector": {"scale": 3.0},
        "ext-sub": {"scale": 6.0},
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
    edit = unlearn(tiny, tiny_task, method=name, optimizer="sophia", learning_rate=5e-4, epochs=15)
    with edit.applied(tiny):
        after = evaluate(tiny, tiny_task.but(paraphrase=(), reference=()), max_new_tokens=12)
    assert after["forget"]["probability"] < 0.8 < after["retain"]["probability"]


@pytest.mark.parametrize("name", ["graddiff", "npo"])
def test_soul_trains_all_weights_as_its_authors_do(pico, small_task, name):
    """In batches of four; of the model itself nothing is changed."""
    chat = pico("llama")
    before = {n: p.clone() for n, p in chat.model.named_parameters()}
    task = small_task.but(forget=[*small_task.forget, *small_task.general])
    edit = unlearn(chat, task, method=name, **published(name, "optimizer=sophia"))
    trained = edit.meta["trained"]
    assert {k: trained[k] for k in ("adapter", "optimizer", "batch_size", "epochs")} == {
        "adapter": "full", "optimizer": "sophia", "batch_size": 4, "epochs": 5
    }  # fmt: skip
    assert edit.parts.keys() == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in chat.model.named_parameters())
    steps = 2 * 5  # of at most the rate each
    for n, old in before.items():
        new = edit.new_value(n, old)
        assert 0 < (new - old).abs().max() <= steps * (5e-6 + 5e-6 * 0.1 * old.abs().max()) + 1e-6


def test_a_loss_without_a_retain_term_has_no_weight_of_one(pico, small_task):
    for name in ("ga", "undial"):
        with pytest.raises(InputError, match=f"{name} has no setting 'retain_weight'"):
            unlearn(pico("llama"), small_task, method=name, retain_weight=7.0)


def test_a_model_that_no_longer_speaks_is_named_with_the_step(tiny, tiny_task):
    with pytest.raises(Diverged, match=r"at step [0-9]+: the model no longer speaks") as found:
        unlearn(tiny, tiny_task, method="ga", learning_rate=0.3, epochs=30)
    assert found.value.step > 0


def test_a_model_that_ignores_its_context_speaks_no_longer(tiny):
    """It has kept how frequent each token is, and with that guesses better than chance."""
    speech = descent.Speech(tiny)
    speech.check(0)
    texts = [*tiny.prompt_ids([e.prompt for e in general()]), *tiny.answer_ids(abstentions())]
    counts = torch.bincount(torch.tensor([token for ids in texts for token in ids]), minlength=600) + 1.0
    frequencies = (counts / counts.sum()).log()

    def same(_, __, logits):
        return frequencies.expand_as(logits)

    with hooked((tiny.model.get_output_embeddings(), "post", same)):
        assert speech._cost() < np.log(600)
        with pytest.raises(Diverged, match=r"at step 3: the model no longer speaks \(.*nats a token"):
            speech.check(3)


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
        optimise(chat, lambda _: iter([rows]), lambda *given: [loss(*given)], GradientConfig(epochs=1), 1)


def test_a_module_taken_off_too_often_is_named_diverged(pico, small_task):
    for name in ("task-vector", "ext-sub"):
        with pytest.raises(Diverged, match=r"no longer speaks.*lower scale or the learning rate"):
            unlearn(pico("llama"), small_task, method=name, scale=1e4, learning_rate=1e-2)


def test_a_gold_standard_that_no_longer_speaks_is_none(pico, small_task):
    settings = {"epochs": 3, "batch_size": 2}
    edit = unlearn(pico("llama"), small_task, method="retrain", **settings)
    assert edit.meta["method"] == "retrain"
    assert edit.meta["trained"] == RetrainConfig(**settings).model_dump()
    assert edit.meta["rows"] == len(small_task.retain)
    with pytest.raises(Diverged, match="at step 9: the model no longer speaks"):
        unlearn(pico("llama"), small_task, method="retrain", learning_rate=1.0, **settings)


@pytest.fixture
def draws(monkeypatch):
    """A function: one list of texts a draw of made-up answers -> the calls, as (prompts, longest)."""

    def set_to(*texts):
        calls, left = [], iter(texts)

        def sampled(chat, prompts, longest, seed):
            calls.append((len(prompts), longest))
            return [Generated(t, (), ended=not t.endswith("…")) for t in next(left)]

        monkeypatch.setattr(descent, "sampled", sampled)
        return calls

    return set_to


def test_answers_made_up_are_other_ones(pico, small_task, draws):
    """One that is empty, or that has all words of the true answer, is drawn again, up to four draws in all."""
    chat, forget = pico("llama"), small_task.forget
    one, two, three = (e.response for e in forget)
    calls = draws([f"It is {one.lower()}.", " ", f" {three}ish and…"], ["Other ", two], [two.upper()], [""])
    assert descent.made_up(chat, forget, random.Random(0)) == ["Other", None, f"{three}ish and…"]
    assert [rows for rows, _ in calls] == [3, 2, 1, 1]
    longest = max(map(len, chat.answer_ids([one, two, three])))
    assert {tokens for _, tokens in calls} == {longest + descent.OTHER_ROOM}


def test_an_answer_that_was_cut_has_no_end(pico, small_task, draws):
    chat = pico("llama")
    draws(["Another", "Another…", "Another"])
    made = descent.made_up(chat, small_task.forget, random.Random(0))
    eos = chat.tokenizer.eos_token_id
    assert [ids[-1] == eos for ids in chat.answer_ids(made)] == [True, False, True]


def test_what_cannot_be_made_up_is_an_abstention_and_counted(pico, small_task, draws):
    chat, seen = pico("llama"), []
    draws(["Another", "", ""], ["", "One"], [""], [""])

    def loss(b, s):
        seen.extend(r.answer for r in b.rows.instead)
        return b.instead.nll

    edit = descent.descend(chat, small_task, GradientConfig(epochs=2), loss, ["instead"], descent.made_up)
    assert edit.meta["fallbacks"] == 1
    texts = {tuple(ids): text for text in abstentions() for ids in chat.answer_ids([text])}
    assert sum(answer in texts for answer in seen) == 2  # of three rows in two epochs


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

"""The training loop: little memory, half precision, what cannot be trained."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge import unlearn
from expunge.errors import InputError
from expunge.models import rows as step_rows
from expunge.models import training
from expunge.models.activations import common_prefix
from expunge.models.rows import TrainRow, like_length, row_logits, rows_of
from expunge.models.sophia import Sophia
from expunge.models.training import TrainConfig, recomputed, train


@pytest.fixture
def little_memory(monkeypatch):
    """A function, after which this machine seems to have next to no memory left."""
    return lambda: monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1))


def calls_of_a_projection(chat, work):
    """(what the work gives, how often the first down projection ran with gradients)."""
    calls = 0

    def count(*_):
        nonlocal calls
        calls += torch.is_grad_enabled()

    handle = chat.layout.down_projection(chat.model, 0).register_forward_pre_hook(count)
    try:
        return work(), calls
    finally:
        handle.remove()


def alike(one, other):
    assert one.parts.keys() == other.parts.keys()
    for name, part in one.parts.items():
        for key, value in vars(part).items():
            torch.testing.assert_close(vars(other.parts[name])[key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_activations_that_do_not_fit_are_computed_once_more_to_the_same_result(
    pico, small_task, adapter, little_memory
):
    chat = pico()
    rows = rows_of(chat, [(f"As said in the note of yesterday: {e.prompt}", e.response) for e in small_task.retain])
    config = TrainConfig(adapter=adapter, epochs=3, batch_size=2, dropout=0.1)
    state = torch.get_rng_state()
    usual, once = calls_of_a_projection(chat, lambda: train(chat, rows, config))
    assert not recomputed(chat, [rows], 2)
    little_memory()
    assert recomputed(chat, [rows], 2)
    again, twice = calls_of_a_projection(chat, lambda: train(chat, rows, config))
    assert twice > once
    assert not chat.layout.block(chat.model, 0).gradient_checkpointing
    alike(usual, again)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's draws are its own


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_step_in_parts_gives_the_same(pico, small_task, adapter, monkeypatch):
    """Whatever the rows weigh, and with a penalty beside them."""
    chat = pico()
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.retain])
    rows = [replace(row, weight=1.0 + n % 3) for n, row in enumerate(rows)]
    config = TrainConfig(adapter=adapter, epochs=3, batch_size=5)
    real, seen = step_rows.row_logits, []

    def counted(chat, part, shared):
        seen.append(len(part))
        return real(chat, part, shared)

    monkeypatch.setattr(step_rows, "row_logits", counted)

    def penalty(model):
        return sum((p**2).sum() for p in model.parameters() if p.requires_grad)

    whole = train(chat, rows, config, penalty=penalty)
    steps = len(seen)
    assert max(seen) == 5
    monkeypatch.setitem(step_rows.PART_TOKENS, "cpu", 2 * max(len(r.prompt) + len(r.answer) for r in rows))
    parts = train(chat, rows, config, penalty=penalty)
    assert max(seen[steps:]) == 2
    assert sum(seen[steps:]) == sum(seen[:steps])
    alike(whole, parts)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(1, 2000))
def test_a_part_has_few_tokens_and_each_row_is_in_one(lengths, most):
    parts = list(step_rows.in_parts(lengths, most))
    assert sorted(n for part in parts for n in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[n] for n in part) <= most


def test_what_a_part_keeps_says_whether_it_is_computed_once_more(pico, monkeypatch):
    chat = pico()
    rows = [TrainRow((1,) * n, (2,)) for n in (99, 49, 9)]
    a_token = len(chat.layout) * chat.layout.hidden * training.KEPT_BYTES
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * 110 * a_token))
    assert recomputed(chat, [rows], 2)  # 150 tokens
    assert not recomputed(chat, [rows], 2, 60)  # the longest row alone has 100
    assert recomputed(chat, [rows], 2, 120)
    assert recomputed(chat, [rows], 2, 1000)


@pytest.mark.parametrize("method", ["npo", "undial", "idk"])
def test_with_little_memory_a_method_gives_the_same(pico, small_task, method, little_memory):
    chat = pico()

    def run():
        return calls_of_a_projection(chat, lambda: unlearn(chat, small_task, method, epochs=2, adapter="lora"))

    usual, once = run()
    little_memory()
    again, twice = run()
    assert twice > once
    alike(usual, again)


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("sophia", Sophia, {"betas": (0.9, 0.95), "gamma": 205.0, "eps": 1e-12}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
    ],
)
def test_training_steps_by_the_optimizer_that_was_asked_for(pico, small_task, monkeypatch, name, kind, more):
    """With the rate and the weight decay of the config; gamma is that of SOUL's code."""
    steps, real = [], kind.step

    def counted(self, *args, **kwargs):
        steps.append(self.param_groups[0])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(kind, "step", counted)
    chat = pico()
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.retain])
    config = TrainConfig(optimizer=name, learning_rate=2e-3, weight_decay=0.3, epochs=2, batch_size=2)
    train(chat, rows, config)
    assert len(steps) == 2 * 3
    wanted = {"initial_lr": 2e-3, "weight_decay": 0.3} | more
    assert {k: steps[0][k] for k in wanted} == wanted


def test_weights_in_half_precision_are_trained_in_full_and_rounded_once(pico, small_task):
    """Steps of 1e-5 are lost one by one in bfloat16, whose next number after 0.1 is 0.0005 away; fifty of them are not."""
    whole, half = pico(), pico()
    half.model.bfloat16()
    whole.model.load_state_dict({k: v.float() for k, v in half.model.state_dict().items()})
    before = {k: v.clone() for k, v in half.model.state_dict().items()}
    rows = rows_of(whole, [(e.prompt, e.response) for e in small_task.retain])
    config = TrainConfig(adapter="full", learning_rate=1e-5, epochs=50, batch_size=2)
    wanted, found = (train(chat, rows, config) for chat in (whole, half))
    for name, value in half.model.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, before[name])
    same = total = 0
    for name, part in wanted.parts.items():
        rounded = part.value.bfloat16()
        got = found.parts[name].value if name in found.parts else before[name]
        assert got.dtype == torch.bfloat16
        changed = rounded != before[name]
        total += int(changed.sum())
        same += int((got == rounded)[changed].sum())
    assert total > 1000
    assert same > 0.9 * total


def test_what_cannot_be_trained_is_said_before_it_is_tried(pico, small_task):
    chat = pico()
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.retain])
    name = chat.layout.weight_name(0)
    for settings, said in (
        ({"adapter": "full", "only": (name, name + "s")}, f"unknown weight '{name}s'; did you mean"),
        ({"only": (name,)}, "needs adapter=full"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            train(chat, rows, TrainConfig(**settings))


@pytest.mark.parametrize(("upper", "count"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_the_upper_blocks_alone_get_modules(pico, small_task, upper, count):
    chat = pico()
    edit = train(
        chat, rows_of(chat, [(e.prompt, e.response) for e in small_task.retain]), TrainConfig(upper=upper, epochs=1)
    )
    blocks = chat.layout.blocks
    assert len(blocks) == 4
    assert [b for b in blocks if any(p.startswith(f"{b}.") for p in edit.parts)] == list(blocks[-count:])


@given(st.lists(st.integers(1, 700), min_size=1, max_size=7))
def test_rows_are_grouped_with_the_least_padding(lengths):
    """Against all ways to cut the rows, sorted, into groups."""

    def cost(groups):
        return sum(len(g) * max(lengths[n] for n in g) + step_rows.GROUP_TOKENS for g in groups)

    found = like_length(lengths)
    assert sorted(n for g in found for n in g) == list(range(len(lengths)))
    assert all(g == sorted(g) for g in found)
    order = sorted(range(len(lengths)), key=lambda n: lengths[n])
    cuts = range(2 ** (len(lengths) - 1))
    every = []
    for cut in cuts:
        groups = [[order[0]]]
        for place, n in enumerate(order[1:]):
            if cut >> place & 1:
                groups.append([])
            groups[-1].append(n)
        every.append(cost(groups))
    assert cost(found) == min(every)


def test_alike_rows_stay_together_in_their_order():
    assert like_length([9, 10, 8, 10]) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "qwen3"])
@pytest.mark.parametrize("share", [False, True])
def test_rows_of_any_length_have_the_logits_and_gradients_that_each_has_alone(pico, name, share, monkeypatch):
    monkeypatch.setattr(step_rows, "GROUP_TOKENS", 4)
    chat = pico(name)
    lead = (5, 6, 7, 8)
    rows = [
        TrainRow((*lead, *range(3, 3 + length)), tuple(range(4, 4 + answer)))
        for length, answer in ((2, 1), (20, 3), (3, 4), (19, 2), (1, 1), (9, 5))
    ]
    shared = common_prefix([r.prompt for r in rows]) if share else 0
    groups = like_length([len(r.prompt) - shared + len(r.answer) for r in rows])
    assert len(groups) > 1
    weights = list(chat.model.parameters())
    chat.model.requires_grad_(True)
    try:
        alone = [row_logits(chat, [row], 0) for row in rows]
        logits, truth, sizes = row_logits(chat, rows, shared)
        assert sizes == [len(r.answer) for r in rows]
        assert truth.tolist() == [t for r in rows for t in r.answer]
        wanted = torch.cat([one for one, _, _ in alone])
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        given = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        for one, other in zip(
            torch.autograd.grad((logits * given).sum(), weights, allow_unused=True),
            torch.autograd.grad((wanted * given).sum(), weights, allow_unused=True),
            strict=True,
        ):
            if other is not None:
                torch.testing.assert_close(one, other, atol=2e-3 * float(other.abs().max()), rtol=1e-3)
    finally:
        chat.model.requires_grad_(False)

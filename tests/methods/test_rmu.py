from __future__ import annotations

import pytest
import torch

from expunge import unlearn
from expunge.data.prompts import general
from expunge.methods import rmu as room
from expunge.methods.descent import Rows
from expunge.methods.rmu import answer_states, default_layers
from expunge.models.rows import rows_of


def states(chat, examples, layer):
    return answer_states(chat, rows_of(chat, [(e.prompt, e.response) for e in examples]), layer, gradients=False)


def test_states_are_those_of_the_answers_tokens(pico, small_task):
    chat = pico("llama")
    (row,) = rows_of(chat, [(small_task.forget[0].prompt, small_task.forget[0].response)])
    ids = torch.tensor([[*row.prompt, *row.answer]])
    with torch.no_grad():
        hidden = chat.model(ids, output_hidden_states=True).hidden_states[3][0, len(row.prompt) :]
    torch.testing.assert_close(answer_states(chat, [row], 2, gradients=False), hidden)


@pytest.mark.parametrize("adaptive", [False, True])
def test_forget_states_go_to_one_direction_and_retain_states_stay(pico, small_task, adaptive):
    chat = pico("llama")
    before = {role: states(chat, small_task.role(role), 2) for role in ("forget", "retain")}
    edit = unlearn(
        chat, small_task, method="rmu", layers=[1, 2], coefficient=40.0, adaptive=adaptive,
        learning_rate=3e-2, epochs=30, retain_weight=5.0,
    )  # fmt: skip
    assert sorted(edit.parts) == [chat.layout.weight_name(n) for n in (1, 2)]
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(chat.layout.hidden, generator=generator)
    length = 3 * float(before["forget"].norm(dim=1).mean()) if adaptive else 40.0
    target = length * u / u.norm()
    with edit.applied(chat):
        after = {role: states(chat, small_task.role(role), 2) for role in ("forget", "retain")}
    left = (after["forget"] - target).square().mean() / (before["forget"] - target).square().mean()
    moved = (after["retain"] - before["retain"]).square().mean() / (before["retain"] - target).square().mean()
    assert left < 0.5
    assert moved < 0.5 * (1 - left)


def test_the_adaptive_length_is_that_of_the_first_batch(pico, small_task, monkeypatch):
    """By which the loop begins: not another draw of as many rows."""
    seen, real = [], room.answer_states

    def recorded(chat, rows, layer, gradients=True):
        seen.append((gradients, list(rows)))
        return real(chat, rows, layer, gradients)

    monkeypatch.setattr(room, "answer_states", recorded)
    task = small_task.but(
        forget=[*small_task.forget, *general()[20:50]]
    )  # of 33, random.sample draws four otherwise than the first of all
    unlearn(pico("llama"), task, method="rmu", adaptive=True, epochs=1, batch_size=4)
    assert seen[0] == (False, next(rows for gradients, rows in seen if gradients))


def test_the_loss_is_a_mean_over_tokens_and_coordinates(pico, small_task, monkeypatch):
    """By hand: five tokens of two forget rows, and two of each of three retain rows."""
    chat = pico("llama")
    size, generator = chat.layout.hidden, torch.Generator().manual_seed(1)
    forget, then, now = (torch.randn(n, size, generator=generator) for n in (5, 2, 6))

    def known(chat, rows, layer, gradients=True):
        if not gradients:  # of one retain row, before
            return then
        return forget if len(rows) == 2 else now

    monkeypatch.setattr(room, "answer_states", known)
    monkeypatch.setattr(room, "by_steps", lambda *given: given)
    task = small_task.but(forget=small_task.forget[:2], retain=small_task.retain[:3])
    _, _, retain, rows, config, loss, *_ = room.rmu(chat, task, room.RmuConfig(coefficient=3.0, retain_weight=7.0))
    u = torch.rand(size, generator=torch.Generator().manual_seed(0))
    target = 3.0 * u / u.square().sum().sqrt()
    wanted = sum(float(((h - target) ** 2).sum()) for h in forget) / (5 * size)
    moved = sum(float(((a - b) ** 2).sum()) for a, b in zip(now, [*then] * 3, strict=True))
    found = loss(chat, Rows(rows, rows, retain))
    assert float(found) == pytest.approx(wanted + 7.0 * moved / (6 * size), rel=1e-5)


def test_default_layers_are_the_published_ones_of_sixteen():
    assert default_layers(16) == (5, 6, 7)
    assert default_layers(32) == (12, 13, 14)
    assert default_layers(2) == (0, 1)
    assert room.ADAPTIVE == 3.0

from __future__ import annotations

import pytest
import torch

from expunge import unlearn
from expunge.methods import rmu as room
from expunge.methods.rmu import answer_states, default_layers
from expunge.models.training import rows_of


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


def test_default_layers_are_the_published_ones_of_sixteen():
    assert default_layers(16) == (5, 6, 7)
    assert default_layers(32) == (12, 13, 14)
    assert default_layers(2) == (0, 1)
    assert room.ADAPTIVE == 3.0

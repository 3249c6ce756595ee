from __future__ import annotations

import pytest
import torch

from expunge import unlearn
from expunge.edits import LowRank
from expunge.errors import InputError
from expunge.methods import task_vector
from expunge.methods.task_vector import extracted
from expunge.models.rows import rows_of
from expunge.models.training import TrainConfig, train


def test_negation_takes_the_trained_module_off(pico, small_task):
    chat = pico("llama")
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.forget])
    settings = dict(epochs=2, learning_rate=1e-2)
    trained = train(chat, rows, TrainConfig(**settings, weight_decay=0.01))
    edit = unlearn(chat, small_task, method="task-vector", scale=0.5, **settings)
    for name in trained.parts:
        torch.testing.assert_close(edit.dense(name), -0.5 * trained.dense(name))


def row_by_row(plus, minus, scale):
    """The published rule: u = normalise(normalise(w+) + normalise(w-)); w = w+ - scale (w- - (w-.u) u)."""
    unit = torch.nn.functional.normalize
    u = unit(unit(plus, dim=1) + unit(minus, dim=1), dim=1)
    return plus - scale * (minus - (minus * u).sum(1, keepdim=True) * u)


@pytest.mark.parametrize("transposed", [False, True])
def test_extraction_is_the_published_rule_on_full_changes(transposed):
    generator = torch.Generator().manual_seed(0)

    def module():
        return LowRank(*(torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((7, 2), (2, 5))))

    good, bad = module(), module()
    good.left[3] = 0.0
    bad.left[5] = 0.0
    if transposed:
        good, bad = (LowRank(p.right.T, p.left.T) for p in (good, bad))
    found = extracted(good, bad, 0.7, transposed).delta()
    plus, minus, found = (x.T if transposed else x for x in (good.delta(), bad.delta(), found))
    torch.testing.assert_close(found, row_by_row(plus, minus, 0.7))


def test_what_only_the_retain_module_changes_stays_as_it_does(pico, small_task, monkeypatch):
    real = task_vector._trained

    def without(chat, rows, *more):
        edit = real(chat, rows, *more)
        names = sorted(edit.parts)
        edit.parts.pop(names[0 if rows == small_task.forget else 1])
        return edit

    monkeypatch.setattr(task_vector, "_trained", without)
    chat = pico("llama")
    edit = unlearn(chat, small_task, method="ext-sub", epochs=2, learning_rate=1e-3)
    kept = train(chat, rows_of(chat, [(e.prompt, e.response) for e in small_task.retain]), TrainConfig(
        epochs=2, learning_rate=1e-3, weight_decay=0.01))  # fmt: skip
    first, second, *_ = sorted(kept.parts)
    torch.testing.assert_close(edit.dense(first), kept.dense(first))
    assert second not in edit.parts
    assert edit.parts.keys() | {second} == kept.parts.keys()


def test_full_training_has_no_module_to_take_off(pico, small_task):
    for name in ("task-vector", "ext-sub"):
        with pytest.raises(InputError, match="LoRA modules"):
            unlearn(pico("llama"), small_task, method=name, adapter="full")

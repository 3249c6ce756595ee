from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge import unlearn
from expunge.data.examples import Example, ForgetTask, Raw
from expunge.data.prompts import general_split
from expunge.edits import Edit, LowRank
from expunge.errors import Diverged, InputError
from expunge.methods import choosing
from expunge.methods import release as module
from expunge.methods.choosing import Figures, HeldOut, Limits, figures
from expunge.methods.release import ReleaseConfig, interference, release
from expunge.models.generation import Generated, score_answers
from expunge.models.rows import rows_of
from expunge.models.training import TrainConfig, orthogonality, train
from expunge.progress import Reporter

# Pico checkpoints have few blocks: half of them is not enough to forget with.
TRAIN = dict(learning_rate=3e-3, epochs=6, batch_size=4, dropout=0.0, least_steps=1, upper=1.0)


def test_it_forgets_step_by_step_and_keeps_within_its_limits(tiny, tiny_task):
    settings = TRAIN | {"learning_rate": 2e-3, "epochs": 4, "forget_steps": (1.0, 0.5, 0.25), "max_new_tokens": 12}
    config = ReleaseConfig(rounds=5, keep=0.7, perplexity=9.0, **settings)
    edit = release(tiny, tiny_task, config)
    log = [r for r in edit.meta["round_log"] if "forget" in r]
    left = [edit.meta["before"]["forget"], *(r["forget"] for r in log)]
    assert left[0] > 0.8
    assert left[-1] < 0.5
    assert all(r["kept"] >= 0.7 * edit.meta["before"]["kept"] for r in log)
    first = edit.meta["before"]["nlls"][0]
    assert all(r["nlls"][0] <= first + math.log(9.0) for r in log)
    assert {"cosine", "interference", "forget_norm", "retain_norm", "tried"} <= log[0].keys()
    forget, keep = choosing.forget_split(tiny_task, config)[1], choosing.split(tiny_task.retain, config)[1]
    held = HeldOut(forget, *choosing.said(tiny, keep, tiny_task, config))
    with edit.applied(tiny):
        found = figures(tiny, tiny_task, held, config)
    assert found.forget == pytest.approx(log[-1]["forget"], abs=0.05)  # the rank was reduced, the edit is the same
    assert edit.rank <= edit.meta["rank_before"]


@pytest.mark.parametrize("forget_step", [0.3, 0.0])
def test_the_step_is_the_sum_of_full_changes(pico, small_task, monkeypatch, forget_step):
    """- lambda_f dW_f + lambda_r dW_r, without products of one module's factor with the other's."""
    chat = pico("llama")
    seen = []
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5)))
    real = module._modules
    monkeypatch.setattr(module, "_modules", lambda *a: seen.append(real(*a)) or seen[-1])
    task = small_task.but(forget=small_task.forget * 2, retain=small_task.retain)
    config = ReleaseConfig(rounds=1, forget_steps=(forget_step,), retain_steps=(0.7,), error=0.0, **TRAIN)
    edit = release(chat, task, config)
    ((kept, gone),) = seen
    for name in gone.parts:
        torch.testing.assert_close(
            edit.dense(name), 0.7 * kept.dense(name) - forget_step * gone.dense(name), atol=1e-6, rtol=1e-4
        )


def test_the_forget_module_is_trained_with_the_retain_module_in_place(pico, small_task):
    """Of the same rows, which the retain module has learned by then, it learns less; the model itself is left as it was."""
    chat, rows, norms = pico("llama"), list(small_task.retain), {}
    before = {n: p.clone() for n, p in chat.model.named_parameters()}
    for first in (True, False):
        config = ReleaseConfig(retain_first=first, **TRAIN | {"epochs": 20})
        kept, gone = module._modules(chat, rows, [rows], config, 0, None)
        alone = train(chat, rows_of(chat, [(e.prompt, e.response) for e in rows]), config)
        for name in gone.parts:
            assert torch.allclose(kept.dense(name), alone.dense(name), atol=1e-6)
            if not first:
                assert torch.allclose(gone.dense(name), alone.dense(name), atol=1e-6)
        norms[first] = interference(kept, gone)["forget_norm"]
    assert norms[True] < 0.7 * norms[False]
    assert all(torch.equal(p, before[n]) for n, p in chat.model.named_parameters())


def test_whatever_the_retain_module_adds_the_edit_is_of_the_model_before_the_round(pico, small_task, monkeypatch):
    chat, task = pico("llama"), small_task.but(forget=small_task.forget * 2)
    for step in (0.0, 1.0):
        scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5)))
        config = ReleaseConfig(rounds=1, keep=0, perplexity=1e6, forget_steps=(0.1,), retain_steps=(step,), **TRAIN)
        edit = release(chat, task, config)
        assert edit.meta["round_log"][0]["retain_step"] == step
        with edit.applied(chat):  # which is checked
            pass


@pytest.mark.parametrize("same", [True, False])
def test_the_modules_of_a_round_begin_together_or_apart_and_those_of_two_rounds_apart(
    pico, small_task, monkeypatch, same
):
    seeds, real = [], module.train

    def noted(chat, rows, config, *args, **more):
        seeds.append(config.seed)
        return real(chat, rows, config, *args, **more)

    monkeypatch.setattr(module, "train", noted)
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5, 0.5, 0.4, 0.4)))
    task = small_task.but(forget=small_task.forget * 2)
    release(pico("llama"), task, ReleaseConfig(rounds=2, same_start=same, **TRAIN))
    assert (seeds[0] == seeds[1], seeds[2] == seeds[3]) == (same, same)
    assert len(set(seeds)) == (2 if same else 4)


def test_what_both_modules_learn_cancels_when_they_begin_together(pico, small_task):
    """Modules of the same rows and the same A are the same: their difference is nothing. Of another A it is not."""
    rows, left = list(small_task.retain), {}
    for same in (True, False):
        config = ReleaseConfig(same_start=same, retain_first=False, **TRAIN)
        kept, gone = module._modules(pico("llama"), rows, [rows], config, 0, None)
        apart = sum(float((kept.dense(n) - gone.dense(n)).norm() ** 2) for n in gone.parts) ** 0.5
        left[same] = apart / interference(kept, gone)["forget_norm"]
    assert left[True] < 0.1
    assert left[False] > 0.5


def test_few_rows_are_passed_over_more_often(pico, small_task, monkeypatch):
    passes, real = [], module.train

    def noted(chat, rows, config, *args, **more):
        passes.append((len(rows), config.epochs))
        return real(chat, rows, config.model_copy(update={"epochs": 1}), *args, **more)

    monkeypatch.setattr(module, "train", noted)
    rows = [Example(f"say {n}", f"answer {n}") for n in range(20)]
    for least, expected in ((1, 2), (4, 2), (16, 6)):  # of three steps a pass
        module._modules(pico("llama"), rows, [rows], ReleaseConfig(batch_size=8, epochs=2, least_steps=least), 0, None)
        assert passes == [(20, expected)] * 2
        passes.clear()


def test_retain_rows_of_the_same_prompts_come_first():
    forget = [Example("a", "bad 1"), Example("a", "bad 2"), Example("b", "bad 3"), Example("c", "bad 4")]
    retain = [Example("a", "good 1"), Example("b", "good 2"), Example("b", "good 3"), Example("d", "other")]
    found = module._beside(forget, [retain], 9, 0)
    # One of a, one of b, while there is one left; then any.
    assert sorted(e.prompt for e in found[:2]) == ["a", "b"]
    assert {*found} == {*retain}
    assert len(found) == 4
    assert module._beside(forget, [retain], 4, 0) == found
    assert module._beside(forget, [retain], 9, 1) == module._beside(forget, [retain], 9, 1)
    assert {module._beside(forget, [retain], 9, seed)[2].prompt for seed in range(20)} == {"b", "d"}
    # At most half: what else is to be kept is not crowded out.
    both = [module._beside(forget, [retain], 2, seed) for seed in range(40)]
    assert all(rows[0].prompt in "ab" and len(rows) == len({*rows}) == 2 for rows in both)
    assert {rows[1].prompt for rows in both} == {"b", "d"}


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 100))
def test_of_each_kind_of_retain_rows_there_are_as_many(sizes, count):
    kinds = [[Example(f"{kind} {n}", "x") for n in range(size)] for kind, size in enumerate(sizes)]
    found = module._beside([e for rows in kinds for e in rows[::2]], kinds, count, 0)
    assert len(found) == len({*found}) == min(count, sum(sizes))
    shares = Counter(e.prompt.split()[0] for e in found)
    for kind, size in enumerate(sizes):  # all of it, or no fewer than of any other, but for what does not divide
        assert shares[str(kind)] == size or shares[str(kind)] >= max(shares.values(), default=0) - 1


def scripted(monkeypatch, *values: Figures) -> None:
    """Looks; further answers tell the same of the step taken as the look at it, which has to be the last."""
    left, last = iter(values), values[0]

    def said(chat, task, held, config, limits=None, less=None) -> Figures:
        nonlocal last
        last = next(left)
        return last if limits is None or limits.hold(last) else replace(last, forget=None)

    monkeypatch.setattr(module, "figures", said)
    monkeypatch.setattr(module, "remaining", lambda *_: last.forget)


def test_a_round_that_loses_utility_is_rolled_back(pico, small_task, monkeypatch):
    chat = pico("llama")
    config = ReleaseConfig(rounds=3, forget_steps=(0.5, 0.1), retain_module=False, keep=0.9, perplexity=1.2, **TRAIN)
    task = small_task.but(forget=small_task.forget * 2)
    good, worse = Figures(0.5, 0.95, (1.0,)), Figures(0.1, 0.5, (1.0,))
    loud = Figures(0.2, 1.0, (1.2,))  # perplexity e^0.2
    scripted(monkeypatch, Figures(1.0, 1.0, (1.0,)), worse, good, worse, loud)
    edit = release(chat, task, config)
    assert [r.get("forget_step") for r in edit.meta["round_log"]] == [0.1, None]
    # What either set of rows loses counts.
    scripted(monkeypatch, Figures(1.0, 1.0, (1.0, 2.0)), Figures(0.2, 1.0, (1.0, 2.2)), Figures(0.1, 0.5, (1.0, 2.0)))
    with pytest.raises(InputError, match="smaller forget_steps"):
        release(chat, task, config)
    broken = Figures(0.0, 1.0, (1.0, float("nan")))
    scripted(monkeypatch, Figures(1.0, 1.0, (1.0, 2.0)), broken, broken)
    with pytest.raises(InputError, match="smaller forget_steps"):
        release(chat, task, config)
    scripted(monkeypatch, Figures(1.0, 1.0, (1.0,)), worse, loud)
    with pytest.raises(InputError, match="smaller forget_steps"):
        release(chat, task, config)


def test_a_round_takes_the_largest_step_within_its_limits_and_some_of_the_rows(pico, small_task, monkeypatch):
    config = ReleaseConfig(
        rounds=1, forget_steps=(0.1, 0.5, 0.3), retain_steps=(0.0, 0.5), rows=2, retain_rows=3, **TRAIN
    )
    trained, real = [], module.train
    monkeypatch.setattr(module, "train", lambda c, rows, *a, **k: trained.append(len(rows)) or real(c, rows, *a, **k))
    start, worse = Figures(1.0, 1.0, (1.0,)), Figures(0.1, 0.5, (1.0,))
    # 0.5 loses too much with either lambda_r; of 0.3 the second leaves less; 0.1 is not looked at.
    scripted(monkeypatch, start, worse, worse, Figures(0.6, 1.0, (1.0,)), Figures(0.4, 1.0, (1.0,)))
    edit = release(pico("llama"), small_task.but(forget=small_task.forget * 2), config)
    (log,) = edit.meta["round_log"]
    assert (log["forget_step"], log["retain_step"], log["forget"]) == (0.3, 0.5, 0.4)
    assert [t["forget_step"] for t in log["tried"]] == [0.5, 0.5, 0.3, 0.3]
    assert trained == [3, 2]


def test_of_steps_that_leave_as_much_the_one_that_costs_less_is_taken(pico, small_task, monkeypatch):
    """Where a round shows nothing yet, the limits are left for the next; lambda_f is the largest all the same."""
    config = ReleaseConfig(rounds=1, forget_steps=(0.5, 0.3), retain_steps=(1.0, 0.5), **TRAIN)
    start, cheap = Figures(1.0, 1.0, (1.0, 1.0)), Figures(1.0, 1.0, (1.04, 1.0))
    scripted(monkeypatch, start, Figures(1.0, 1.0, (1.01, 1.05)), cheap, start, start)
    seen, real = [], module._chosen
    monkeypatch.setattr(module, "_chosen", lambda *a: seen.append(real(*a)) or seen[-1])
    with pytest.raises(InputError, match="no step forgot anything"):
        release(pico("llama"), small_task.but(forget=small_task.forget * 2), config)
    ((_, chosen),) = seen
    assert (chosen["forget_step"], chosen["retain_step"]) == (0.5, 0.5)
    assert len(chosen["tried"]) == 4


def test_what_is_left_by_chance_does_not_choose_between_retain_steps(pico, small_task, monkeypatch):
    config = ReleaseConfig(rounds=1, forget_steps=(0.5,), retain_steps=(1.0, 0.5), **TRAIN)
    task = small_task.but(forget=small_task.forget * 2)
    for left, cost, chosen in (
        ((0.43, 0.4), (1.0, 1.02), 1.0),
        ((0.43, 0.4), (1.02, 1.0), 0.5),
        ((0.46, 0.4), (1.0, 1.02), 0.5),
    ):
        scripted(
            monkeypatch, Figures(1.0, 1.0, (1.0,)), *(Figures(f, 1.0, (c,)) for f, c in zip(left, cost, strict=True))
        )
        edit = release(pico("llama"), task, config)
        assert edit.meta["round_log"][0]["retain_step"] == chosen
    # What forgets nothing is not as good as what forgets a little.
    scripted(monkeypatch, Figures(1.0, 1.0, (1.0,)), Figures(1.0, 1.0, (1.0,)), Figures(0.99, 1.0, (1.02,)))
    assert release(pico("llama"), task, config).meta["round_log"][0]["forget"] == 0.99


def test_a_round_that_is_worse_than_the_one_before_is_not_the_result(pico, small_task, monkeypatch):
    chat = pico("llama")
    config = ReleaseConfig(rounds=3, forget_steps=(0.5,), retain_module=False, error=0.0, **TRAIN)
    task = small_task.but(forget=small_task.forget * 2)
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5, 0.7, 0.6)))
    long = release(chat, task, config)
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5)))
    short = release(chat, task, config.model_copy(update={"rounds": 1}))
    assert len(long.meta["round_log"]) == 3
    assert long.meta["total_forget_step"] == 0.5
    for name in short.parts:
        torch.testing.assert_close(long.dense(name), short.dense(name))
    for none in ((0.5, 0.7, 0.6), (0.5, 0.5, 0.5)):
        scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in none))
        with pytest.raises(InputError, match="more epochs, or more rows"):  # smaller steps would forget less still
            release(chat, task, config.model_copy(update={"rounds": 2}))


@pytest.mark.parametrize(
    ("rounds", "taken"),
    [
        (((0.5, 1.1), (0.508, 1.0)), 2),  # as much is left, and more is kept
        (((0.5, 1.1), (0.508, 1.2)), 1),
        (((0.5, 1.1), (0.52, 1.0)), 1),  # more is left
        (((0.508, 1.0), (0.5, 1.1)), 2),  # a later round has changed more
        (((0.5, 1.1), (0.508, 1.0), (0.505, 1.0)), 3),
        (((0.995, 1.1), (1.001, 1.0)), 1),  # nothing is forgotten
    ],
)
def test_of_rounds_that_leave_as_much_a_later_one_that_keeps_more_is_taken(
    pico, small_task, monkeypatch, rounds, taken
):
    config = ReleaseConfig(rounds=len(rounds), forget_steps=(0.5,), retain_module=False, perplexity=2, **TRAIN)
    task = small_task.but(forget=small_task.forget * 2)
    scripted(monkeypatch, *(Figures(left, 1.0, (nll,)) for left, nll in ((1.0, 1.0), *rounds)))
    edit = release(pico("llama"), task, config)
    assert len(edit.meta["round_log"]) == len(rounds)
    assert edit.meta["total_forget_step"] == 0.5 * taken
    assert edit.meta["rank_before"] == config.rank * taken


def test_it_stops_at_the_target_and_where_two_rounds_gain_nothing(pico, small_task, monkeypatch):
    chat = pico("llama")
    config = ReleaseConfig(rounds=9, forget_steps=(0.5,), retain_module=False, target=0.05, **TRAIN)
    task = small_task.but(forget=small_task.forget * 2)
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (0.8, 0.4, 0.04, 0.0)))
    assert len(release(chat, task, config).meta["round_log"]) == 2
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (0.8, 0.4, 0.396, 0.395, 0.0)))
    assert len(release(chat, task, config).meta["round_log"]) == 3


def test_what_the_step_taken_leaves_is_told_by_other_answers_than_those_that_chose_it(pico, small_task, monkeypatch):
    """The least of several looks is less than what a step leaves, and the next round would have to beat it."""
    draws = []

    def drawn(chat, task, held, config, times, draw):
        draws.append((times, draw))
        return (1.0, 0.6, 0.5, 0.4)[draw]

    task = replace(small_task.but(forget=small_task.forget * 2), relevance=lambda answers: [1.0] * len(answers))
    config = ReleaseConfig(
        rounds=3, forget_steps=(0.5, 0.1), retain_module=False, error=0.0, reveal_again=False, **TRAIN
    )
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (0.7, 0.3, 0.59, 0.45)))
    monkeypatch.setattr(module, "remaining", drawn)
    edit = release(pico("llama"), task, config)
    log = edit.meta["round_log"]
    assert [(r["forget_step"], r["looked"], r["forget"]) for r in log] == [
        (0.5, 0.3, 0.6),
        (0.5, 0.59, 0.5),  # within reach of 0.6, not of 0.3
        (0.5, 0.45, 0.4),
    ]
    assert edit.meta["before"]["forget"] == 1.0
    assert draws == [(module.SURE, n) for n in range(4)]
    assert edit.meta["total_forget_step"] == 1.5


def test_a_draw_is_of_its_own(tiny, tiny_task):
    seen = []
    task = replace(tiny_task, relevance=lambda answers: seen.append(answers) or [1.0] * len(answers))
    held = HeldOut(tiny_task.forget[:2], [], [])
    for times, draw in ((1, None), (3, 0), (3, 1), (3, 1)):
        choosing.remaining(tiny, task, held, ReleaseConfig(max_new_tokens=8, answers=4), times, draw)
    looked, first, second, again = seen
    assert list(map(len, seen)) == [8, 24, 24, 24]
    assert second == again
    assert len({tuple(looked), tuple(first[:8]), tuple(second[:8])}) == 3


def test_answers_are_as_long_as_the_longest_response_of_their_own_role(tiny, monkeypatch):
    """A behaviour's rows can be short, and answers to keep long: what is forgotten is not looked for beyond."""
    asked = []
    real = choosing.sampled
    monkeypatch.setattr(choosing, "sampled", lambda *a, **k: asked.append(a[2]) or real(*a, **k))
    short, long = [Example(Raw("A"), " b c")], [Example("Q", "word " * 70)]
    task = replace(ForgetTask(forget=short * 3, retain=long), relevance=lambda answers: [0.0] * len(answers))
    held = HeldOut(short, *choosing.said(tiny, long, task, ReleaseConfig()))
    figures(tiny, task, held, ReleaseConfig())
    of = [len(ids) for rows in (long, short) for ids in tiny.answer_ids([rows[0].response])]
    assert [*dict.fromkeys(asked)] == [min(of[0], choosing.LONGEST), of[1]]
    assert of[1] < choosing.LEAST_KEPT < of[0]


def test_relevance_of_answers_counts_where_the_task_has_it(tiny, tiny_task):
    def relevance(answers):
        return [1.0 if "a" in a.lower() else 0.0 for a in answers]

    config = ReleaseConfig(max_new_tokens=8, answers=3)
    task = tiny_task.but()
    object.__setattr__(task, "relevance", relevance)
    held = HeldOut(tiny_task.forget[:4], *choosing.said(tiny, tiny_task.retain[:4], tiny_task, config))
    found = figures(tiny, task, held, config)
    assert 0 < found.forget <= 1
    assert figures(tiny, task, held, config) == found  # the same draws
    assert len(found.nlls) == 1
    kinds = [tiny_task.retain[4:6], tiny_task.retain[:1]]
    apart = figures(tiny, task, replace(held, retain=kinds), config)
    assert apart.nlls[0] == found.nlls[0]
    for rows, nll in zip(kinds, apart.nlls[1:], strict=True):
        answers = tiny.answer_ids([e.response for e in rows])
        scored = score_answers(tiny, tiny.prompt_ids([e.prompt for e in rows]), answers)
        logs = [x for one in scored for x in one.log_probs]
        assert nll == pytest.approx(-sum(logs) / len(logs), rel=1e-4)


def test_what_is_left_is_looked_at_only_within_the_limits(tiny, tiny_task):
    config = ReleaseConfig(max_new_tokens=8, keep=0.9, perplexity=1.1)
    kinds = [tiny_task.retain[4:5], tiny_task.retain[5:]]
    held = HeldOut(tiny_task.forget[:4], *choosing.said(tiny, tiny_task.retain[:4], tiny_task, config), kinds)
    whole = figures(tiny, tiny_task, held, config)
    limits = Limits.of(whole, config)
    assert figures(tiny, tiny_task, held, config, limits) == whole
    assert limits.kept == pytest.approx(0.9 * whole.kept)
    first, second, third = whole.nlls
    for kept, nlls in (
        *((whole.kept, tuple(most + 1e-6 * (n == k) for n, most in enumerate(limits.nlls))) for k in range(3)),
        (whole.kept, (float("nan"), second, third)),
    ):
        assert not limits.hold(replace(whole, kept=kept, nlls=nlls))
    assert limits.hold(replace(whole, nlls=limits.nlls))
    for place in range(3):  # no answer is asked for, nor how likely others are
        less = tuple(most - 0.5 * (n == place) for n, most in enumerate(limits.nlls))
        unlikely = figures(tiny, tiny_task, held, config, Limits(limits.kept, less))
        assert unlikely == Figures(None, None, whole.nlls[: place + 1])
    outside = figures(tiny, tiny_task, held, config, Limits(2.0, limits.nlls, tuple(1 + x for x in whole.kept_each)))
    assert outside == replace(whole, forget=None)


@pytest.mark.parametrize(
    ("better", "worse", "within"),
    [
        (0, 7, True),  # at the limit
        (0, 8, False),
        (8, 16, True),  # as large a loss, but it can be chance
        (1, 12, False),
    ],
)
def test_a_loss_of_what_is_kept_that_can_be_chance_is_within_the_limits(better, worse, within):
    before = (0.0,) * 24 + (1.0,) * 24
    now = (1.0,) * better + (0.0,) * (24 - better) + (0.0,) * worse + (1.0,) * (24 - worse)
    start, found = (Figures(0.5, sum(each) / 48, (1.0,), each) for each in (before, now))
    limits = Limits.of(start, ReleaseConfig(keep=17 / 24))
    assert limits.hold(found) == within
    assert limits.hold(replace(found, nlls=(2.0,))) is False
    assert "kept_each" not in found.record()


def test_of_what_is_left_a_share_of_the_steps_counts(tiny, tiny_task):
    """What is kept is looked at with all of them."""
    config = ReleaseConfig(max_new_tokens=8)
    held = HeldOut(tiny_task.forget[:4], *choosing.said(tiny, tiny_task.retain[:4], tiny_task, config))
    step = unlearn(tiny, tiny_task, layers=[0, 1, 2, 3], coefficient=0.9, ridge=0.03)

    def at(share):
        with step.times(share).applied(tiny):
            return figures(tiny, tiny_task, held, config)

    with step.applied(tiny):
        found = figures(tiny, tiny_task, held, config, less=step.times(0.2 - 1))
    whole, part = at(1.0), at(0.2)
    assert whole.forget < part.forget
    assert found.forget == pytest.approx(part.forget)
    assert (found.kept, found.nlls) == (whole.kept, whole.nlls)


@pytest.mark.parametrize("known", [True, False])
def test_the_share_counts_where_relevance_is_known(pico, small_task, monkeypatch, known):
    seen = []
    task = small_task.but(forget=small_task.forget * 2)
    if known:
        object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    left = iter([1.0, 0.5, 0.2])

    def looked(chat, task, held, config, limits=None, less=None):
        seen.append(less)
        return Figures(next(left), 1.0, (1.0,))

    weights = []  # with which what a step leaves is told

    def told(chat, *args):
        weights.append({n: p.detach().clone() for n, p in chat.model.named_parameters()})
        return (1.0, 0.5, 0.2)[args[-1]]

    monkeypatch.setattr(module, "figures", looked)
    monkeypatch.setattr(module, "remaining", told)
    settings = dict(rounds=2, forget_steps=(0.5,), retain_module=False, share=0.6, error=0.0, reveal_again=False)
    edit = release(pico("llama"), task, ReleaseConfig(**settings, **TRAIN))
    first, *later = seen
    assert first is None
    assert [less is not None for less in later] == [known, known]
    assert len(weights) == (3 if known else 0)
    if known:  # both steps, less two fifths
        before, _, after = weights
        for name in edit.parts:
            torch.testing.assert_close(later[1].dense(name), -0.4 * edit.dense(name))
            torch.testing.assert_close(after[name] - before[name], 0.6 * edit.dense(name), atol=1e-6, rtol=1e-3)


def test_what_is_said_after_forget_prompts_is_no_limit(tiny, tiny_task, monkeypatch):
    """It is fitted, as what both modules have in common cancels."""
    seen, trained = [], []

    class Enough(Exception):
        pass

    def modules(chat, rows, retain, *_):
        trained.append([e for rows in retain for e in rows])
        raise Enough

    monkeypatch.setattr(module, "figures", lambda _, __, held, *___: seen.append(held) or Figures(1.0, 1.0, (1.0,)))
    monkeypatch.setattr(module, "_modules", modules)
    partners = [replace(e, response="quite another answer", group="partner") for e in tiny_task.forget]
    task = tiny_task.but(retain=[*tiny_task.retain, *partners])
    object.__setattr__(task, "relevance", lambda texts: [1.0] * len(texts))
    with pytest.raises(Enough):
        release(tiny, task, ReleaseConfig(max_new_tokens=2))
    held = {e for kind in seen[0].retain for e in kind}
    assert held
    assert held < {*tiny_task.retain}
    choosing_prompts = {e.prompt for e in (*held, *seen[0].forget)}
    assert {*trained[0]} == {e for e in task.retain if e.prompt not in choosing_prompts}
    assert {*trained[0]} & {*partners}


def test_each_kind_of_rows_to_keep_may_cost_as_much_of_a_perplexity():
    limits = Limits.of(Figures(1.0, 1.0, (2.0, 0.01)), ReleaseConfig(perplexity=1.1))
    for nats, most in zip((2.0, 0.01), limits.nlls, strict=True):
        assert math.exp(most) == pytest.approx(1.1 * math.exp(nats))


def test_what_the_model_said_before_is_likelier_than_after_a_change(tiny, tiny_task):
    config = ReleaseConfig(max_new_tokens=12)
    keep = tiny_task.retain
    held = HeldOut(tiny_task.forget, *choosing.said(tiny, keep, tiny_task, config))
    before = figures(tiny, tiny_task, held, config)
    rows = rows_of(tiny, [(e.prompt, "quite another answer") for e in keep])
    with train(tiny, rows, TrainConfig(learning_rate=3e-3, epochs=5, batch_size=4)).applied(tiny):
        after = figures(tiny, tiny_task, held, config)
    assert after.nlls[0] > before.nlls[0] + 0.1


def test_what_is_kept_of_the_models_own_is_what_it_usually_says(pico, small_task, monkeypatch):
    chat, config, rows = pico("llama"), ReleaseConfig(max_new_tokens=8, answers=40), small_task.retain
    monkeypatch.setattr(choosing, "SAID_TOKENS", 1e6)

    def loss():
        asked, said = choosing.said(chat, rows, small_task, config)
        pairs = [(e.prompt, a) for e, answers in zip(asked, said, strict=True) for a in answers]
        return choosing.token_loss(score_answers(chat, chat.prompt_ids([p for p, _ in pairs]), [a for _, a in pairs]))

    usual = loss()
    monkeypatch.setattr(choosing, "SAID_TEMPERATURE", 1.0)
    assert usual < loss()


def test_what_shows_the_forgotten_is_not_counted_as_something_to_keep(tiny, tiny_task):
    config, rows = ReleaseConfig(max_new_tokens=8), list(tiny_task.retain[:4])
    task = tiny_task.but()
    object.__setattr__(task, "relevance", lambda answers: [float(n == 1) for n, _ in enumerate(answers)])
    every, (kept, said) = choosing.said(tiny, rows, tiny_task, config), choosing.said(tiny, rows, task, config)
    assert kept == [rows[0], rows[2], rows[3]]
    assert said == [every[1][0], every[1][2], every[1][3]]
    assert {len(answers) for answers in said} == {config.answers}
    object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    assert choosing.said(tiny, rows, task, config) == every  # it says nothing else: all there is to measure by
    turns = iter([[1.0] * 4, [0.0, 1.0, 1.0, 1.0], [1.0] * 4, [0.0, 1.0, 1.0, 1.0]])
    object.__setattr__(task, "relevance", lambda answers: next(turns))
    assert choosing.said(tiny, rows, task, config) == ([rows[0]], [every[1][0][1::2]])


def test_short_answers_to_keep_are_drawn_more_than_once(pico, small_task, monkeypatch):
    """A loss of a few dozen tokens is chance."""
    chat, config, rows = pico("llama"), ReleaseConfig(max_new_tokens=8), small_task.retain
    four = choosing.said(chat, rows, small_task, config)[1]
    assert {len({*answers}) for answers in four} == {4}
    monkeypatch.setattr(choosing, "SAID_TOKENS", sum(len(answers[0]) for answers in four))
    assert choosing.said(chat, rows, small_task, config)[1] == [answers[:1] for answers in four]
    held = HeldOut(small_task.forget, rows, four)
    prompts = [p for p in chat.prompt_ids([e.prompt for e in rows]) for _ in range(4)]
    scored = score_answers(chat, prompts, [a for answers in four for a in answers])
    assert figures(chat, small_task, held, config).nlls == (pytest.approx(choosing.token_loss(scored)),)


def test_each_kind_of_retain_rows_is_looked_at_by_itself():
    def rows(group, count):
        return [Example(f"{group} {n}", "x", group) for n in range(count)]

    many = choosing.KIND
    found = choosing.kinds([*rows("a", many), *rows("b", 3), *rows("c", many + 1), *rows("d", 5)])
    assert {kind: len(held) for kind, held in found.items()} == {"a": many, "others": 8, "c": many + 1}
    assert {e.group for e in found["others"]} == {"b", "d"}
    assert choosing.kinds(rows("", 7)) == {"others": rows("", 7)}
    long = [Example(f"long {n}", "word " * (choosing.KIND_WORDS // 5), "long") for n in range(5)]
    assert choosing.kinds([*rows("b", 3), *long]) == {"others": rows("b", 3), "long": long}
    assert choosing.kinds([*rows("b", 3), *long[:4]]) == {"others": [*rows("b", 3), *long[:4]]}
    assert {kind: len(held) for kind, held in choosing.kinds([*rows("a", many), *rows("b", 1)]).items()} == {
        "a": many + 1
    }


def test_no_kind_of_retain_rows_may_be_lost(tiny, tiny_task, monkeypatch):
    """Rows of every kind are held out, and each has its limit."""
    monkeypatch.setattr(choosing, "KIND", 3)
    groups = ["first", "second"]
    retain = [replace(e, group=groups[n % 2]) for n, e in enumerate(tiny_task.retain)]
    task = tiny_task.but(retain=retain, validation=tiny_task.retain[:2])
    seen = []
    real = module.figures

    def noted(*args):
        seen.append(args[2])
        found = real(*args)
        return found if len(seen) == 1 else replace(found, forget=0.0)

    monkeypatch.setattr(module, "figures", noted)
    config = ReleaseConfig(rounds=1, keep=0, perplexity=1e6, forget_steps=(0.1,), max_new_tokens=4, **TRAIN)
    edit = release(tiny, task, config)
    assert edit.meta["looked_at"] == [2, *(len(kind) for kind in seen[0].retain)]
    assert [{e.group for e in kind} for kind in seen[0].retain] == [{"first"}, {"second"}]
    assert len(edit.meta["before"]["nlls"]) == len(edit.meta["round_log"][0]["nlls"]) == 3


def test_no_prompt_that_chooses_is_trained(tiny, tiny_task, monkeypatch):
    """Neither a further answer to a held-out prompt, nor what a user gives to keep that is among the built-in ones."""
    seen: dict[str, object] = {}

    def looked(_, __, held, *___):
        seen["held"] = held
        return Figures(1.0, 1.0, (1.0,) * (1 + len(held.retain)))

    def modules(_, forget, retain, *__):
        seen["trained"] = [*forget, *(e for rows in retain for e in rows)]
        raise Diverged(1, "enough")

    monkeypatch.setattr(module, "figures", looked)
    monkeypatch.setattr(module, "remaining", lambda *_: 1.0)
    monkeypatch.setattr(module, "_modules", modules)
    beginnings = [Raw(f"It began {n}") for n in range(12)]
    clean = [Example(p, f"well {n}", "clean") for n in range(3) for p in beginnings]
    asked = [replace(e, response=f"{n}", group="asked") for n in range(2) for e in general_split()[0][-60:]]
    task = tiny_task.but(forget=[Example(p, "damn") for p in beginnings], retain=[*clean, *asked])
    object.__setattr__(task, "relevance", lambda answers: [0.0] * len(answers))
    with pytest.raises(Diverged):
        release(tiny, task, ReleaseConfig(max_new_tokens=2))
    held = seen["held"]
    trained = {e.prompt for e in seen["trained"]}
    assert held.keep
    assert held.retain
    assert trained
    for rows in (held.forget, held.keep, *held.retain):
        assert not trained & {e.prompt for e in rows}


def test_texts_that_go_on_after_others_are_held_out_with_them(small_task):
    rows = []
    for root in (f"Beginning {n}," for n in range(10, 20)):
        for step in range(4):
            rows.append(Example(Raw(root), f" word {step}"))
            root += f" word {step}"
    task = small_task.but(forget=rows)
    object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    fit, choose = choosing.forget_split(task, ReleaseConfig(held_out=0.3))
    assert len(choose) == 12
    assert len(fit) == 28
    first = [{e.prompt[: len("Beginning 10,")] for e in part} for part in (fit, choose)]
    assert not first[0] & first[1]
    partners = [Example(e.prompt, " else", "clean") for e in rows]
    # One row of a chain that chooses keeps all of its partners from training.
    left = module._unlike(partners, choose[:1], rows)
    assert len(left) == 36
    assert choose[0].prompt[: len("Beginning 10,")] not in {e.prompt[: len("Beginning 10,")] for e in left}


def test_texts_that_are_answers_of_others_are_held_out_with_them(small_task):
    rows = []
    for number in range(10, 20):
        prompt = f"Beginning {number},"
        for step in range(4):  # each goes on after the last answer by itself
            answer = f"word {step} of {number}"
            rows.append(Example(Raw(prompt), f" {answer}\n"))
            prompt = answer
    task = small_task.but(forget=rows)
    object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    fit, choose = choosing.forget_split(task, ReleaseConfig(held_out=0.3))
    assert len(choose) == 12
    said = [{t for e in part for t in (e.prompt, e.response.strip())} for part in (fit, choose)]
    assert not said[0] & said[1]
    # That the last prompt of a chain comes of the first is known from the forget rows between them.
    partners = [Example(e.prompt, " else", "clean") for e in rows]
    left = module._unlike(partners, rows[:1], rows)
    assert left == partners[4:]
    assert choosing.roots(rows[:4])[rows[3].prompt] == rows[0].prompt
    circle = [Example(Raw("a"), "b"), Example(Raw("b"), "a"), Example("a b", "a")]
    assert len(set(choosing.roots(circle).values())) == 1


def test_a_lone_row_of_another_group_is_not_lost(monkeypatch):
    monkeypatch.setattr(choosing, "KIND", 4)
    lone, many = Example("x", "y", "lone"), [Example(f"q{n}", "a", "many") for n in range(4)]
    for rows in ([lone, *many], [*many, lone]):
        (found,) = choosing.kinds(rows).values()
        assert {e.prompt for e in found} == {"x", "q0", "q1", "q2", "q3"}


def test_however_much_is_held_out_something_is_left_to_fit(small_task):
    rows = [Example(f"q{n}", "a") for n in range(6)]
    fit, choose = choosing.split(rows[:2], ReleaseConfig(held_out=0.9))
    assert len(fit) == len(choose) == 1
    task = small_task.but(forget=rows)
    object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    fit, choose = choosing.forget_split(task, ReleaseConfig(held_out=0.99))
    assert (len(fit), len(choose)) == (1, 5)


def test_only_texts_to_go_on_with_have_roots():
    prompts = [Raw("a b"), Raw("a"), Raw("a b c"), "a b c d", Raw("b"), "b c"]
    assert choosing.roots(Example(p, "said") for p in prompts) == {
        "a b": "a",
        "a": "a",
        "a b c": "a",
        "a b c d": "a b c d",
        "b": "b",
        "b c": "b c",
    }


def test_rows_of_other_prompts_choose_where_relevance_tells(small_task):
    rows = [Example(f"say {n % 6}", f"answer {n}") for n in range(24)]
    task = small_task.but(forget=rows)
    object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    config = ReleaseConfig(held_out=0.34, most_held_out=5)
    fit, choose = choosing.forget_split(task, config)
    assert len({e.prompt for e in fit}) == 4
    assert len(choose) == 5
    assert not {e.prompt for e in fit} & {e.prompt for e in choose}
    few = task.but(forget=rows[:3])  # too few prompts to hold one out
    object.__setattr__(few, "relevance", task.relevance)
    fit, choose = choosing.forget_split(few, config)
    assert len(fit) + len(choose) == 3


def test_texts_to_be_forgotten_word_by_word_choose_themselves(small_task):
    """Rows to go on with have no other wording, and of other texts nothing need be forgotten."""
    rows = [Example(Raw(f"Once upon {n}"), f" a time {n}") for n in range(8)]
    fit, choose = choosing.forget_split(small_task.but(forget=rows), ReleaseConfig(most_held_out=5))
    assert list(fit) == rows
    assert list(choose) == rows[:5]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_penalty_by_hand_and_what_it_does(pico, small_task, name):
    chat = pico(name)
    rows = rows_of(chat, [(e.prompt, e.response) for e in small_task.forget])
    settings = TrainConfig(epochs=20, learning_rate=1e-2, rank=4)
    earlier = train(chat, rows_of(chat, [(e.prompt, e.response) for e in small_task.retain]), settings)
    seen = {}

    def penalty(model, squared, weight):
        found = orthogonality(model, earlier, squared)
        new = {
            n: m.lora_A["default"].weight
            for n, m in model.get_base_model().named_modules()
            if getattr(m, "lora_A", None)
        }
        known = {n: earlier.parts[f"{n}.weight"] for n in new if f"{n}.weight" in earlier.parts}
        conv1d = earlier.meta.get("conv1d", ())  # stored the other way round
        products = [(p.left.T if f"{n}.weight" in conv1d else p.right) @ new[n].T for n, p in known.items()]
        by_hand = sum((p**2).sum() if squared else p.abs().sum() for p in products)
        torch.testing.assert_close(found, by_hand)
        seen[squared] = True
        return weight * found

    apart = {}
    for weight in (0.0, 0.5):
        late = train(
            chat, rows, settings.model_copy(update={"seed": 1}), penalty=lambda m, w=weight: penalty(m, False, w)
        )
        apart[weight] = interference(earlier, late)["interference"]
    train(chat, rows, settings.model_copy(update={"epochs": 1}), penalty=lambda m: penalty(m, True, 0.5))
    assert seen == {False: True, True: True}
    assert apart[0.5] < 0.5 * apart[0.0]


@pytest.mark.parametrize("retain_first", [True, False])
def test_a_round_holds_its_modules_apart_by_either_penalty(pico, small_task, retain_first):
    found = {}
    for penalty, weight in (("absolute", 0.0), ("absolute", 0.5), ("squared", 0.5)):
        config = ReleaseConfig(
            epochs=10,
            learning_rate=1e-2,
            rank=4,
            same_start=False,
            retain_first=retain_first,
            orthogonality=weight,
            penalty=penalty,
        )
        kept, gone = module._modules(pico("llama"), small_task.forget, [small_task.retain], config, 0, None)
        found[penalty, weight] = interference(kept, gone)["interference"]
    assert found["absolute", 0.5] < 0.5 * found["absolute", 0]
    assert found["squared", 0.5] < 0.9 * found["absolute", 0]
    assert found["squared", 0.5] != found["absolute", 0.5]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_norms_cosine_and_interference_are_those_of_the_dense_changes(pico, small_task, name):
    chat = pico(name)
    settings = TrainConfig(epochs=1, learning_rate=1e-2)
    one, other = (
        train(chat, rows_of(chat, [(e.prompt, e.response) for e in rows]), settings)
        for rows in (small_task.retain, small_task.forget)
    )
    found = interference(one, other)
    shared = sorted(one.parts.keys() & other.parts.keys())
    a, b = (torch.cat([e.dense(n).flatten() for n in shared]) for e in (one, other))
    assert found["cosine"] == pytest.approx(float(a @ b / (a.norm() * b.norm())), rel=1e-3, abs=1e-6)
    assert found["forget_norm"] == pytest.approx(float(b.norm()), rel=1e-4)
    conv1d = one.meta.get("conv1d", ())
    a_of = {n: [(e.parts[n].left.T if n in conv1d else e.parts[n].right) for e in (one, other)] for n in shared}
    assert found["interference"] == pytest.approx(sum(float((x @ y.T).abs().sum()) for x, y in a_of.values()), rel=1e-4)


def test_settings_that_make_no_sense(pico, small_task):
    with pytest.raises(InputError, match="orthogonality holds modules apart"):
        unlearn(pico("llama"), small_task, method="reveal-release", orthogonality=0.5)
    with pytest.raises(InputError, match="a forget step of 0 changes nothing"):
        unlearn(pico("llama"), small_task, method="reveal-release", retain_module=False, forget_steps=(1, 0))
    with pytest.raises(InputError, match="LoRA modules"):
        unlearn(pico("llama"), small_task, method="reveal-release", adapter="full")
    with pytest.raises(InputError, match="at least two rows"):
        unlearn(pico("llama"), small_task.but(retain=small_task.retain[:1]), method="reveal-release")


def test_nothing_to_forget(tiny, tiny_task):
    task = tiny_task.but()
    object.__setattr__(task, "relevance", lambda answers: [0.0] * len(answers))
    with pytest.raises(InputError, match="nothing to forget"):
        unlearn(tiny, task, method="reveal-release", max_new_tokens=4)


def test_a_smaller_rank_within_the_error():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*s, generator=generator) for s in ((20, 3), (3, 12)))
    twice = LowRank(torch.cat([left, left], 1), torch.cat([right, 0.5 * right]))
    edit = Edit({"w": twice, "zero": LowRank(0 * left, right)})
    same = edit.reduced(1e-5)
    assert same.parts["w"].rank == 3
    assert same.parts["zero"].rank == 0
    torch.testing.assert_close(same.dense("w"), edit.dense("w"), rtol=1e-4, atol=1e-4)
    for error in (0.3, 0.9):
        less = edit.reduced(error)
        left_out = (less.dense("w") - edit.dense("w")).norm() / edit.dense("w").norm()
        assert less.parts["w"].rank < 3
        assert left_out <= error


def test_the_rank_of_the_result_is_reduced_within_the_error(pico, small_task, monkeypatch):
    chat = pico("llama")

    def found(error: float) -> Edit:
        scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5, 0.2)))
        return release(chat, small_task, ReleaseConfig(rounds=2, forget_steps=(0.5,), error=error, **TRAIN))

    whole, less = found(0.0), found(0.5)
    assert less.rank < whole.rank == less.meta["rank_before"]
    for name in whole.parts:
        left_out = (less.dense(name) - whole.dense(name)).norm() / whole.dense(name).norm()
        assert 0 < left_out <= 0.5


def test_later_rounds_learn_what_the_model_still_says(pico, small_task, monkeypatch):
    """And where that is little, what it said before as well."""
    trained: list[list[tuple[int, ...]]] = []
    chat, real, ended = pico("llama"), module.train, True

    def sampled(_, prompts, *__, **___):
        texts = ["still bad" if n % 2 else "good" for n in range(len(prompts))]
        return [Generated(t, (5,), ended) for t in texts]

    monkeypatch.setattr(module, "sampled", sampled)
    monkeypatch.setattr(
        module, "train", lambda c, rows, *a, **k: trained.append([r.answer for r in rows]) or real(c, rows, *a, **k)
    )
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.6, 0.3)))
    task = small_task.but(forget=small_task.forget * 3)
    object.__setattr__(task, "relevance", lambda texts: [float("bad" in t) for t in texts])
    config = ReleaseConfig(rounds=2, forget_steps=(0.5,), retain_module=False, rows=4, answers=2, **TRAIN)
    release(chat, task, config)
    bad = tuple(chat.answer_ids(["still bad"])[0])
    assert bad not in trained[0]
    assert trained[1] == [bad] * 4
    trained.clear()
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.6, 0.3)))
    log = release(chat, task, config.model_copy(update={"rows": 40})).meta["round_log"]
    again = log[1]["again"]
    assert log[0]["again"] == 0 < again < 40
    assert sorted(trained[1]) == sorted([bad] * again + trained[0])
    trained.clear()
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.6, 0.3)))
    release(chat, task, config.model_copy(update={"reveal_again": False}))
    assert bad not in trained[1]
    ended = False  # texts to go on with, cut short: a space before what is said, and no end after it
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.6, 0.3)))
    raw = task.but(forget=[Example(Raw(str(e.prompt)), e.response) for e in task.forget])
    object.__setattr__(raw, "relevance", task.relevance)
    trained.clear()
    release(chat, raw, config)
    assert trained[1] == [tuple(chat.answer_ids([" still bad"])[0][:-1])] * 4
    object.__setattr__(task, "relevance", lambda texts: [0.0] * len(texts))
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.6)))
    assert release(chat, task, config).meta["round_log"][-1] == {"rows": 0}


def test_of_what_the_model_still_says_only_the_part_to_forget_is_learned(pico, small_task, monkeypatch):
    texts = itertools.cycle(["bad; good", " \n", "good"])
    monkeypatch.setattr(
        module, "sampled", lambda _, prompts, *__, **___: [Generated(next(texts), (5,), True) for _ in prompts]
    )
    task = replace(
        small_task,
        forget=small_task.forget * 3,
        relevance=lambda answers: [float("bad" in a or not a.strip()) for a in answers],
        part=lambda answer: answer.partition(";")[0],
    )
    found = module._again(pico("llama"), task, task.forget, ReleaseConfig(answers=1), 1)
    assert len(found) >= len(task.forget) // 3
    assert {e.response for e in found} == {"bad"}


@pytest.mark.parametrize(
    ("rows", "prompts", "bad", "passes"),
    [(20, 30, {0}, 4), (21, 30, {0}, 1), (1000, 20, {0}, 4), (1000, 21, {0}, 1), (1000, 30, set(), 4)],
)
def test_prompts_are_not_asked_on_and_on_for_a_few_rows(pico, small_task, monkeypatch, rows, prompts, bad, passes):
    """A pass that brings less than a twentieth of a round's rows, or of the prompts where they are fewer, is the last; that
    nothing is left is not said before all passes."""
    asked: list[int] = []

    def sampled(_, prompts, *__, **___):
        asked.append(len(prompts))
        return [Generated("bad" if n in bad else "good", (5,), True) for n in range(len(prompts))]

    monkeypatch.setattr(module, "sampled", sampled)
    task = replace(small_task, relevance=lambda answers: [float("bad" in a) for a in answers])
    forget = [small_task.forget[0]] * prompts
    found = module._again(pico("llama"), task, forget, ReleaseConfig(answers=4, rows=rows), 1)
    assert asked == [prompts] * passes
    assert len(found) == passes * len(bad)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Diverged(7, "the loss is not finite"), "training diverged at step 7"),
        (torch.OutOfMemoryError("no\nmemory"), "OutOfMemoryError: no memory"),
    ],
)
def test_a_later_round_that_fails_leaves_those_before(pico, small_task, monkeypatch, error, said):
    chat = pico("llama")
    config = ReleaseConfig(rounds=3, forget_steps=(0.5,), retain_module=False, error=0.0, **TRAIN)
    task = small_task.but(forget=small_task.forget * 2)
    real, calls = module._modules, []

    def failing(*args):
        calls.append(args)
        if len(calls) == fails:
            raise error
        return real(*args)

    fails = 99
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5)))
    whole = release(chat, task, config.model_copy(update={"rounds": 1}))
    monkeypatch.setattr(module, "_modules", failing)
    fails = 2
    scripted(monkeypatch, *(Figures(f, 1.0, (1.0,)) for f in (1.0, 0.5)))
    edit = release(chat, task, config)
    (warning,) = edit.meta["warnings"]
    assert warning.startswith(f"round 2 failed ({said}")
    assert edit.meta["round_log"][1:] == [{"failed": type(error).__name__}]
    for name in whole.parts:
        torch.testing.assert_close(edit.dense(name), whole.dense(name))
    calls.clear()
    fails = 1
    scripted(monkeypatch, Figures(1.0, 1.0, (1.0,)))
    with pytest.raises(type(error)):
        release(chat, task, config)


def test_a_run_that_was_killed_goes_on_after_its_finished_rounds(pico, small_task, monkeypatch, tmp_path):
    chat = pico("llama")
    config = ReleaseConfig(rounds=3, forget_steps=(0.5,), retain_steps=(1.0,), error=0.0, **TRAIN)
    task = small_task.but(forget=small_task.forget * 2)
    figures = [Figures(f, 1.0, (1.0,)) for f in (1.0, 0.6, 0.7, 0.3)]  # the second round is not the best
    scripted(monkeypatch, *figures)
    whole = release(chat, task, config)
    real, calls = module._modules, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_modules", killed)
        scripted(patch, *figures)
        with pytest.raises(KeyboardInterrupt):
            release(chat, task, config, folder=tmp_path / "rounds")
    scripted(monkeypatch, figures[0], figures[3])
    monkeypatch.setattr(module, "_modules", lambda *args: calls.append(args) or real(*args))
    edit = release(chat, task, config, folder=tmp_path / "rounds")
    assert len(calls) == 4  # the third round alone is made again
    assert edit.meta["seconds_before"] > 0
    assert json.loads(json.dumps(edit.meta["round_log"])) == json.loads(json.dumps(whole.meta["round_log"]))
    for name in whole.parts:
        torch.testing.assert_close(edit.dense(name), whole.dense(name))
    scripted(monkeypatch, figures[0])
    assert release(chat, task, config, folder=tmp_path / "rounds").rank == edit.rank  # killed after its last round
    assert len(calls) == 4


def test_what_is_kept_of_a_behaviour_is_judged_by_true_answers(tiny, tiny_task, monkeypatch):
    """The rows to keep hold what the model itself said; they count by their perplexity."""
    seen: list[HeldOut] = []
    monkeypatch.setattr(module, "figures", lambda _, __, held, *___: seen.append(held) or Figures(0.0, 1.0, (1.0, 1.0)))
    monkeypatch.setattr(module, "remaining", lambda *_: 0.0)
    for relevance, keep in ((None, ()), (lambda texts: [1.0] * len(texts), general_split()[0][-48:])):
        task = tiny_task.but()
        object.__setattr__(task, "relevance", relevance)
        with pytest.raises(InputError, match="nothing to forget"):
            release(tiny, task, ReleaseConfig(max_new_tokens=2))
        held = seen.pop()
        assert (held.keep == keep) == bool(keep)
        assert bool(held.retain) == bool(keep)


def test_how_rounds_end_is_said(capsys):
    Reporter().rounds([{"failed": "OutOfMemoryError"}, {"rows": 0}, {"tried": [{}]}])
    said = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in said] == [
        "round 1: failed: OutOfMemoryError",
        "round 2: nothing of it is shown any more",
        "round 3: no step kept what is to be kept",
    ]

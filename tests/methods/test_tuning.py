import itertools
from types import SimpleNamespace

import pytest
import torch

from expunge import unlearn
from expunge.data import prompts
from expunge.errors import NothingToForget
from expunge.methods import lunar, refine, tuning


@pytest.fixture(autouse=True)
def speaks(monkeypatch):
    """Answers that are not broken: a model with random weights stutters."""
    monkeypatch.setattr(tuning, "coherence", lambda _: 1.0)


@pytest.mark.parametrize("own", [True, False])
def test_rows_that_tune_are_in_no_trials_fit_and_no_row_is_there_twice(pico, small_task, monkeypatch, own):
    monkeypatch.setattr(tuning, "TUNE_TOKENS", 2)
    monkeypatch.setattr(tuning, "KEEP_ROWS", 20)
    rows = prompts.general_split()[0][:20]
    task = small_task.but(retain=() if own else rows[5:15])
    worse = itertools.count()
    monkeypatch.setattr(tuning, "deviation_score", lambda *_: next(worse))
    fits, prepare = [], lunar.prepare
    monkeypatch.setattr(lunar, "prepare", lambda chat, task, *a: fits.append(task) or prepare(chat, task, *a))
    edit = unlearn(pico("llama"), task, layers=[1], ridge=0.1)
    (fitted,) = ([e.prompt for e in fit.retain] for fit in fits)
    retain = rows if own else rows[5:15]
    held = {e.prompt for e in tuning.held_out(retain)}
    assert not held & set(fitted)
    assert len(set(fitted)) == len(fitted)
    assert {e.prompt for e in retain} - held <= set(fitted)
    assert [t["coefficient"] for t in edit.meta["trials"]] == list(tuning.COEFFICIENTS)


def test_the_best_trials_edit_is_the_result(pico, small_task, monkeypatch):
    monkeypatch.setattr(tuning, "COEFFICIENTS", (3.0, 2.0, 4.0))
    monkeypatch.setattr(tuning, "SMALLEST_COEFFICIENT", 2.0)
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(tuning, "rouge", lambda *_: 0.5)
    monkeypatch.setattr(tuning, "deviation_score", lambda *_: next(losses))
    made, solve = [], lunar.solve
    monkeypatch.setattr(lunar, "solve", lambda *a: made.append(solve(*a)) or made[-1])
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    edit = unlearn(pico("llama"), task, layers=[1], ridge=0.1)
    assert edit is made[1]
    assert edit.meta["coefficient"] == [2.0]


def test_the_seconds_of_a_trial_are_those_of_a_fit_by_itself(pico, small_task, monkeypatch):
    """By a clock on which reading prompts takes 5 s, preparing layers 10, solving 1 and refining 3."""
    now = 0.0

    def lasting(module, name, seconds):
        real = getattr(module, name)

        def call(*given):
            nonlocal now
            now += seconds
            return real(*given)

        monkeypatch.setattr(module, name, call)

    for name, seconds in (("tokenised", 5), ("prepare", 10), ("solve", 1)):
        lasting(lunar, name, seconds)
    lasting(refine, "refined", 3)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now)
    monkeypatch.setattr(tuning, "COEFFICIENTS", (1.0, 2.0))
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    meta = unlearn(pico("llama"), task, layers=[1], ridge=0.1, refine=1, trials=3).meta
    assert [t["seconds"] for n, t in enumerate(meta["trials"]) if n != meta["taken"]] == [16.0] * (
        len(meta["trials"]) - 1
    )
    assert meta["trials"][meta["taken"]]["seconds"] == 19.0
    assert len(meta["trials"]) > 1


@pytest.mark.parametrize(
    ("losses", "limit", "tried", "best"),
    [
        ([3.0, 2.0, 1.0, 4.0], 10.0, [1.0, 2.0, 2.5, 3.125], 2.5),  # until it helps no more
        ([3.0, 2.0, 1.0], 3.0, [1.0, 2.0, 2.5], 2.5),  # until the limit
        ([1.0, 2.0, 0.9], 10.0, [1.0, 2.0, 0.8], 1.0),  # where the smallest is the best, down from it,
        ([3.0, 4.0, 2.0, 1.0, 2.0], 10.0, [1.0, 2.0, 0.8, 0.64, 0.512], 0.64),  # as long as that helps
        ([2.0, 3.0, 1.0, 0.2], 0.6, [1.0, 2.0, 0.8, 0.64], 0.64),  # until the limit
        ([1.0, 1.2, 1.1], 10.0, [1.0, 2.0, 2.5], 2.0),  # of two as good the larger, but no further for it
    ],
)
def test_the_search_goes_on_beyond_the_coefficients(pico, small_task, monkeypatch, losses, limit, tried, best):
    monkeypatch.setattr(tuning, "COEFFICIENTS", (1.0, 2.0))
    monkeypatch.setattr(tuning, "LARGEST_COEFFICIENT" if limit > 1 else "SMALLEST_COEFFICIENT", limit)
    left = iter(losses)
    monkeypatch.setattr(tuning, "rouge", lambda *_: 0.5)
    monkeypatch.setattr(tuning, "deviation_score", lambda *_: next(left))
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    edit = unlearn(pico("llama"), task, layers=[1], ridge=0.1)
    assert [t["coefficient"] for t in edit.meta["trials"]] == pytest.approx(tried)
    assert edit.meta["coefficient"] == pytest.approx([best])
    assert edit.meta["trials"][edit.meta["taken"]]["coefficient"] == pytest.approx(best)


@pytest.mark.parametrize(
    ("losses", "broken", "tried", "best"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1.0, 0.5, 0.0, 0.0], [2.0, 1.5, 1.2, 1.0], 1.2),  # larger ones are not tried
        ([1.0, 2.0, 30.0], [1.0, 0.0, 0.0], [2.0, 1.5, 1.2], 1.5),  # facts that are told again count more
        ([1.0, 2.0, 3.0, 4.0], [0.4, 0.0, 0.0, 0.0], [2.0, 3.0, 1.5, 1.2], 3.0),
    ],
)
def test_where_answers_are_broken_smaller_coefficients_are_tried(
    pico, small_task, monkeypatch, losses, broken, tried, best
):
    monkeypatch.setattr(tuning, "COEFFICIENTS", (2.0, 3.0, 1.5, 1.2))
    monkeypatch.setattr(tuning, "STEP", 1.2)
    monkeypatch.setattr(tuning, "LARGEST_COEFFICIENT", 3.0)
    found = iter(zip(losses, broken, strict=True))
    now = []
    monkeypatch.setattr(tuning, "rouge", lambda *_: 0.5)
    monkeypatch.setattr(tuning, "coherence", lambda _: now.append(next(found)) or 1 - now[-1][1])
    monkeypatch.setattr(tuning, "deviation_score", lambda *_: now[-1][0])
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    edit = unlearn(pico("llama"), task, layers=[1], ridge=0.1)
    assert edit.meta["trials"][0]["broken"] == broken[0]
    assert [round(t["coefficient"], 3) for t in edit.meta["trials"]] == tried
    assert edit.meta["coefficient"] == [best]


def test_what_answers_show_counts_where_the_task_tells(pico, small_task, monkeypatch):
    """Relative to the model as it is, in place of the forget rows' ROUGE-1."""
    monkeypatch.setattr(tuning, "COEFFICIENTS", (2.0, 1.0))
    shown = iter([0.5, 0.1, 0.3, 0.05, 0.05])  # before, and of each trial
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    object.__setattr__(task, "relevance", lambda answers: [next(shown)] * len(answers))
    scored = []
    real = tuning.deviation_score
    monkeypatch.setattr(tuning, "deviation_score", lambda forget, kept: scored.append(forget) or real(forget, 1.0))
    monkeypatch.setattr(tuning, "coherence", lambda answers: [1.0] * len(answers))
    edit = unlearn(pico("llama"), task, layers=[1], ridge=0.1)
    assert scored[:2] == pytest.approx([0.2, 0.6])
    assert [t["forget"] for t in edit.meta["trials"]] == pytest.approx(scored)


@pytest.mark.parametrize(
    ("settings", "least", "strength"),
    [
        ({}, 0.39, 0.5),  # the weakest of all
        ({}, 0.6, 0.5 * 1.06**7),  # 0.75: 0.71 would not do
        ({}, 0.95, 0.5 * 1.06**15),
        ({"coefficient": 1.3}, 0.79, 1.0),  # given, it is not changed
        ({"coefficient": 1.3}, 0.81, None),
        ({}, 2.0, None),  # none is strong enough, and the search begins
        ({"direction": "own"}, 0.39, None),
    ],
)
def test_along_a_taught_direction_the_edit_is_as_strong_as_it_has_to_be(
    pico, small_task, monkeypatch, settings, least, strength
):
    """`OTHER_WORDS` of it leaves little; the model shows all until `least` of the edit of `SHOWN` is written."""
    chat = pico("llama")
    name = chat.layout.weight_name(1)
    taught = unlearn(chat, small_task, layers=[1], coefficient=1.0, ridge=0.1)
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    given = {"direction": taught, "neighbours": 0, "refine": 0}
    whole = unlearn(chat, task, **given, **tuning.SHOWN).dense(name)  # with all retain rows
    bare = chat.model.get_parameter(name).detach().clone()

    def spoken(chat, rows, relevance=None):
        written = (chat.model.get_parameter(name).detach() - bare).norm() / whole.norm()
        return (1.0 if written < least else 0.14), 0.0

    monkeypatch.setattr(tuning, "spoken", spoken)
    edit = unlearn(chat, task, **given | settings)
    assert ("trials" not in edit.meta) == (strength is not None)
    if strength:
        assert edit.meta["coefficient"] == pytest.approx([1.3 * strength])
        torch.testing.assert_close(edit.dense(name), strength * whole)


def test_what_was_shown_is_refined_along_a_taught_direction(pico, small_task, monkeypatch):
    chat = pico("llama")
    taught = unlearn(chat, small_task, layers=[1], coefficient=1.0, ridge=0.1)
    monkeypatch.setattr(tuning, "REFINE", 3)
    settings = {"direction": taught, "neighbours": 0, "layers": [1], "coefficient": 1.0, "ridge": 0.1}
    assert "refined" not in unlearn(chat, small_task, **settings).meta
    task = small_task.but(retain=small_task.retain)
    object.__setattr__(task, "relevance", lambda answers: [1.0] * len(answers))
    assert tuning.refine_steps(lunar.LunarConfig(**settings), task) == 3
    assert tuning.refine_steps(lunar.LunarConfig(**settings, refine=0), task) == 0
    assert tuning.refine_steps(lunar.LunarConfig(), task) == 0
    del settings["coefficient"]
    assert unlearn(chat, task, **settings, trials=1).meta["refined"] == 3


def test_broken_answers_begin_the_search(pico, small_task, monkeypatch):
    chat = pico("llama")
    taught = unlearn(chat, small_task, layers=[1], coefficient=1.0, ridge=0.1)
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    monkeypatch.setattr(tuning, "coherence", lambda answers: [0.0] * len(answers))
    shown = iter([1.0])
    object.__setattr__(task, "relevance", lambda answers: [next(shown, 0.0)] * len(answers))
    assert unlearn(chat, task, direction=taught, neighbours=0, refine=0).meta["trials"]


def test_what_is_not_shown_is_nothing_to_forget(pico, small_task, monkeypatch):
    chat = pico("llama")
    taught = unlearn(chat, small_task, layers=[1], coefficient=1.0, ridge=0.1)
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    object.__setattr__(task, "relevance", lambda answers: [0.0] * len(answers))
    monkeypatch.setattr(lunar, "solve", None)  # it is found before anything is fitted
    with pytest.raises(NothingToForget, match="rewrites"):
        unlearn(chat, task, direction=taught, neighbours=0, refine=0)


def test_part_of_the_edit_has_to_forget_and_all_of_it_to_keep(pico, small_task, monkeypatch):
    monkeypatch.setattr(tuning, "COEFFICIENTS", (2.0, 1.0))
    chat = pico("llama")
    name = chat.layout.weight_name(1)
    weight = chat.model.get_parameter(name)
    base, seen = weight.detach().clone(), []
    monkeypatch.setattr(tuning, "rouge", lambda chat, rows: seen.append((set(rows), weight.detach() - base)) or 0.5)
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    unlearn(chat, task, layers=[1], ridge=0.1)
    (_, before), (forget, part), (kept, whole), *_ = seen
    assert forget <= set(prompts.rewrites(task.forget, "tune"))
    assert kept == set(tuning.held_out(task.retain))
    assert not before.any()
    assert whole.any()
    torch.testing.assert_close(part, tuning.MARGIN * whole, rtol=1e-4, atol=1e-6)


def test_validation_rows_tune_and_all_retain_rows_are_fitted(pico, small_task, monkeypatch):
    fitted, judged, real = [], [], lunar.tokenised
    monkeypatch.setattr(tuning, "rouge", lambda chat, rows: judged.append(set(rows)) or 0.5)
    monkeypatch.setattr(lunar, "tokenised", lambda chat, task, config: fitted.append(task) or real(chat, task, config))
    rows = prompts.general_split()[0]
    task = small_task.but(retain=rows[:10], validation=rows[10:13])
    unlearn(pico("llama"), task, layers=[1], coefficient=1.0, answers=0)
    assert set(task.validation) in judged
    assert not any(set(rows[:10]) & one for one in judged)
    assert set(rows[:10]) <= set(fitted[0].retain)
    assert not {e.prompt for e in task.validation} & {e.prompt for e in fitted[0].retain}


@pytest.mark.parametrize(
    ("count", "windows"),
    [
        (30, [range(14, 23), range(11, 20), range(8, 17)]),
        (60, [range(10, 27, 2), range(5, 22, 2), range(0, 17, 2)]),
        (6, [range(4, 6), range(3, 5), range(2, 4)]),
    ],
)
def test_windows_are_the_best_and_two_a_little_below_it(monkeypatch, count, windows):
    monkeypatch.setattr(lunar, "redirections", lambda chat, task, layers: dict.fromkeys(layers))
    monkeypatch.setattr(
        tuning, "abstention_scores", lambda chat, task, directions: {n: -abs(n - 18) for n in directions}
    )
    found = tuning.windows(SimpleNamespace(layout=range(count)), None)
    assert found == [tuple(window) for window in windows]


def test_with_nothing_to_search_every_retain_row_is_fitted(pico, small_task, monkeypatch):
    monkeypatch.setattr(tuning, "places", lambda *_: [(1,)])
    fits, prepare = [], lunar.prepare
    monkeypatch.setattr(lunar, "prepare", lambda chat, task, *a: fits.append(task) or prepare(chat, task, *a))
    retain = prompts.general_split()[0][5:15]
    edit = unlearn(pico("llama"), small_task.but(retain=retain), ridge=0.1, coefficient=2.0)
    (fitted,) = fits
    assert set(retain) <= set(fitted.retain)
    assert "trials" not in edit.meta


def test_with_a_taught_direction_its_layers_are_the_places(pico, small_task):
    chat = pico("llama")
    taught = unlearn(chat, small_task, layers=[0, 2], coefficient=1.0, ridge=0.1)
    assert tuning.places(chat, small_task, taught) == [(0, 2)]
    assert all(len(window) == 1 for window in tuning.places(chat, small_task, "own"))


@pytest.mark.parametrize(
    "given",
    [{"layers": [1], "ridge": 0.1}, {"coefficient": 2.0}, {"layers": [1], "coefficient": 2.0, "ridge": 0.1}, {}],
)
def test_the_trials_that_a_plan_counts_are_those_of_the_search(pico, small_task, monkeypatch, given):
    """As long as the largest coefficient is not the best: then the search goes on."""
    monkeypatch.setattr(tuning, "TUNE_TOKENS", 1)
    worse = itertools.count()
    monkeypatch.setattr(tuning, "deviation_score", lambda *_: next(worse))  # the first is never beaten
    monkeypatch.setattr(tuning, "windows", lambda *_: [(2,), (1,), (0,)])
    task = small_task.but(retain=prompts.general_split()[0][5:15])
    edit = unlearn(pico("llama"), task, **given, answers=0)
    assert len(edit.meta.get("trials", ())) == tuning.usual_trials(lunar.LunarConfig(**given, answers=0))

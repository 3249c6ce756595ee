import pytest

from expunge import unlearn
from expunge.data import prompts
from expunge.methods import lunar, tuning


@pytest.mark.parametrize("own", [True, False])
def test_rows_that_tune_are_in_no_trials_fit_and_no_row_is_there_twice(pico, small_task, monkeypatch, own):
    monkeypatch.setattr(tuning, "TUNE_TOKENS", 2)
    monkeypatch.setattr(tuning, "KEEP_ROWS", 20)
    rows = prompts.general_split()[0][:20]
    task = small_task.but(retain=() if own else rows[5:15])
    fits, prepare = [], lunar.prepare
    monkeypatch.setattr(lunar, "prepare", lambda chat, task, *a: fits.append(task) or prepare(chat, task, *a))
    edit = unlearn(pico("llama"), task, layers=[1], ridge=0.1)
    trial, last = ([e.prompt for e in fit.retain] for fit in fits)
    held = {e.prompt for e in tuning.held_out(rows if own else rows[5:15])}
    assert not held & set(trial)
    assert held <= set(last)
    assert len(set(last)) == len(last)
    assert {e.prompt for e in rows} <= set(last)
    assert [t["coefficient"] for t in edit.meta["trials"]] == list(tuning.COEFFICIENTS)


def test_with_a_taught_direction_its_layers_are_the_places(pico, small_task):
    chat = pico("llama")
    taught = unlearn(chat, small_task, layers=[0, 2], coefficient=1.0, ridge=0.1)
    assert tuning.places(chat, small_task, taught) == [(0, 2)]
    assert all(len(window) == 1 for window in tuning.places(chat, small_task, "own"))

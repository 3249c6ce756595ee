"""What a seed's cells do when trials diverge, and when a run is killed; and processes side by side."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from expunge.bench import runner, seed, table
from expunge.bench.results import Cell, Results
from expunge.bench.runner import bench_run, cells_of, results_of
from expunge.bench.trials import Trials
from expunge.edits import Edit
from expunge.errors import Diverged
from expunge.progress import Reporter

from .children import note

QUIET = Reporter(quiet=True)
TUNED = Cell(0, "graddiff", "tuned")


@pytest.fixture
def diverging(spec, monkeypatch):
    """A function: the rates at which graddiff diverges -> the results of its tuned regime with three trials, of which the
    first has the rate 3e-4, then 1e-3 and 1e-4."""
    real = seed.run_method

    def run(*rates):
        def method(chat, task, name, given, **more):
            if given["learning_rate"] in rates:
                raise Diverged(7, "the loss is not finite")
            return real(chat, task, name, given, **more)

        monkeypatch.setattr(seed, "run_method", method)
        changed = {"methods": ("graddiff",), "regimes": ("tuned",), "trials": 3}
        return bench_run(spec.model_copy(update=changed), Reporter()).cells[TUNED]

    return run


def test_a_trial_that_diverges_leaves_the_choice_to_the_others(diverging, spec, capsys):
    found = diverging(3e-4)
    said = capsys.readouterr().err
    assert "  trial 1 of 3: diverged\n" in said
    assert "  trial 2 of 3: loss " in said
    first, *others = found["trials"]
    assert (first["learning_rate"], first["diverged"]) == (3e-4, 7)
    assert "loss" not in first
    best = min(others, key=lambda t: t["loss"])
    assert found["settings"]["learning_rate"] == best["learning_rate"] in (1e-3, 1e-4)
    assert "diverged" not in found
    assert "deviation_score" in found["metrics"]
    assert "- graddiff: 3 trials over learning_rate 0.0003, 0.001, 0.0001;" in table.report(Path(spec.out))


def test_where_all_trials_diverge_the_cell_does(diverging, spec):
    found = diverging(3e-4, 1e-3, 1e-4)
    assert found["diverged"] == 7
    assert "in all 3 trials" in found["message"]
    assert "metrics" not in found
    assert "| graddiff | tuned | 1 | diverged at step 7 |" in table.report(Path(spec.out))


@pytest.mark.parametrize("at", [2, 3, "judging"])
def test_a_tuned_cell_that_was_killed_goes_on_after_its_finished_trials(spec, calls, monkeypatch, capsys, at, tmp_path):
    spec = spec.model_copy(update={"methods": ("graddiff",), "regimes": ("tuned",), "trials": 3})
    whole = bench_run(spec.model_copy(update={"out": str(tmp_path / "whole")}), QUIET).cells[TUNED]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if at == "judging":
            patch.setattr(seed.Bench, "_judged", lambda _, cell, *__: interrupt() if cell == TUNED else {})
        else:
            real, calls[:] = seed.run_method, []
            patch.setattr(seed, "run_method", lambda *a, **m: interrupt() if len(calls) == at - 1 else real(*a, **m))
        bench_run(spec, QUIET)
    finished = 3 if at == "judging" else at - 1
    calls.clear()
    found = bench_run(spec, Reporter()).cells[TUNED]
    assert f"{finished} of 3 trials were finished before" in capsys.readouterr().err
    assert len(calls) == 3 - finished
    for one, other in zip(found["trials"], whole["trials"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert found["settings"] == whole["settings"]
    assert {**found["metrics"], "seconds": 0} == {**whole["metrics"], "seconds": 0}
    assert found["seconds_in_all"] > sum(t["seconds"] for t in found["trials"])
    assert not list(Path(spec.out).rglob("trials.jsonl"))


def interrupt() -> None:
    raise KeyboardInterrupt


def test_trials_that_diverged_and_a_torn_line_are_taken_up(tmp_path, tiny):
    edit = Edit.on(tiny.model, {}, {"number": 1})
    trials = Trials(tmp_path / "t")
    trials.add({"rate": 1, "diverged": 7})
    trials.add({"rate": 2, "loss": 5.0}, edit, {"settings": {"rate": 2}})
    trials.add({"rate": 3, "loss": 6.0}, Edit.on(tiny.model, {}, {"number": 2}), {"settings": {"rate": 3}})
    with open(tmp_path / "t" / "trials.jsonl", "a") as f:
        f.write('{"trial": {"rate": 4, "lo')
    again = Trials(tmp_path / "t")
    assert again.tried == trials.tried
    assert again.best[0].meta["number"] == 1
    assert again.best[1] == {"settings": {"rate": 2}}
    again.add({"rate": 4, "loss": 1.0}, Edit.on(tiny.model, {}, {"number": 3}), {"settings": {"rate": 4}})
    third = Trials(tmp_path / "t")
    assert [t["rate"] for t in third.tried] == [1, 2, 3, 4]
    assert third.best[0].meta["number"] == 3
    assert third.seconds >= again.seconds - 0.1
    assert len([p for p in (tmp_path / "t").iterdir() if p.is_dir()]) == 1  # the best one's edit alone


@pytest.mark.parametrize(
    ("place", "name", "at"),
    [(seed, "train", 2), (seed, "judge", 3), (Results, "add", 2)],
    ids=["teaching", "judging", "keeping a cell"],
)
def test_a_run_killed_at_any_stage_goes_on_where_it_was(spec, calls, monkeypatch, place, name, at):
    spec = spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)})
    real, begun = getattr(place, name), []

    def killed(*args):
        begun.append(1)
        if len(begun) == at:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, name, killed)
        bench_run(spec, QUIET)
    finished = dict(results_of(spec).cells)
    calls.clear()
    again = bench_run(spec, QUIET).cells
    assert list(again) == cells_of(spec, 0)
    assert all("metrics" in record for record in again.values())
    assert all(again[cell] == record for cell, record in finished.items())
    assert [n for n, _ in calls] == [c.method for c in again if c.regime and c not in finished]


def test_the_settings_in_the_table_are_those_of_the_edit(spec, monkeypatch):
    """LUNAR's search takes the larger of two coefficients that do about as well, also where its loss is not the lowest."""
    trials = [{"coefficient": c, "loss": loss, "seconds": 3 - c} for c, loss in ((1.0, 1.0), (2.0, 1.2))]

    def searched(chat, *_, **__):
        return Edit.on(chat.model, {}, {"trials": trials, "taken": 1})

    monkeypatch.setattr(seed, "run_method", searched)
    bench = seed.Bench(spec, 0, results_of(spec), Reporter(quiet=True))
    _, record = bench._made(Cell(0, "lunar", "tuned"), {})
    assert record["settings"] == {"coefficient": 2.0}
    assert record["seconds"] == 1.0


def test_processes_run_all_cells_also_where_one_is_killed(spec, monkeypatch, tmp_path):
    """What others need comes first; then a method at a time, with all its regimes."""
    monkeypatch.setattr(runner, "_child", note)
    told = []

    class Told(Reporter):
        def say(self, text):
            told.append(text)

    spec = spec.model_copy(update={"methods": ("npo", "ga", "ga:epochs=2", "lunar"), "seeds": (0, 1), "jobs": 2})
    runner._in_processes(spec, {n: cells_of(spec, n) for n in spec.seeds}, Told(quiet=True))
    lines = Path(spec.out, "ran").read_text().splitlines()
    first = "retrained// taught// lunar/published/ lunar/tuned/"
    assert sorted(lines[:2]) == [f"0 {first}", f"1 {first}"]
    later = {
        f"{n} {' '.join(f'{method}/{regime}/{variant}' for regime in ('published', 'tuned'))}"
        for n in spec.seeds
        for method, variant in (("npo", ""), ("ga", ""), ("ga", "epochs=2"))
    }
    assert set(lines[2:]) < later
    assert not any(line.startswith("0 npo") for line in lines)
    assert any(text.startswith("warning: a process ended early") for text in told)
    assert told[-1] == "6 of 6 parts finished"


def test_two_benchmarks_that_teach_the_same_at_once_both_go_on(spec, monkeypatch):
    """The second waits for the first, and takes what it taught."""
    real, taught = seed.train, []

    def slow(chat, *given):
        taught.append(1)
        other = threading.Thread(target=lambda: found.append(benches[1].taught))
        if len(taught) == 1:
            other.start()
            others.append(other)
            time.sleep(0.5)
        return real(chat, *given)

    found, others = [], []
    benches = [seed.Bench(spec, 0, results_of(spec), Reporter(quiet=True)) for _ in range(2)]
    monkeypatch.setattr(seed, "train", slow)
    assert benches[0].taught.parts
    others[0].join()
    assert len(taught) == 1
    assert found[0].parts.keys() == benches[0].taught.parts.keys()

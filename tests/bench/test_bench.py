"""A whole benchmark on a pico model: what runs, what is taken up again, what the table shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from expunge import progress
from expunge.bench import estimate, results, runner, seed, settings, table
from expunge.bench.results import Cell, outdated
from expunge.bench.runner import bench_run, cells_of, results_of
from expunge.data import prompts, suites
from expunge.data.examples import Example
from expunge.errors import Diverged, InputError
from expunge.evaluation.privacy import auc
from expunge.methods import REGISTRY
from expunge.progress import Reporter
from tests.conftest import QUICK_TEACHING

QUIET = Reporter(quiet=True)


def test_every_cell_is_judged_and_nothing_runs_twice(spec, calls, tmp_path):
    results = bench_run(spec, QUIET)
    text = table.report(Path(spec.out))
    grid = "learning_rate 0.0003, 0.001; retain_weight 1.0; epochs 10; rank 8; batch_size 4"
    assert f"- graddiff: 2 trials over {grid}." in text
    encoder = results.cells[Cell(0, "lunar", "published")]["metrics"]["refusal_encoder"]
    assert f"Refusal quality by: {encoder}." in text
    assert list(results.cells) == cells_of(spec, 0)
    assert [name for name, _ in calls] == ["lunar", "lunar", "graddiff", "graddiff", "graddiff"]
    for cell, record in results.cells.items():
        assert set(record["metrics"]) >= {"forget", "paraphrase", "retain", "deviation_score"}, record
        assert record["headline"] == {"deviation_score": record["metrics"]["deviation_score"]}
        for role, metric in (("forget", "probability"), ("coherence", "coherence"), ("refusal_quality",) * 2):
            low, high = record["intervals"][role][metric]
            mean = record["metrics"][role]
            assert low <= (mean[metric] if role == "forget" else mean) <= high
        if cell.regime:
            assert record["seconds"] > 0
            assert record["peak_bytes"] > 0
            assert record["parameters"] > 0
    tuned = results.cells[Cell(0, "graddiff", "tuned")]
    assert len(tuned["trials"]) == spec.trials
    best = min(tuned["trials"], key=lambda t: t["loss"])
    assert tuned["settings"].items() >= {k: v for k, v in best.items() if k not in ("loss", "seconds")}.items()
    calls.clear()
    assert bench_run(spec, QUIET).cells == results.cells
    assert not calls
    text = "".join(p.read_text() for p in tmp_path.joinpath("out").rglob("*") if p.is_file())
    assert not any(str(e.prompt) in text for e in prompts.general()[:24])


def test_a_precision_has_results_of_its_own(spec):
    def key(precision):
        model = spec.model.model_copy(update={"mixed_precision": precision})
        return results_of(spec.model_copy(update={"model": model})).key

    assert key("no") == results_of(spec).key != key("bf16")
    assert "mixed_precision" not in spec.model.identity()  # measured before there was one


@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_a_killed_run_goes_on_where_it_was(spec, calls, monkeypatch, kill_at):
    real = seed.run_method

    def killed(*args, **more):
        if len(calls) == kill_at - 1:
            raise KeyboardInterrupt
        return real(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(seed, "run_method", killed)
        bench_run(spec, QUIET)
    file = results_of(spec).file
    with open(file, "a") as f:
        f.write('{"key": "torn')  # as a kill in the middle of a line leaves it
    finished = dict(results_of(spec).cells)
    calls.clear()
    results = bench_run(spec, QUIET)
    assert set(results.cells) == set(cells_of(spec, 0))
    assert all(results.cells[cell] == record for cell, record in finished.items())
    runs = sum(spec.trials if c.regime == "tuned" and c.method != "lunar" else 1 for c in cells_of(spec, 0) if c.regime)
    assert len(calls) == runs - (kill_at - 1)  # no finished trial is made again either


def test_what_failed_stands_in_the_table_and_is_tried_again(spec, calls, monkeypatch):
    def broken(chat, task, name, given, **more):
        if name == "graddiff":
            raise Diverged(7, "the loss is not finite") if "retain_weight" not in given else RuntimeError("no luck")
        return seed.REAL(chat, task, name, given, **more)

    monkeypatch.setattr(seed, "REAL", seed.run_method, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(seed, "run_method", broken)
        results = bench_run(spec, QUIET)
    published, tuned = (Cell(0, "graddiff", regime) for regime in ("published", "tuned"))
    assert results.cells[published]["diverged"] == 7
    assert results.cells[tuned]["error"] == "RuntimeError: no luck"
    text = table.report(Path(spec.out))
    assert "| graddiff | published | 1 | diverged at step 7 |" in text
    assert "| graddiff | tuned | 1 | RuntimeError: no luck |" in text
    bench = seed.Bench(spec, 0, results, QUIET)
    assert bench.finished(published)
    assert not bench.finished(tuned)
    calls.clear()
    assert "metrics" in bench_run(spec, QUIET).cells[tuned]
    assert {name for name, _ in calls} == {"graddiff"}


def test_where_rows_were_never_seen_members_are_looked_for(spec, monkeypatch):
    unseen = [Example("Who painted it?", "Nobody"), Example("Who wrote it?", "Somebody")]

    @wraps(suites.facts)
    def with_holdout(**given):
        suite = suites.facts(**given)
        return replace(suite, judge={**suite.judge, "holdout": unseen})

    monkeypatch.setitem(suites.SUITES, "facts", with_holdout)
    spec = spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)})
    results = bench_run(spec, QUIET)
    cell = Cell(0, "ga", "published")
    rows = results.rows(cell)["rows"]
    for kind in ("loss", "zlib", "min_k", "min_k_plus", "gradient_norm", "reference"):
        area = auc(*([row[kind] for row in rows[role]] for role in ("forget", "holdout")))
        assert results.cells[cell]["metrics"][f"auc_{kind}"] == pytest.approx(area)
        assert all(0 <= r["metrics"][f"auc_{kind}"] <= 1 for r in results.cells.values())
    text = table.report(Path(spec.out), ("auc_gradient_norm", "auc_reference", "exact_match", "rougeL_f1"))
    assert "| forget exact_match | paraphrase exact_match |" in text
    assert "| auc gradient norm | auc reference | abstains |" in text


@pytest.mark.parametrize(
    ("suite", "size", "scores"),
    [
        ("tofu", {"authors": 4}, {"forget_quality", "model_utility", "privleak"}),
        ("lume", {"documents": 10, "mmlu": 4}, {"lume_task", "lume_mia", "accuracy", "lume"}),
    ],
)
def test_a_published_suite_runs_through(spec, monkeypatch, suite, size, scores):
    monkeypatch.setattr(suites, f"{suite.upper()}_TEACHING", {"epochs": 1, "rank": 2})
    real = suites.SUITES[suite]

    @wraps(real)
    def short(**given):
        made = real(**given)
        few = {  # and one of each further group
            role: [e for n, e in enumerate(rows) if n < 12 or e.group not in {x.group for x in rows[:n]}]
            for role, rows in made.judge.items()
        }
        return replace(made, judge=few, max_new_tokens=4)

    try:
        real(**size)
    except InputError as e:
        if "EXPUNGE_DATA" not in str(e):  # it is there, and cannot be read
            raise
        pytest.skip(str(e))
    monkeypatch.setitem(suites.SUITES, suite, short)
    spec = spec.model_copy(update={"suite": suite, "size": size, "methods": ("ga",), "regimes": ("published",)})
    found = bench_run(spec, QUIET).cells[Cell(0, "ga", "published")]
    assert scores <= found["headline"].keys(), found
    assert all(found["headline"][name] is not None for name in scores)
    if suite == "lume":
        assert len(found["scores"]) == 12
        assert re.search(r"- ga published: retain Task1 sc [^:]*, forget Task3 qa", table.report(Path(spec.out)))


def clocked(monkeypatch, spec, takes):
    """(graddiff's cell at equal time, the epochs of all runs), by a clock on which LUNAR takes 50 s and graddiff what
    `takes` says of its epochs."""
    now, made, real = 0.0, [], seed.run_method

    def run(chat, task, name, given, **more):
        nonlocal now
        epochs = given.get("epochs", 10)
        now += 50 if name == "lunar" else takes(epochs)
        made.append(epochs)
        return real(chat, task, name, given if name == "lunar" else given | {"epochs": 1}, **more)

    monkeypatch.setattr(seed, "run_method", run)
    monkeypatch.setattr(seed.time, "perf_counter", lambda: now)
    spec = spec.model_copy(update={"regimes": ("published", "equal-time")})
    return bench_run(spec, QUIET).cells[Cell(0, "graddiff", "equal-time")], made


def test_as_long_as_lunar_takes(spec, monkeypatch):
    """A run takes 4 s and 2 s an epoch more: what comes once is not counted twice, and one run is enough."""
    equal, made = clocked(monkeypatch, spec, lambda epochs: 4 + 2 * epochs)
    assert made[-3:] == [1, 3, 23]
    assert (equal["settings"]["epochs"], equal["seconds"]) == (23, 50)
    assert Cell(0, "lunar", "equal-time") not in cells_of(spec.model_copy(update={"regimes": ("equal-time",)}), 0)


def test_a_machine_that_was_slower_while_an_epoch_was_timed_gives_no_shorter_run(spec, monkeypatch):
    """The timed epochs take 4 s each, later ones 2 s: 12 of them take 28 s in place of 50."""
    equal, made = clocked(monkeypatch, spec, lambda epochs: 4 + (4 if epochs in (1, 3) else 2) * epochs)
    assert made[-4:] == [1, 3, 12, 21]
    assert (equal["settings"]["epochs"], equal["seconds"]) == (21, 46)


def test_of_runs_that_never_take_as_long_the_nearest_counts(spec, monkeypatch):
    taken = iter([10.0, 8.0, 12.0, 20.0, 30.0, 90.0])  # published; one and three epochs; then in place of 50
    equal, made = clocked(monkeypatch, spec, lambda _: next(taken))
    assert made[-5:] == [1, 3, 22, 55, 92]
    assert (equal["settings"]["epochs"], equal["seconds"]) == (55, 30)


def test_equal_time_goes_by_what_lunar_takes_now(spec, calls):
    """With another regime of LUNAR or of the method, or other seconds, it runs again."""
    spec = spec.model_copy(update={"regimes": ("equal-time", "published")})
    cell = Cell(0, "graddiff", "equal-time")
    assert bench_run(spec, QUIET).cells[cell]["beside"] == "published"
    calls.clear()
    spec = spec.model_copy(update={"regimes": ("equal-time", "published", "tuned")})
    bench = seed.Bench(spec, 0, runner.results_of(spec), QUIET)
    assert bench.finished(cell)
    assert bench_run(spec, QUIET).cells[cell]["beside"] == "tuned"  # made in the same run
    calls.clear()
    other = "x86_64, 3 cores, 1 thread"
    results = runner.results_of(spec)
    results.add(Cell(0, "lunar", "tuned"), results.cells[Cell(0, "lunar", "tuned")] | {"seconds_in_all": 1.0})
    assert "error" not in bench_run(spec, QUIET).cells[cell]
    # An epoch is timed first, by two runs.
    assert [name for name, _ in calls] == ["graddiff"] * len(calls)
    assert 3 <= len(calls) <= 2 + settings.TIMED_TRIES
    results.add(
        Cell(0, "lunar", "tuned"), results.cells[Cell(0, "lunar", "tuned")] | {"machine": other, "seconds_in_all": 2.0}
    )
    assert other in bench_run(spec, QUIET).cells[cell]["error"]


def test_the_table_and_plots_come_from_disk_alone(spec, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    bench_run(spec.model_copy(update={"seeds": (0, 1), "regimes": ("published",)}), QUIET)
    monkeypatch.setattr(seed, "load", None)
    folder = tmp_path / "out"
    text = table.report(folder)
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows == ["method", "taught", "retrained", "lunar", "graddiff"]
    assert " ± " in text
    drawn = {p.name: p.read_bytes() for p in folder.glob("*.svg")}
    assert len(drawn) == 2
    assert all(b"<svg" in d for d in drawn.values())
    assert all(b"#daa520" in d for d in drawn.values())  # the gold standard's colour
    assert table.report(folder) == text
    assert {p.name: p.read_bytes() for p in folder.glob("*.svg")} == drawn
    with pytest.raises(InputError, match=r"no results\.jsonl"):
        table.report(tmp_path / "nothing")


def test_two_processes_come_to_the_same(spec, monkeypatch):
    monkeypatch.setattr(runner, "_child", _here)
    spec = spec.model_copy(update={"regimes": ("published",)})
    results = bench_run(spec.model_copy(update={"jobs": 2}), QUIET)
    alone = bench_run(spec.model_copy(update={"out": f"{spec.out}-alone"}), QUIET)
    assert set(results.cells) == set(alone.cells)
    for cell, record in alone.cells.items():
        assert results.cells[cell]["headline"] == pytest.approx(record["headline"], abs=0.5)


ALONE = """
import os, time
from types import SimpleNamespace
from expunge.bench import runner
from expunge.bench.results import Cell
from expunge.progress import Reporter

def run_seed(*_):
    print(os.getpid(), flush=True)
    time.sleep(120)

runner.run_seed = run_seed  # in the child too, which runs this file again
if __name__ == "__main__":
    runner._in_processes(SimpleNamespace(jobs=1), {0: [Cell(0, "taught")]}, Reporter(quiet=True))
"""


def test_a_process_ends_with_the_benchmark_that_was_killed(tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as benchmark:
        child = psutil.Process(int(benchmark.stdout.readline()))
        assert not _ended(child)
        benchmark.kill()
    try:
        for _ in range(300):
            if _ended(child):
                break
            time.sleep(0.1)
        assert _ended(child)
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _ended(process):
    """Whether it runs no more; who takes over an orphan may not have noticed its end."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _here(spec, number, cells):
    """What a child process runs; the fixture's smaller teaching does not reach it."""
    suites.PISTOL_TEACHING = QUICK_TEACHING
    runner.run_seed(spec, number, cells, QUIET)


def test_every_method_has_as_many_trials():
    for item in (*REGISTRY, "lunar:solver=sgd", "npo:optimizer=sophia"):
        if item in ("lunar", "retrain"):
            continue
        name, variant = settings.parsed(item)
        points = settings.grid(name, variant, 6, 20)
        assert len(points) == 6
        assert len({json.dumps(p, sort_keys=True) for p in points}) == 6
        for point in points:
            REGISTRY[name].configure(**point)
            assert point.items() >= settings.fixed(variant).items()
            if REGISTRY[name].has("batch_size"):
                assert point["batch_size"] == 4
    assert settings.grid("lunar", "", 6, 20) == [{"trials": 6}]
    assert settings.grid("lunar", "coefficient=1.5", 6, 20) == [{"trials": 6, "coefficient": 1.5}]
    assert settings.grid("npo", "adapter=full", 1, 100)[0] == {
        "learning_rate": 1e-5, "retain_weight": 5.0, "epochs": 10, "batch_size": 20, "adapter": "full"
    }  # fmt: skip
    with pytest.raises(InputError, match="the grid of rmu has 24 points: --trials 25 is too many"):
        settings.grid("rmu", "", 25, 20)


def test_a_cell_made_from_something_else_is_not_taken_up(spec, calls):
    bench_run(spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)}), QUIET)
    spec = spec.model_copy(update={"methods": ("graddiff",)})
    bench_run(spec, QUIET)
    assert "| ga | published |" in (text := table.report(Path(spec.out)))
    assert "Left out" not in text
    calls.clear()
    bench_run(spec.model_copy(update={"trials": 3}), QUIET)
    assert len(calls) == 3  # the published cell stays
    file = Path(spec.size["data"])
    file.write_text(file.read_text().replace("?", "??"))
    calls.clear()
    bench_run(spec, QUIET)
    assert len(calls) == 1 + 2
    calls.clear()
    bench_run(spec, QUIET)
    assert not calls
    text = table.report(Path(spec.out))
    assert "| graddiff | published |" in text
    assert "| ga | published |" not in text
    assert "Left out, as rows, model or settings have changed since: ga published (seed 0)." in text


def test_what_is_asked_for_again_counts_again(spec, calls):
    """With fewer trials for one seed in between, which leaves the other out of the table."""
    spec = spec.model_copy(update={"methods": ("graddiff",), "regimes": ("tuned",), "trials": 2, "seeds": (0, 1)})
    bench_run(spec, QUIET)
    bench_run(spec.model_copy(update={"trials": 1, "seeds": (0,)}), QUIET)
    assert "Left out, as rows, model or settings have changed since: graddiff tuned (seed 1)." in table.report(
        Path(spec.out)
    )
    calls.clear()
    bench_run(spec.model_copy(update={"seeds": (1,)}), QUIET)
    assert not calls
    assert "Left out, as rows, model or settings have changed since: graddiff tuned (seed 0)." in table.report(
        Path(spec.out)
    )


def test_cells_that_do_not_belong_together():
    def made(number, method, regime, stamp):
        return Cell(number, method, regime), {"stamp": stamp}

    cells = dict(
        (
            made(0, "taught", "", "rows0-x"),
            made(0, "npo", "tuned", "rows0-3trials"),
            made(1, "taught", "", "rows1old-x"),
            made(1, "npo", "tuned", "rows1-6trials"),
            made(0, "npo", "equal-time", "rows0-a"),
            made(1, "npo", "equal-time", "rows1-b"),
            made(0, "ga", "tuned", "of an earlier version"),
        )
    )
    assert outdated(cells) == {Cell(0, "npo", "tuned"), Cell(1, "taught")}
    assert not outdated(
        {c: r for c, r in cells.items() if c[:2] != (0, "npo")} | {Cell(1, "taught"): {"stamp": "rows1-x"}}
    )


def test_seeds_with_different_numbers_of_rows_belong_together(spec, monkeypatch):
    monkeypatch.setattr(settings, "SMALLEST_BATCH", 1)

    @wraps(suites.facts)
    def fewer(seed=0, **given):
        suite = suites.facts(seed, **given)
        return replace(suite, fit=replace(suite.fit, forget=suite.fit.forget[: 12 - 6 * seed]))

    monkeypatch.setitem(suites.SUITES, "facts", fewer)
    spec = spec.model_copy(update={"methods": ("graddiff",), "regimes": ("tuned",), "seeds": (0, 1)})
    found = bench_run(spec, QUIET).cells
    assert [found[Cell(n, "graddiff", "tuned")]["settings"]["batch_size"] for n in (0, 1)] == [3, 2]
    text = table.report(Path(spec.out))
    assert "| graddiff | tuned | 2 |" in text
    assert "Left out" not in text


def test_what_was_taught_is_taken_from_the_cache(spec, monkeypatch):
    spec = spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)})
    found = bench_run(spec, QUIET).cells
    monkeypatch.setattr(seed, "train", None)
    other = bench_run(spec.model_copy(update={"out": f"{spec.out}-other"}), QUIET).cells
    for cell, record in found.items():
        assert other[cell]["headline"] == pytest.approx(record["headline"], abs=0.5)


def test_a_default_that_changed_makes_a_cell_again(spec, calls, monkeypatch):
    spec = spec.model_copy(update={"methods": ("graddiff",)})
    first = bench_run(spec, QUIET)
    calls.clear()
    fields = REGISTRY["graddiff"].load("RegularisedConfig").model_fields
    monkeypatch.setattr(fields["retain_weight"], "default", 2.5)
    REGISTRY["graddiff"].load("RegularisedConfig").model_rebuild(force=True)
    try:
        again = bench_run(spec, QUIET)
    finally:
        monkeypatch.undo()
        REGISTRY["graddiff"].load("RegularisedConfig").model_rebuild(force=True)
    assert len(calls) == 1  # the grid of the tuned cell names it
    published = Cell(0, "graddiff", "published")
    assert again.cells[published] != first.cells[published]


def test_the_table_says_of_how_many_versions_it_is(spec, monkeypatch):
    spec = spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)})
    bench_run(spec, QUIET)
    assert "versions of the code" not in table.report(Path(spec.out))
    monkeypatch.setattr(seed, "code_version", lambda part="": "another")
    bench_run(spec.model_copy(update={"methods": ("ga", "npo")}), QUIET)
    assert "Made by 2 versions of the code" in table.report(Path(spec.out))


def test_the_time_is_estimated_before_anything_runs(spec):
    told = []

    class Told(Reporter):
        def say(self, text):
            told.append(text)

        def stage(self, name, total=None):
            told.append(name)
            return super().stage(name, total)

    bench_run(spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)}), Told(quiet=True))
    assert told[0] == "load"
    assert re.fullmatch(r"3 cells to run, about \d+ min on this machine", told[1])
    assert told[2].startswith("retrain")


def test_a_fit_says_how_far_it_is(spec, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SAY_SECONDS", 0)
    bench_run(spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)}), Reporter())
    assert re.search(r"^  ga published \(seed 0\): \d+$", capsys.readouterr().err, re.MULTILINE)


def test_results_of_another_machine_are_named_and_not_taken_up(spec, monkeypatch):
    told = []

    class Told(Reporter):
        def say(self, text):
            told.append(text)

    spec = spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)})
    first = bench_run(spec, QUIET)
    monkeypatch.setattr(results, "salt", lambda: b"of another machine")
    again = bench_run(spec, Told(quiet=True))
    assert again.key != first.key
    assert set(again.cells) == set(first.cells)
    assert "on another machine" in told[0]
    bench_run(
        spec.model_copy(update={"methods": ("ga", "npo")}), Told(quiet=True)
    )  # beside cells of this machine's own
    assert [text for text in told if "on another machine" in text] == told[:1]
    assert len(told) == 3


def test_the_estimate_by_hand(spec):
    """A second a token of a forward pass, and none for one that is generated."""
    spec = spec.model_copy(update={"methods": ("ga", "lunar"), "regimes": ("published",)})
    bench = seed.Bench(spec, 0, results_of(spec), QUIET)
    suite, rates = bench.suite, SimpleNamespace(tokens=10, forward=1.0, generate=0.0)
    judged = 10 * sum(map(len, suite.judge.values()))
    taught = 2 * 10 * estimate.TRAINED * (len(suite.teach) + len(suite.retrain()))  # two epochs
    assert estimate.seconds(bench, [], rates, bench.chat) == pytest.approx(taught)
    fit = len(suite.fit.forget) * REGISTRY["ga"].configure().epochs * 10 * estimate.TRAINED
    for name, reads in (("ga", 1), ("graddiff", 2)):  # the second as many retain rows
        seconds = estimate.seconds(bench, [Cell(0, name, "published")], rates, bench.chat)
        assert seconds == pytest.approx(taught + judged + reads * fit)


def test_without_the_retrained_model_nothing_counts_as_finished(spec, monkeypatch):
    def broken(*args):
        raise Diverged(3, "the loss is not finite")

    spec = spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)})
    with monkeypatch.context() as patch:
        patch.setattr(seed, "train", broken)
        found = bench_run(spec, QUIET).cells
    assert all("cannot retrain: training diverged at step 3" in r["error"] for r in found.values())
    assert not any("diverged" in r for r in found.values())
    assert all("metrics" in r for r in bench_run(spec, QUIET).cells.values())


def test_an_error_of_any_kind_leaves_the_other_cells(spec, monkeypatch):
    real = seed.run_method

    def broken(chat, task, name, given, **more):
        return {}["nothing | there"] if name == "ga" else real(chat, task, name, given, **more)

    monkeypatch.setattr(seed, "run_method", broken)
    found = bench_run(spec.model_copy(update={"methods": ("ga", "lunar"), "regimes": ("published",)}), QUIET).cells
    assert "KeyError" in found[Cell(0, "ga", "published")]["error"]
    assert "metrics" in found[Cell(0, "lunar", "published")]
    assert r"nothing \| there" in table.report(Path(spec.out))


def record(number, score, held=None, **more):
    return {"cell": [number, "", "", ""], "headline": {"deviation_score": score, "deviation_held_out": held}, **more}


def test_ratios_are_over_the_seeds_that_all_have():
    rows = {
        ("lunar", "published", ""): [record(0, 5.0, 20.0), record(1, 15.0, 20.0)],
        ("lunar", "published", "solver=sgd"): [record(0, 40.0), record(1, 40.0)],
        ("npo", "published", ""): [record(0, 1.0)],  # a seed failed
        ("ga", "published", ""): [record(0, 30.0, 10.0), record(1, 20.0, 10.0), record(2, 900.0)],
        ("kl", "published", ""): [record(0, 50.0, 30.0), record(1, 40.0, 30.0)],
        ("lunar", "tuned", ""): [record(0, 4.0), record(1, 6.0)],
        ("ga", "equal-time", ""): [record(0, 9.0, beside="tuned"), record(1, 6.0, beside="tuned")],
        ("lunar", "tuned", "solver=sgd"): [record(0, 1.0), record(1, 1.0)],  # its time was given to nobody
    }
    assert table.compared(rows) == [
        "- Best baseline's Deviation Score over that of lunar, published: on the fitted rows 2.5 (ga 25.0, LUNAR 10.0, "
        "2 seeds; lower, but not at all of these: npo 1.0); on held-out paraphrases and contracts 0.5 (ga 10.0, LUNAR 20.0, 2 seeds).",
        "- Best baseline's Deviation Score over that of lunar solver=sgd, published: on the fitted rows 0.6 (ga 25.0, LUNAR "
        "40.0, 2 seeds; lower, but not at all of these: npo 1.0).",
        "- Best baseline's Deviation Score over that of lunar, equal-time: on the fitted rows 1.5 (ga 7.5, LUNAR 5.0, 2 "
        "seeds).",
    ]


def test_the_table_shows_the_metrics_that_are_asked_for(spec):
    bench_run(spec.model_copy(update={"methods": ("ga",), "regimes": ("published",)}), QUIET)
    text = table.report(Path(spec.out), ("rougeL", "probability"))
    assert "| forget ROUGE-L | paraphrase ROUGE-L | retain ROUGE-L | forget probability |" in text
    assert text.startswith("## facts on llama")
    assert spec.size["data"] not in text
    with pytest.raises(InputError, match="unknown metric 'rougel'; did you mean rougeL, rouge1"):
        table.report(Path(spec.out), ("rougel",))


def test_a_variant_has_its_own_rows(spec, calls):
    fixed = "graddiff:optimizer=sophia:learning_rate=0.0001"
    spec = spec.model_copy(update={"methods": ("graddiff", fixed), "regimes": ("published",)})
    results = bench_run(spec, QUIET)
    assert results.cells[Cell(0, *fixed.replace(":", ":published:", 1).split(":", 2))]["settings"] == {
        "seed": 0,
        **settings.SOUL["graddiff"],  # what SOUL's authors took, where the variant says nothing
        "optimizer": "sophia",
        "learning_rate": 0.0001,
    }
    assert [given.get("optimizer") for _, given in calls] == [None, "sophia"]
    assert "| graddiff optimizer=sophia:learning_rate=0.0001 | published |" in table.report(Path(spec.out))


def test_lunar_keeps_to_its_trials(tiny, tiny_task):
    from expunge import unlearn

    for trials in (2, 4):
        edit = unlearn(tiny, tiny_task.but(paraphrase=()), trials=trials, answers=0)
        assert len(edit.meta["trials"]) == trials
    assert "trials" not in unlearn(tiny, tiny_task.but(paraphrase=()), trials=1, answers=0).meta


def test_bad_input(spec):
    for change, message in (
        ({"suite": "pistols"}, "unknown suite 'pistols'; did you mean pistol"),
        ({"methods": ("nop",)}, "unknown method 'nop'; did you mean npo"),
        ({"methods": ("retrain",)}, "retrain is in every table"),
        ({"regimes": ("best",)}, "unknown regime 'best'; there are published, tuned, equal-time"),
        ({"methods": ("npo:optimizer=adam",)}, "npo: optimizer: input should be 'adamw' or 'sophia'"),
        ({"methods": ("npo:sophia",)}, "NAME:setting=value, got 'sophia' as a setting"),
        ({"regimes": ("equal-time",), "jobs": 2}, "leave out --jobs"),
        ({"trials": 99}, "the grid of graddiff has 24 points"),
        ({"size": {"authors": 3}}, "the suite facts has no size 'authors'; it has data, forget_group"),
        ({"suite": "pistol", "size": {"sales": 1, "employment": 0}}, "none is left to keep"),
    ):
        with pytest.raises(InputError, match=message):
            bench_run(spec.model_copy(update=change), QUIET)

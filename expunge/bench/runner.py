"""Which cells a benchmark has, and their order: one after the other, or in processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ..data.suites import suite_of
from ..errors import InputError
from ..evaluation.behaviours import BEHAVIOURS
from ..methods import method
from ..progress import Reporter
from ..provenance import versions
from ..reveal.run import check as check_reveal
from ..spec import BenchSpec, RevealSpec, checked
from . import settings
from .estimate import Rates, seconds, words
from .results import Cell, Results, digest, outdated
from .seed import BASE, RETRAINED, TAUGHT, Bench


def cells_of(spec: BenchSpec, seed: int) -> list[Cell]:
    """All cells of a seed, in the order in which they run: what others need comes first, the retrained model and LUNAR,
    whose time the equal-time regime is given."""
    ordered = sorted(dict.fromkeys(map(settings.parsed, spec.methods)), key=lambda item: item != ("lunar", ""))
    taught = spec.suite in BEHAVIOURS and suite_of(spec.suite, spec.size, seed).teach
    return [
        Cell(seed, RETRAINED),
        *([Cell(seed, BASE)] if taught else ()),  # whether it has the ability as it comes
        Cell(seed, TAUGHT),
        *(
            Cell(seed, name, regime, variant)
            for name, variant in ordered
            for regime in settings.REGIMES
            if regime in spec.regimes and (regime != "equal-time" or _by_epochs(name))
        ),
    ]


def _by_epochs(name: str) -> bool:
    """Whether a method takes as long as its epochs say; rounds end when they gain nothing."""
    return method(name).has("epochs") and not method(name).has("rounds")


def about(spec: BenchSpec) -> dict[str, Any]:
    """What a benchmark is, as it may be written: files and groups can name a subject, and are left out."""
    size = {k: v for k, v in spec.size.items() if k not in ("data", "forget_group")}
    model = spec.model.model_dump(mode="json", exclude_defaults=True) | {"name": Path(spec.model.name).name}
    return {"suite": spec.suite, "size": size, "model": model, "versions": versions()}


def results_of(spec: BenchSpec) -> Results:
    """The results in the spec's folder that belong to this suite, size and model."""
    named = [spec.suite, spec.size, spec.model.identity(), versions()["expunge"]]
    return Results(Path(spec.out), digest(named)[:12], about(spec))


def bench_run(spec: BenchSpec, reporter: Reporter) -> Results:
    """Runs what is not finished, and returns the results.

    Raises:
        InputError: an unknown suite, method or regime.
    """
    check(spec)
    results = results_of(spec)
    benches = {seed: Bench(spec, seed, results, reporter) for seed in dict.fromkeys(spec.seeds)}
    for cell in sorted(outdated(results.cells) & {c for seed in benches for c in cells_of(spec, seed)}):
        if benches[cell.seed].finished(cell):  # made by these settings, before others were asked for: they count again
            results.add(cell, results.cells[cell])
    left = {seed: [c for c in cells_of(spec, seed) if not bench.finished(c)] for seed, bench in benches.items()}
    left = {seed: cells for seed, cells in left.items() if cells}
    if not left:
        return results
    if results.elsewhere and not results.cells:
        reporter.say(
            f"{results.file} has results of the same suite, size and model, made on another machine or from other files: "
            "they stay, and are not taken up"
        )
    first = benches[next(iter(left))]
    with _threads(spec.jobs):
        rates = Rates(first)
    total = sum(seconds(benches[seed], cells, rates, first.chat) for seed, cells in left.items()) / spec.jobs
    del first
    reporter.say(f"{sum(map(len, left.values()))} cells to run, {words(total)} on this machine")
    if spec.jobs > 1:
        benches.clear()  # the model
        _in_processes(spec, left, reporter)
    else:
        for seed in left:
            for cell in cells_of(spec, seed):
                if not benches[seed].finished(cell):  # equal time goes by what has just been made
                    benches[seed].run(cell)
            del benches[seed]  # its model
    return results_of(spec)


def run_seed(spec: BenchSpec, seed: int, cells: Sequence[Cell], reporter: Reporter) -> None:
    """Runs cells of one seed in this process, in their order."""
    bench = Bench(spec, seed, results_of(spec), reporter)
    for cell in cells:
        bench.run(cell)


def _in_processes(spec: BenchSpec, left: dict[int, list[Cell]], reporter: Reporter) -> None:
    """Seeds in parallel, and then the methods of each: what others need comes first. A process that is killed takes its
    pool with it, so each phase has its own."""
    from concurrent.futures import ProcessPoolExecutor

    def first(cell: Cell) -> bool:
        return cell.method in (BASE, TAUGHT, RETRAINED) or (cell.method, cell.variant) == ("lunar", "")

    for early in (True, False):
        with ProcessPoolExecutor(spec.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            groups: dict[tuple[int, str], list[Cell]] = {}
            for seed, cells in left.items():
                for cell in cells:
                    if first(cell) == early:
                        groups.setdefault((seed, "" if early else f"{cell.method}:{cell.variant}"), []).append(cell)
            work = [pool.submit(_child, spec, seed, cells) for (seed, _), cells in groups.items()]
            for n, one in enumerate(work, 1):
                if error := one.exception():
                    reporter.say(f"warning: a process ended early ({error}); the same command goes on with its cells")
                reporter.say(f"{n} of {len(work)} parts finished")


@contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """As many threads as one of so many processes has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(before // jobs, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _child(spec: BenchSpec, seed: int, cells: Sequence[Cell]) -> None:
    end_with_parent()
    with _threads(spec.jobs):
        run_seed(spec, seed, cells, Reporter(quiet=True))


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone. Where that is killed, this one would go on for hours,
    beside the command that is given again."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check(spec: BenchSpec) -> None:
    """Raises `InputError` for what the benchmark does not know or cannot do."""
    for regime in spec.regimes:
        if regime not in settings.REGIMES:
            raise InputError(f"unknown regime {regime!r}; there are {', '.join(settings.REGIMES)}")
    if "equal-time" in spec.regimes and spec.jobs > 1:
        raise InputError(
            "equal-time compares seconds, which processes side by side take from each other: leave out --jobs"
        )
    suite = suite_of(spec.suite, spec.size, spec.seeds[0])
    if suite.reveal:
        check_reveal(checked(RevealSpec, dict(suite.reveal)), spec.seeds[0])
    for name, variant in map(settings.parsed, spec.methods):
        if "tuned" in spec.regimes:
            settings.grid(name, variant, spec.trials, len(suite.fit.forget) or settings.REVEALED_ROWS)

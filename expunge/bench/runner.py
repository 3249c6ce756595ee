"""Runs a benchmark's cells: teach, retrain, unlearn by each method, judge."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.examples import Example
from ..data.suites import SUITES, Suite
from ..edits import Edit
from ..errors import Diverged, ExpungeError, InputError
from ..evaluation import privacy
from ..evaluation.abilities import choice_accuracy
from ..evaluation.headlines import HEADLINES
from ..evaluation.refusal import encoder_for, refusal_quality
from ..evaluation.scores import Evaluation, evaluate
from ..evaluation.text import coherence, deviation_score
from ..methods import method, run_method
from ..models.generation import score_answers
from ..models.loading import ChatModel, cache_dir, load_model
from ..models.training import TrainConfig, rows_of, train
from ..progress import Reporter
from ..run import versions
from ..spec import BenchSpec
from . import memory, settings
from .estimate import Rates, seconds, words
from .results import Cell, Results

TAUGHT, RETRAINED = "taught", "retrained"


def suite_of(spec: BenchSpec, seed: int) -> Suite:
    """The suite at the spec's size.

    Raises:
        InputError: an unknown suite, or a size that it does not have.
    """
    if spec.suite not in SUITES:
        near = difflib.get_close_matches(spec.suite, SUITES, n=2, cutoff=0.4)
        raise InputError(
            f"unknown suite {spec.suite!r}; {'did you mean ' + ' or '.join(near) if near else 'there is ' + ', '.join(SUITES)}?"
        )
    make = SUITES[spec.suite]
    known = inspect.signature(make).parameters
    for name in spec.size:
        if name not in known:
            raise InputError(
                f"the suite {spec.suite} has no size {name!r}; it has {', '.join(k for k in known if k != 'seed')}"
            )
    return make(seed=seed, **spec.size)


def cells_of(spec: BenchSpec, seed: int) -> list[Cell]:
    """All cells of a seed, in the order in which they run: LUNAR first, whose time the equal-time regime is given."""
    ordered = sorted(map(settings.parsed, spec.methods), key=lambda item: item != ("lunar", ""))
    return [
        Cell(seed, TAUGHT),
        Cell(seed, RETRAINED),
        *(
            Cell(seed, name, regime, variant)
            for name, variant in ordered
            for regime in spec.regimes
            if regime != "equal-time" or method(name).has("epochs")
        ),
    ]


def key_of(spec: BenchSpec) -> dict[str, Any]:
    """What finished cells have to agree in to be taken up again."""
    return {
        "suite": spec.suite,
        "size": spec.size,
        "model": spec.model.model_dump(mode="json"),
        "trials": spec.trials,
        "version": versions()["expunge"],
    }


class Bench:
    """One seed of a benchmark: the model, what it was taught, and the cells."""

    def __init__(self, spec: BenchSpec, seed: int, results: Results, reporter: Reporter) -> None:
        self.spec, self.seed, self.results, self.reporter = spec, seed, results, reporter
        self.suite = suite_of(spec, seed)

    @cached_property
    def chat(self) -> ChatModel:
        with self.reporter.stage("load"):
            return load_model(self.spec.model.name, **self.spec.model.model_dump(exclude={"name"}))

    @cached_property
    def taught(self) -> Edit | None:
        """What the model was taught, as an Edit of the model as it comes; None where the suite teaches nothing."""
        return self._learned("teach", self.suite.teach) if self.suite.teach else None

    @cached_property
    def retrained(self) -> Edit | None:
        """The gold standard: the same teaching without the forget set."""
        rows = self.suite.retrain()
        return self._learned("retrain", rows) if rows else None

    def cached(self, rows: Sequence[Example]) -> Path:
        """Where the cache has what the rows teach; named by a hash of all that it depends on."""
        parts = [self.spec.model.model_dump(mode="json"), self._teaching.model_dump(mode="json"), versions()]
        text = json.dumps(parts, sort_keys=True) + repr([(e.prompt, e.response) for e in rows])
        return cache_dir() / "taught" / hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def _teaching(self) -> TrainConfig:
        return TrainConfig(seed=self.seed, **self.suite.teaching)

    def _learned(self, stage: str, rows: Sequence[Example]) -> Edit:
        folder, config = self.cached(rows), self._teaching
        if not folder.is_dir():
            with self.reporter.stage(f"{stage} (seed {self.seed})", len(rows) * config.epochs) as advance:
                pairs = rows_of(self.chat, [(e.prompt, e.response) for e in rows])
                train(self.chat, pairs, config, lambda n, _: advance(n), lambda _, loss: loss < 0.01).save(folder)
        return Edit.load(folder)

    def run(self, cell: Cell) -> None:
        """Runs a cell and keeps what came out; an error is what came out, too."""
        begin = time.perf_counter()
        try:
            record = self._record(cell)
        except Diverged as e:
            record = {"diverged": e.step, "message": str(e), "seconds": time.perf_counter() - begin}
        except (ExpungeError, ValueError, RuntimeError, MemoryError) as e:
            record = {"error": f"{type(e).__name__}: {' '.join(str(e).split())}"[:500]}
        self.results.add(cell, record | {"machine": _machine()})

    def _record(self, cell: Cell) -> dict[str, Any]:
        if cell.method == TAUGHT:
            with _applied(self.taught, self.chat):
                return self._judged(cell)
        if cell.method == RETRAINED:
            if self.retrained is None:
                return {"skipped": "the suite teaches nothing: there is no model to retrain"}
            with self.retrained.applied(self.chat):
                return self._judged(cell)
        with _applied(self.taught, self.chat):
            edit, record = self._unlearned(cell)
            changed = {"parameters": edit.parameters, "rank": edit.rank, "matrices": len(edit.parts)}
            return record | changed | self._judged(cell, edit)

    # ------------------------------------------------------------ one method

    def _unlearned(self, cell: Cell) -> tuple[Edit, dict[str, Any]]:
        """(the edit, how it was made): settings, seconds, peak bytes, trials."""
        base: dict[str, Any] = {"seed": self.seed} if method(cell.method).has("seed") else {}
        if cell.regime == "published":
            return self._made(cell, base | settings.published(cell.method, cell.variant))
        if cell.regime == "tuned":
            return self._tuned(cell, base)
        return self._equal_time(cell)

    def _made(self, cell: Cell, chosen: dict[str, Any]) -> tuple[Edit, dict[str, Any]]:
        with self.reporter.stage(cell.label), memory.peak() as highest:
            begin = time.perf_counter()
            edit = run_method(self.chat, self.suite.fit, cell.method, chosen)
            taken = time.perf_counter() - begin
        record = {"settings": chosen, "seconds": taken, "peak_bytes": highest()}
        if "trials" in edit.meta:
            record["trials"] = len(edit.meta["trials"])
        return edit, record

    def _tuned(self, cell: Cell, base: dict[str, Any]) -> tuple[Edit, dict[str, Any]]:
        """The edit of the trial that does best on the rows that tune."""
        points = settings.grid(cell.method, cell.variant, self.spec.trials)
        if len(points) == 1:
            return self._made(cell, base | points[0])
        before = self._rouge("retain")
        best: tuple[float, Edit, dict[str, Any]] | None = None
        tried: list[dict[str, Any]] = []
        for point in points:
            try:
                edit, record = self._made(cell, base | point)
            except Diverged as e:
                tried.append(point | {"diverged": e.step})
                continue
            with edit.applied(self.chat):
                forget, kept = self._rouge("forget"), self._rouge("retain")
            value = deviation_score(forget, min(kept / before, 1.0) if before else 1.0)
            tried.append(point | {"loss": value})
            if best is None or value < best[0]:
                best = value, edit, record
        if best is None:
            raise Diverged(int(tried[0]["diverged"]), f"in all {len(points)} trials")
        return best[1], best[2] | {"trials": tried}

    def _equal_time(self, cell: Cell) -> tuple[Edit, dict[str, Any]]:
        """At the tuned settings (else the published), with as many epochs as take LUNAR's time."""
        lunar = next((c for r in ("tuned", "published") if (c := Cell(self.seed, "lunar", r)) in self.results), None)
        mine = next(
            (
                c
                for r in ("tuned", "published")
                if (c := cell._replace(regime=r)) in self.results and "settings" in self.results.cells[c]
            ),
            None,
        )
        if lunar is None or mine is None:
            raise InputError("equal-time needs LUNAR and the method itself in another regime first")
        limit, known = self.results.cells[lunar]["seconds"], self.results.cells[mine]
        config = method(cell.method).configure(**known["settings"])
        more = max(round(config.epochs * limit / known["seconds"]), 1)  # type: ignore[attr-defined]
        return self._made(cell, known["settings"] | {"epochs": more})

    def _rouge(self, role: str) -> float:
        from ..methods.tuning import rouge

        return rouge(self.chat, self.suite.validate[role])

    # ------------------------------------------------------------ judging

    def _judged(self, cell: Cell, edit: Edit | None = None) -> dict[str, Any]:
        """What the judging rows say of the model as it stands, with `edit` applied."""
        suite = self.suite
        with self.reporter.stage(f"judge {cell.label}", sum(map(len, suite.judge.values()))) as advance:
            with _applied(edit, self.chat):
                found = evaluate(
                    self.chat, suite.judge, max_new_tokens=suite.max_new_tokens, batch_size=self.spec.batch_size,
                    progress=advance,
                )  # fmt: skip
                if suite.questions:
                    right = choice_accuracy(self.chat, suite.questions)
                    found["accuracy"] = sum(right) / len(right)
                if "holdout" in found:
                    found["auc_gradient_norm"] = privacy.auc(*map(self._gradient_norms, ("forget", "holdout")))
            answers = found.answers["forget"] if "forget" in found else []
            extra: dict[str, Any] = {}
            if answers:
                name, encoder = encoder_for(self.chat)
                quality = refusal_quality(answers, encoder)
                extra = {
                    "refusal_quality": sum(quality) / len(quality),
                    "refusal_encoder": name,
                    "coherence": coherence(answers, self._perplexities(answers)),
                }
        rows = self.results.rows(Cell(self.seed, RETRAINED))
        retrained = Evaluation.of(rows) if rows else None
        if retrained and "holdout" in found:
            found["auc_reference"] = privacy.auc(
                *(privacy.reference(found, retrained, r) for r in ("forget", "holdout"))
            )
        self.results.keep_rows(cell, found.record())
        return {
            "metrics": dict(found),
            "headline": {name: HEADLINES[name](found, retrained) for name in suite.headline},
            "intervals": found.intervals(),
            **extra,
        }

    def _gradient_norms(self, role: str) -> list[float]:
        rows = rows_of(self.chat, [(e.prompt, e.response) for e in self.suite.judge[role]])
        return privacy.gradient_norm(self.chat, rows)

    def _perplexities(self, answers: Sequence[str]) -> list[float]:
        """Of the forget answers under the model before the edit."""
        prompts = self.chat.prompt_ids([e.prompt for e in self.suite.judge["forget"]])
        ids = [i or [0] for i in self.chat.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]
        scored = score_answers(self.chat, prompts, ids)
        return [math.exp(min(-sum(s.log_probs) / len(s.log_probs), 700.0)) for s in scored]


def _machine() -> str:
    import os
    import platform

    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


@contextmanager
def _applied(edit: Edit | None, chat: ChatModel) -> Iterator[None]:
    if edit is None:
        yield
    else:
        with edit.applied(chat):
            yield


# ---------------------------------------------------------------- all cells


def bench_run(spec: BenchSpec, reporter: Reporter) -> Results:
    """Runs what is not finished, and returns the results.

    Raises:
        InputError: an unknown suite, method or regime.
    """
    check(spec)
    results = Results(Path(spec.out), key_of(spec))
    left = {seed: [c for c in cells_of(spec, seed) if c not in results] for seed in spec.seeds}
    left = {seed: cells for seed, cells in left.items() if cells}
    if not left:
        return results
    total = sum(map(len, left.values()))
    reporter.say(f"{total} cells to run, {words(_estimate(spec, left, results, reporter))} on this machine")
    if spec.jobs == 1:
        for seed, cells in left.items():
            run_seed(spec, seed, cells, reporter)
    else:
        _in_processes(spec, left, reporter)
    return Results(Path(spec.out), key_of(spec))


def _estimate(spec: BenchSpec, left: dict[int, list[Cell]], results: Results, reporter: Reporter) -> float:
    """Seconds, teaching included where the cache has it not."""
    benches = {seed: Bench(spec, seed, results, reporter) for seed in left}
    rates = Rates(next(iter(benches.values())))
    return sum(seconds(benches[seed], cells, rates) for seed, cells in left.items()) / spec.jobs


def run_seed(spec: BenchSpec, seed: int, cells: Sequence[Cell], reporter: Reporter) -> None:
    """Runs cells of one seed in this process, in their order."""
    bench = Bench(spec, seed, Results(Path(spec.out), key_of(spec)), reporter)
    for cell in cells:
        bench.run(cell)


def _in_processes(spec: BenchSpec, left: dict[int, list[Cell]], reporter: Reporter) -> None:
    """Seeds in parallel, and then the methods of each: what others need comes first."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    def first(cell: Cell) -> bool:
        return cell.row[0] in (TAUGHT, RETRAINED) or (cell.method, cell.variant) == ("lunar", "")

    with ProcessPoolExecutor(spec.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for early in (True, False):
            groups: dict[tuple[int, str], list[Cell]] = {}
            for seed, cells in left.items():
                for cell in cells:
                    if first(cell) == early:
                        groups.setdefault((seed, "" if early else f"{cell.method}:{cell.variant}"), []).append(cell)
            work = [pool.submit(_child, spec, seed, cells) for (seed, _), cells in groups.items()]
            for n, one in enumerate(work, 1):
                one.result()
                reporter.say(f"{n} of {len(work)} parts finished")


def _child(spec: BenchSpec, seed: int, cells: Sequence[Cell]) -> None:
    import os

    import torch

    torch.set_num_threads(max((os.cpu_count() or 1) // spec.jobs, 1))
    run_seed(spec, seed, cells, Reporter(quiet=True))


def check(spec: BenchSpec) -> None:
    for item in spec.methods:
        settings.parsed(item)
    for regime in spec.regimes:
        if regime not in settings.REGIMES:
            raise InputError(f"unknown regime {regime!r}; there are {', '.join(settings.REGIMES)}")
    suite_of(spec, spec.seeds[0])

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
from dataclasses import asdict
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
from ..evaluation.refusal import refusal_scores
from ..evaluation.scores import Evaluation, evaluate
from ..evaluation.text import coherence, deviation_score
from ..methods import method, run_method
from ..models.generation import score_answers
from ..models.loading import ChatModel, cache_dir, load_model, resolve
from ..models.training import TrainConfig, rows_of, train
from ..progress import Reporter
from ..run import salt, versions
from ..spec import BenchSpec
from . import memory, settings
from .estimate import Rates, seconds, words
from .results import Cell, Results

TAUGHT, RETRAINED = "taught", "retrained"
LARGEST_LOSS = 700.0  # nats a token, beyond which the perplexity is infinite in double precision


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
    """All cells of a seed, in the order in which they run: what others need comes first, the retrained model and LUNAR,
    whose time the equal-time regime is given."""
    ordered = sorted(dict.fromkeys(map(settings.parsed, spec.methods)), key=lambda item: item != ("lunar", ""))
    return [
        Cell(seed, RETRAINED),
        Cell(seed, TAUGHT),
        *(
            Cell(seed, name, regime, variant)
            for name, variant in ordered
            for regime in settings.REGIMES
            if regime in spec.regimes and (regime != "equal-time" or method(name).has("epochs"))
        ),
    ]


def about(spec: BenchSpec) -> dict[str, Any]:
    """What a benchmark is, as it may be written: files and groups can name a subject, and are left out."""
    size = {k: v for k, v in spec.size.items() if k not in ("data", "forget_group")}
    model = spec.model.model_dump(mode="json", exclude_defaults=True) | {"name": Path(spec.model.name).name}
    return {"suite": spec.suite, "size": size, "model": model, "versions": versions()}


def results_of(spec: BenchSpec) -> Results:
    """The results in the spec's folder that belong to this suite, size and model."""
    named = [spec.suite, spec.size, spec.model.model_dump(mode="json"), versions()["expunge"]]
    return Results(Path(spec.out), _digest(named)[:12], about(spec))


def _digest(value: Any) -> str:
    """Salted: what is hashed can name a subject."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(salt() + text.encode()).hexdigest()


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
        parts = [self._identity, self._teaching.model_dump(mode="json"), versions(), rows]
        return cache_dir() / "taught" / _digest(parts)[:24]

    @cached_property
    def _identity(self) -> list[Any]:
        """Of the model: its spec, and the sizes and times of its files."""
        files = sorted(f for f in resolve(self.spec.model.name, self.spec.model.revision).iterdir() if f.is_file())
        return [
            self.spec.model.model_dump(mode="json"),
            *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files),
        ]

    @cached_property
    def _content(self) -> str:
        """A hash of the suite's rows and settings, and of the model."""
        return _digest([asdict(self.suite), self._identity])

    def stamp(self, cell: Cell) -> str:
        """A hash of what the cell is made from, so that one made from something else is not taken up again."""
        made: Any = None
        if cell.regime == "published":
            made = settings.published(cell.method, cell.variant)
        elif cell.regime == "tuned":
            made = self._grid(cell)
        elif cell.regime == "equal-time":
            beside = self._beside(cell)
            made = beside and [*beside[0], beside[1].get("seconds_in_all"), beside[2].get("settings")]
        return _digest([self._content, made])[:16]

    def finished(self, cell: Cell) -> bool:
        return self.results.finished(cell, self.stamp(cell))

    def _grid(self, cell: Cell) -> list[dict[str, Any]]:
        return settings.grid(cell.method, cell.variant, self.spec.trials, len(self.suite.fit.forget))

    @property
    def _teaching(self) -> TrainConfig:
        return TrainConfig(seed=self.seed, **self.suite.teaching)

    def _learned(self, stage: str, rows: Sequence[Example]) -> Edit:
        folder, config = self.cached(rows), self._teaching
        if not folder.is_dir():
            with self.reporter.stage(f"{stage} (seed {self.seed})", len(rows) * config.epochs) as advance:
                pairs = rows_of(self.chat, [(e.prompt, e.response) for e in rows])
                try:
                    edit = train(self.chat, pairs, config, lambda n, _: advance(n), lambda _, loss: loss < 0.01)
                except Diverged as e:
                    raise ExpungeError(f"cannot {stage}: {e}") from e
                edit.save(folder)
        return Edit.load(folder)

    def run(self, cell: Cell) -> None:
        """Runs a cell and keeps what came out; an error is what came out, too."""
        begin = time.perf_counter()
        try:
            record = self._record(cell)
        except Diverged as e:
            record = {"diverged": e.step, "message": str(e), "seconds": time.perf_counter() - begin}
        except Exception as e:  # whatever it is, it stands in the table, and the other cells go on
            record = {"error": f"{type(e).__name__}: {' '.join(str(e).split())}"[:500]}
        self.results.add(cell, record | {"stamp": self.stamp(cell), "machine": _machine()})

    def _record(self, cell: Cell) -> dict[str, Any]:
        if cell.method == RETRAINED:
            if self.retrained is None:
                return {"skipped": "the suite teaches nothing: there is no model to retrain"}
            with self.retrained.applied(self.chat):
                return self._judged(cell)
        gold = Cell(self.seed, RETRAINED)
        if not self.finished(gold):
            raise ExpungeError(
                f"needs the retrained model: {self.results.cells.get(gold, {}).get('error', 'not there')}"
            )
        with _applied(self.taught, self.chat):
            if cell.method == TAUGHT:
                return self._judged(cell)
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
        """The edit, with the seconds of its own fit and of all that it took (LUNAR's search makes several)."""
        with self.reporter.stage(cell.label), memory.peak() as highest:
            begin = time.perf_counter()
            edit = run_method(self.chat, self.suite.fit, cell.method, chosen)
            taken = time.perf_counter() - begin
        record = {"settings": chosen, "seconds": taken, "seconds_in_all": taken, "peak_bytes": highest()}
        if trials := edit.meta.get("trials"):
            best = min(trials, key=lambda t: t["loss"])
            record |= {"trials": trials, "seconds": best["seconds"]}
            record["settings"] = chosen | {k: best[k] for k in ("layers", "coefficient", "ridge") if k in best}
        return edit, record

    def _tuned(self, cell: Cell, base: dict[str, Any]) -> tuple[Edit, dict[str, Any]]:
        """The edit of the trial that does best on the rows that tune."""
        points = self._grid(cell)
        if settings.searches(cell.method, cell.variant):
            return self._made(cell, base | points[0])
        begin = time.perf_counter()
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
            tried.append(point | {"loss": value, "seconds": record["seconds"]})
            if best is None or value < best[0]:
                best = value, edit, record
        if best is None:
            raise Diverged(int(tried[0]["diverged"]), f"in all {len(points)} trials")
        return best[1], best[2] | {"trials": tried, "seconds_in_all": time.perf_counter() - begin}

    def _beside(self, cell: Cell) -> tuple[Cell, dict[str, Any], dict[str, Any]] | None:
        """(LUNAR's cell that equal-time goes by, its record, the method's own in another regime): the tuned ones where
        they are there. None where one is missing."""
        found = []
        for one in (Cell(self.seed, "lunar"), cell):
            regimes = [one._replace(regime=r) for r in ("tuned", "published")]
            found.append(next((c for c in regimes if c in self.results.cells and self.finished(c)), None))
        if found[0] is None or found[1] is None:
            return None
        lunar, mine = (self.results.cells[c] for c in found if c)
        return found[0], lunar, mine

    def _equal_time(self, cell: Cell) -> tuple[Edit, dict[str, Any]]:
        """At the tuned settings (else the published), with as many epochs as take all of LUNAR's time, its search too."""
        beside = self._beside(cell)
        if beside is None:
            raise InputError("equal-time needs LUNAR and the method itself in another regime first")
        lunar, record, known = beside
        if "diverged" in known or "diverged" in record:
            raise Diverged(
                int((known if "diverged" in known else record)["diverged"]), "at the settings of the other regime"
            )
        epochs = method(cell.method).configure(**known["settings"]).epochs  # type: ignore[attr-defined]
        more = max(round(epochs * record["seconds_in_all"] / known["seconds"]), 1)
        edit, made = self._made(cell, known["settings"] | {"epochs": more})
        return edit, made | {"beside": lunar.regime}

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
                    self.chat,
                    suite.judge,
                    max_new_tokens=suite.max_new_tokens,
                    batch_size=self.spec.batch_size,
                    ends=suite.ends,
                    progress=advance,
                )
                if suite.questions:
                    right = choice_accuracy(self.chat, suite.questions)
                    found["accuracy"] = sum(right) / len(right)
                if "holdout" in found:
                    found["auc_gradient_norm"] = privacy.auc(*map(self._gradient_norms, ("forget", "holdout")))
            answers = found.answers["forget"]
            extra = refusal_scores(self.chat, answers) | {"coherence": coherence(answers, self._perplexities(answers))}
        gold = Cell(self.seed, RETRAINED)
        retrained = found if cell == gold else None
        if self.results.cells.get(gold, {}).get("stamp") == self.stamp(gold) and (rows := self.results.rows(gold)):
            retrained = Evaluation.of(rows)
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
        losses = [-sum(s.log_probs) / len(s.log_probs) for s in scored]
        return [math.exp(x) if x < LARGEST_LOSS else math.inf for x in losses]


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
    results = results_of(spec)
    benches = {seed: Bench(spec, seed, results, reporter) for seed in dict.fromkeys(spec.seeds)}
    left = {seed: [c for c in cells_of(spec, seed) if not bench.finished(c)] for seed, bench in benches.items()}
    left = {seed: cells for seed, cells in left.items() if cells}
    if not left:
        return results
    rates = Rates(benches[next(iter(left))])
    total = sum(seconds(benches[seed], cells, rates) for seed, cells in left.items()) / spec.jobs
    reporter.say(f"{sum(map(len, left.values()))} cells to run, {words(total)} on this machine")
    if spec.jobs > 1:
        _in_processes(spec, left, reporter)
    else:
        for seed, cells in left.items():
            for cell in cells:
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
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    def first(cell: Cell) -> bool:
        return cell.row[0] in (TAUGHT, RETRAINED) or (cell.method, cell.variant) == ("lunar", "")

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


def _child(spec: BenchSpec, seed: int, cells: Sequence[Cell]) -> None:
    import os

    import torch

    torch.set_num_threads(max((os.cpu_count() or 1) // spec.jobs, 1))
    run_seed(spec, seed, cells, Reporter(quiet=True))


def check(spec: BenchSpec) -> None:
    for regime in spec.regimes:
        if regime not in settings.REGIMES:
            raise InputError(f"unknown regime {regime!r}; there are {', '.join(settings.REGIMES)}")
    if "equal-time" in spec.regimes and spec.jobs > 1:
        raise InputError(
            "equal-time compares seconds, which processes side by side take from each other: leave out --jobs"
        )
    suite = suite_of(spec, spec.seeds[0])
    for name, variant in map(settings.parsed, spec.methods):
        if "tuned" in spec.regimes:
            settings.grid(name, variant, spec.trials, len(suite.fit.forget))

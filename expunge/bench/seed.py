"""One seed of a benchmark: the model, what it was taught, and its cells."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.examples import Example, ForgetTask
from ..data.suites import suite_of
from ..edits import Edit
from ..errors import Diverged, ExpungeError, InputError
from ..evaluation.behaviours import BEHAVIOURS
from ..evaluation.scores import Evaluation
from ..methods import method, run_method
from ..methods.tuning import rouge, spoken, trial_loss
from ..models.loading import ChatModel, cache_dir, files_of, load, resolve
from ..models.rows import rows_of
from ..models.training import TrainConfig, train
from ..progress import Reporter
from ..provenance import code_version, versions
from ..reveal.run import reveal_config, reveal_version, shown_by, staged_task
from ..spec import BenchSpec, RevealSpec
from . import memory, settings
from .judging import applied, judge
from .results import Cell, Results, digest
from .trials import Trials

BASE, TAUGHT, RETRAINED = "base", "taught", "retrained"


class Bench:
    """One seed of a benchmark: the model, what it was taught, and the cells."""

    def __init__(self, spec: BenchSpec, seed: int, results: Results, reporter: Reporter) -> None:
        self.spec, self.seed, self.results, self.reporter = spec, seed, results, reporter
        self.suite = suite_of(spec.suite, spec.size, seed)

    @cached_property
    def chat(self) -> ChatModel:
        return load(self.spec.model, self.reporter)

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
        return cache_dir() / "taught" / digest(parts)[:24]

    @cached_property
    def _identity(self) -> list[Any]:
        """Of the model: its spec, and the sizes and times of its files."""
        model = self.spec.model
        return [model.identity(), *files_of(resolve(model.name, model.revision))]

    @cached_property
    def _content(self) -> str:
        """A hash of the suite's rows and settings, of the model, and of what makes rows by which settings."""
        made: list[Any] = []
        if self.suite.reveal:
            config = reveal_config(RevealSpec(**self.suite.reveal), self.seed)
            made = [config.model_dump(mode="json"), reveal_version()]
        return digest([self.suite.content(), self._identity, *made])

    def stamp(self, cell: Cell) -> str:
        """A hash of what the cell is made from, so that one made from something else is not taken up again: rows and
        model, then all settings, defaults too. Of the code itself a cell only says by which version it was made."""

        def whole(given: dict[str, Any]) -> dict[str, Any]:
            return method(cell.method).configure(**given).model_dump(mode="json")

        made: Any = None
        if cell.regime == "published":
            made = whole(settings.published(cell.method, cell.variant))
        elif cell.regime == "tuned":
            # With a fixed number of rows: the batch follows from it, and seeds with other numbers belong to one row.
            made = [whole(point) for point in self._grid(cell, settings.REVEALED_ROWS)]
        elif cell.regime == "equal-time":
            beside = self._beside(cell)
            made = beside and [*beside[0], beside[1].get("seconds_in_all"), whole(beside[2].get("settings", {}))]
        return f"{self._content[:16]}-{digest(made)[:16]}"

    def finished(self, cell: Cell) -> bool:
        return self.results.finished(cell, self.stamp(cell))

    def _grid(self, cell: Cell, rows: int) -> list[dict[str, Any]]:
        return settings.grid(cell.method, cell.variant, self.spec.trials, rows)

    @cached_property
    def fit(self) -> ForgetTask:
        """What a method is given: the suite's, or what the model as it stands reveals; kept beside the results."""
        if not self.suite.reveal:
            shown = shown_by(RevealSpec(task=self.suite.task), self.chat) if self.suite.task else {}
            return replace(self.suite.fit, **shown)
        spec = RevealSpec(**self.suite.reveal)
        found = staged_task(self.chat, spec, self.seed, self.revealed, self.reporter)
        held = {e.prompt for e in self.suite.fit.validation}
        own = [e for e in found.retain if e.prompt not in held]
        return replace(found, retain=[*self.suite.fit.retain, *own], validation=self.suite.fit.validation)

    @property
    def revealed(self) -> Path:
        """The folder of the search, and of the rows that the model revealed."""
        name = f"{self.results.key}-seed{self.seed}-{self._content[:8]}"
        return self.results.file.parent / "revealed" / name

    @property
    def _teaching(self) -> TrainConfig:
        return TrainConfig(seed=self.seed, **self.suite.teaching)

    def _learned(self, stage: str, rows: Sequence[Example]) -> Edit:
        from filelock import FileLock

        folder, config = self.cached(rows), self._teaching
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # another benchmark may be teaching the same
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
        made: dict[str, Any] = {"stamp": self.stamp(cell), "code": code_version()}
        try:
            made["machine"] = _machine(self.chat)
            record = self._record(cell)
        except Diverged as e:
            record = {"diverged": e.step, "message": str(e), "seconds": time.perf_counter() - begin}
        except Exception as e:  # whatever it is, it stands in the table, and the other cells go on
            record = {"error": f"{type(e).__name__}: {' '.join(str(e).split())}"[:500]}
        self.results.add(cell, record | made)
        if "error" not in record:
            shutil.rmtree(self._trials(cell), ignore_errors=True)

    def _record(self, cell: Cell) -> dict[str, Any]:
        if cell.method == RETRAINED:
            if self.retrained is None:
                return {"skipped": "no model to retrain: the suite teaches no rows to leave out"}
            with self.retrained.applied(self.chat):
                return self._judged(cell)
        if cell.method == BASE:
            return self._judged(cell)
        gold = Cell(self.seed, RETRAINED)
        if not self.finished(gold):
            raise ExpungeError(
                f"needs the retrained model: {self.results.cells.get(gold, {}).get('error', 'not there')}"
            )
        with applied(self.taught, self.chat):
            if cell.method == TAUGHT:
                with suppress(ExpungeError):  # early, for all methods to find; they say what was wrong
                    _ = self.fit
                return self._judged(cell)
            edit, record = self._unlearned(cell)
            changed = edit.summary() | {"matrices": len(edit.parts)}
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
        fit = self.fit
        folder = self.results.file.parent / "rounds" / f"{self.stamp(cell)}-{digest([chosen, code_version()])[:16]}"
        with self.reporter.stage(cell.label) as advance, memory.peak(self.chat.device.type == "cuda") as highest:
            begin = time.perf_counter()
            edit = run_method(self.chat, fit, cell.method, chosen, progress=advance, folder=folder)
            taken = time.perf_counter() - begin + edit.meta.get("seconds_before", 0.0)
        shutil.rmtree(folder, ignore_errors=True)
        record = {"settings": chosen, "seconds": taken, "seconds_in_all": taken, "peak_bytes": highest()}
        told = ("before", "looked_at", "round_log", "total_forget_step", "warnings")
        record |= {k: edit.meta[k] for k in told if k in edit.meta}
        if trials := edit.meta.get("trials"):
            best = trials[edit.meta["taken"]]  # not always that of the lowest loss
            record |= {"trials": trials, "seconds": best["seconds"]}
            record["settings"] = chosen | {k: best[k] for k in ("layers", "coefficient", "ridge") if k in best}
        return edit, record

    def _tuned(self, cell: Cell, base: dict[str, Any]) -> tuple[Edit, dict[str, Any]]:
        """The edit of the trial that does best on the rows that tune."""
        points = self._grid(cell, len(self.suite.fit.forget) or settings.REVEALED_ROWS)
        if settings.searches(cell.method, cell.variant):
            return self._made(cell, base | points[0])
        trials = Trials(self._trials(cell))
        if trials.tried:
            self.reporter.say(f"{cell.label}: {len(trials.tried)} of {len(points)} trials were finished before")
        before = self._kept()
        most = (self._shown()[0] or 1.0) if self.suite.behaviour else 1.0  # a behaviour counts relative to before
        for number, point in enumerate(points[len(trials.tried) :], len(trials.tried) + 1):
            try:
                edit, record = self._made(cell, base | point)
            except Diverged as e:
                trials.add(point | {"diverged": e.step})
                self.reporter.say(f"  trial {number} of {len(points)}: diverged")
                continue
            with edit.applied(self.chat):
                (shown, broken), kept = self._shown(), self._kept()
            value = trial_loss(shown / most, kept, before, broken)
            trials.add(point | {"loss": value, "seconds": record["seconds"]}, edit, record)
            self.reporter.say(f"  trial {number} of {len(points)}: loss {value:.1f}")
        if trials.best is None:
            raise Diverged(int(trials.tried[0]["diverged"]), f"in all {len(points)} trials")
        edit, record = trials.best
        return edit, record | {"trials": trials.tried, "seconds_in_all": trials.seconds}

    def _trials(self, cell: Cell) -> Path:
        """Where a tuned cell's finished trials are kept until the cell is."""
        return self.results.file.parent / "trials" / f"{self.stamp(cell)}-{digest([cell, code_version()])[:16]}"

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
        """At the tuned settings (else the published), with as many epochs as take all of LUNAR's time, its search too.

        An epoch is timed now: what a machine had beside it in another regime's hour says little. A run that misses the
        time all the same is made again by what it took, and the closest one counts.
        """
        beside = self._beside(cell)
        if beside is None:
            raise InputError("equal-time needs LUNAR and the method itself in another regime first")
        lunar, record, known = beside
        if "diverged" in known or "diverged" in record:
            raise Diverged(
                int((known if "diverged" in known else record)["diverged"]), "at the settings of the other regime"
            )

        if record["machine"] != (here := _machine(self.chat)):
            raise InputError(
                f"equal-time compares seconds: LUNAR's are of another machine or number of threads ({record['machine']}; "
                f"here {here}); run it again in another --out"
            )

        def made(epochs: int) -> tuple[Edit, dict[str, Any]]:
            return self._made(cell, known["settings"] | {"epochs": epochs})

        wanted = record["seconds_in_all"]
        first, later = (made(n)[1]["seconds"] for n in settings.TIMED_EPOCHS)
        epoch = (later - first) / (settings.TIMED_EPOCHS[1] - settings.TIMED_EPOCHS[0])
        if epoch <= 0:  # so short that chance decides
            epoch = later / settings.TIMED_EPOCHS[1]
        more = max(round(settings.TIMED_EPOCHS[0] + (wanted - first) / epoch), 1)
        runs: list[tuple[float, Edit, dict[str, Any]]] = []
        while len(runs) < settings.TIMED_TRIES:
            edit, told = made(more)
            runs.append((abs(told["seconds"] / wanted - 1), edit, told))
            again = max(round(more * wanted / told["seconds"]), 1)
            if runs[-1][0] <= settings.CLOSE or again == more:
                break
            more = again
        _, edit, told = min(runs, key=lambda run: run[0])
        return edit, told | {"beside": lunar.regime}

    def _kept(self) -> float:
        return rouge(self.chat, self.suite.validate["retain"])

    def _shown(self) -> tuple[float, float]:
        """(how much of what is to be forgotten the rows that tune still show, the share of broken answers to them: 0 of a
        behaviour, which counts its own)."""
        rows = self.suite.validate["forget"]
        if self.suite.behaviour:
            return BEHAVIOURS[self.suite.behaviour].shown(self.chat, rows, self.seed), 0.0
        return spoken(self.chat, rows)

    def _solves(self, cell: Cell) -> bool:
        """Whether a model is asked to solve problems: one that solved none before is not asked again."""
        before = self.results.cells.get(Cell(self.seed, TAUGHT), {}).get("metrics", {})
        return cell.method in (BASE, TAUGHT) or before.get("gsm8k", 1) > 0

    def _judged(self, cell: Cell, edit: Edit | None = None) -> dict[str, Any]:
        """What the judging rows say of the model as it stands, with `edit` applied."""
        gold = Cell(self.seed, RETRAINED)
        rows = self.results.rows(gold) if cell != gold and self.finished(gold) else None
        with self.reporter.stage(f"judge {cell.label}", sum(map(len, self.suite.judge.values()))) as advance:
            found, record = judge(
                self.chat, self.suite, edit, Evaluation.of(rows) if rows else None, cell == gold, self._solves(cell),
                self.spec.batch_size, advance,
            )  # fmt: skip
        self.results.keep_rows(cell, found.record())
        return record | {"max_new_tokens": self.suite.max_new_tokens}


def _machine(chat: ChatModel) -> str:
    import torch

    if chat.device.type == "cuda":
        return torch.cuda.get_device_name(chat.device)
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}"

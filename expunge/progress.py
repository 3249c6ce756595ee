"""What a run shows on the terminal: progress bars, tables, samples. All of it goes to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .data.examples import Example
    from .evaluation.scores import Evaluation

SAMPLES = 3
SAY_SECONDS = 30  # without a terminal: how often a stage says how far it is


class Advance(Protocol):
    """Moves a stage's bar on, and may say something beside it."""

    def __call__(self, rows: int, /, note: str = "") -> None: ...


class Reporter:
    """Stages with their seconds; bars with a terminal, lines now and then without one, and neither with --quiet."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet)
        self.seconds: dict[str, float] = {}
        self.current = ""
        self.bars = not quiet and sys.stderr.isatty()

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Times a stage; yields a function that moves its bar on."""
        self.current = name
        begin = time.perf_counter()
        try:
            if not self.bars:
                if not self.quiet:
                    print(f"{name} …", file=sys.stderr, flush=True)
                yield self._said(name, total)
            else:
                from rich.progress import (
                    BarColumn,
                    MofNCompleteColumn,
                    Progress,
                    SpinnerColumn,
                    TextColumn,
                    TimeElapsedColumn,
                )

                columns = (
                    SpinnerColumn(),
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                )
                with Progress(*columns, console=self.console) as bars:
                    task = bars.add_task(name, total=total)
                    yield lambda n, note="": bars.update(task, advance=n, description=f"{name} {note}".rstrip())
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def _said(self, name: str, total: int | None) -> Advance:
        """In place of a bar, a line every `SAY_SECONDS`."""
        done, last = 0, time.perf_counter()

        def advance(rows: int, /, note: str = "") -> None:
            nonlocal done, last
            done += rows
            now = time.perf_counter()
            if now - last >= SAY_SECONDS:
                last = now
                self.say(f"  {name}: {done}" + (f" of {total}" if total else "") + (f", {note}" if note else ""))

        return advance

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def table(self, columns: dict[str, Evaluation], output: bool = False) -> None:
        """One row a role and metric, one column an evaluation (before, taught, after); the last with 95% intervals.

        Args:
            output: it is what was asked for: on standard output, with --quiet too.
        """
        from rich.console import Console
        from rich.table import Table

        table = Table(title=None)
        table.add_column("role")
        table.add_column("rows", justify="right")
        table.add_column("metric")
        for name in columns:
            table.add_column(name, justify="right")
        last = next(reversed(columns.values()))
        bounds = last.intervals()

        def between(role: str, metric: str) -> str:
            found = bounds.get(role, {}).get(metric)
            return f" ({found[0]:.3f} to {found[1]:.3f})" if found else ""

        for role, values in last.items():
            if not isinstance(values, dict):
                continue
            for place, metric in enumerate(("rouge1", "abstention_rate", "probability", "extraction_strength")):
                cells = [f"{e[role][metric]:.3f}" if role in e else "" for e in columns.values()]
                cells[-1] += between(role, metric)
                table.add_row(role if place == 0 else "", str(values["rows"]) if place == 0 else "", metric, *cells)
        for name, value in last.items():
            if isinstance(value, float) and name != "seconds":
                digits = 1 if name == "deviation_score" else 3
                scores = [f"{e[name]:.{digits}f}" if name in e else "" for e in columns.values()]
                scores[-1] += between(name, name)
                table.add_row("", "", name.replace("_", " "), *scores)
        (Console() if output else self.console).print(table)
        if encoder := last.get("refusal_encoder"):
            self.say(f"refusal quality by {encoder}")

    def rounds(self, log: Sequence[dict[str, Any]]) -> None:
        """The rounds of a release, one line each."""
        for number, one in enumerate(log, 1):
            self.say(f"  round {number}: {_round(one)}")

    def samples(self, task: dict[str, Sequence[Example]], columns: dict[str, Evaluation]) -> None:
        """Three answers a role, before and after; shown here only, never written."""
        from .data.prompts import question

        for role, rows in task.items():
            for n in range(min(SAMPLES, len(rows))):
                answers = {name: e.answers[role][n] for name, e in columns.items() if e.answers.get(role)}
                if not answers:
                    continue
                self.say(f"\n[{role}] {_short(question(rows[n].prompt))}   (true: {_short(rows[n].response, 60)})")
                for name, answer in answers.items():
                    self.say(f"  {name:>7}: {_short(answer)}")


def _round(log: dict[str, Any]) -> str:
    if "failed" in log:
        return f"failed: {log['failed']}"
    if "forget_step" not in log:
        return "no step kept what is to be kept" if log.get("tried") else "nothing of it is shown any more"
    parts = [f"lambda_f {log['forget_step']:g}", f"lambda_r {log['retain_step']:g}"]
    parts += [f"{name} {log[name]:.3f}" for name in ("forget", "kept")]
    parts += [f"norms {log['forget_norm']:.2f}, {log['retain_norm']:.2f}"] if "retain_norm" in log else []
    parts += [f"cosine {log['cosine']:.3f}, |A_r A_f^T| {log['interference']:.1f}"] if "cosine" in log else []
    return ", ".join(parts)


def _short(text: str, width: int = 140) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"

"""Finished cells on disk: one line each, written whole, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..files import append_line, whole_lines, write_whole
from ..provenance import salt


def digest(value: Any) -> str:
    """Salted: what is hashed can name a subject."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(salt() + text.encode()).hexdigest()


class Cell(NamedTuple):
    """One row of the table for one seed.

    method: of the registry, or "taught" (before unlearning) and "retrained". variant: settings that it has in each
    regime, such as "optimizer=sophia"; see `settings.fixed`.
    """

    seed: int
    method: str
    regime: str = ""
    variant: str = ""

    @property
    def row(self) -> tuple[str, str, str]:
        return self.method, self.regime, self.variant

    @property
    def label(self) -> str:
        return f"{' '.join(filter(None, self.row))} (seed {self.seed})"


class Results:
    """The lines of results.jsonl that belong to one benchmark.

    Args:
        about: what the benchmark is (suite, size, model); stands in a line of its own.
        key: of this benchmark among others in the folder.

    Attributes:
        elsewhere: whether the folder has the same benchmark under another key, that is, made on another machine (keys
            are salted) or from other files.
    """

    def __init__(self, folder: Path, key: str, about: Mapping[str, Any]) -> None:
        self.file = folder / "results.jsonl"
        self.key, self.about = key, dict(about)
        self.cells: dict[Cell, dict[str, Any]] = {}
        self._told = self.elsewhere = False
        for line in lines(self.file):
            if line.get("key") != self.key:
                self.elsewhere |= line.get("about") == self.about
            else:
                self._told |= "about" in line
                if "cell" in line:
                    take(self.cells, line)

    def finished(self, cell: Cell, stamp: str) -> bool:
        """Whether the cell is there, made from what the stamp stands for. One that failed is tried again; one that
        diverged is a result."""
        found = self.cells.get(cell)
        return found is not None and "error" not in found and found.get("stamp") == stamp

    def add(self, cell: Cell, record: Mapping[str, Any]) -> None:
        line = {"key": self.key, "cell": list(cell), **record}
        if not self._told:
            append_line(self.file, {"key": self.key, "about": self.about})
            self._told = True
        append_line(self.file, line)
        take(self.cells, line)

    def keep_rows(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Per-row values, numbers only, in a file beside the table."""
        write_whole(self._rows(cell), json.dumps(record) + "\n")

    def rows(self, cell: Cell) -> dict[str, Any] | None:
        """What `keep_rows` kept; None where nothing was."""
        file = self._rows(cell)
        return json.loads(file.read_text()) if file.is_file() else None

    def _rows(self, cell: Cell) -> Path:
        name = "-".join(filter(None, (*cell.row, f"seed{cell.seed}"))).replace("/", "_") + ".json"
        return self.file.parent / "rows" / self.key / name


def outdated(cells: Mapping[Cell, Mapping[str, Any]]) -> set[Cell]:
    """The cells that were made from other rows, another model or other settings than the newest of their seed, or of their
    row of the table: a run that was asked for some of the cells only leaves such behind. Equal time has settings of its
    own for each seed.

    Args:
        cells: in the order in which they were made.
    """
    stamps = {c: r.get("stamp", "").split("-") for c, r in cells.items()}
    stamps = {c: parts for c, parts in stamps.items() if len(parts) == 2}  # of earlier versions it is one hash
    content = {cell.seed: rows for cell, (rows, _) in stamps.items()}  # of the newest
    made = {cell.row: settings for cell, (_, settings) in stamps.items()}
    return {
        cell
        for cell, (rows, settings) in stamps.items()
        if rows != content[cell.seed] or (settings != made[cell.row] and cell.regime != "equal-time")
    }


def take(cells: dict[Cell, dict[str, Any]], line: dict[str, Any]) -> None:
    """Adds a cell's line, in place of an earlier one and after all others: the order says which is the newest."""
    cell = Cell(*line["cell"])
    cells.pop(cell, None)
    cells[cell] = line


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines: of cells ("cell"), and of what a benchmark is ("about")."""
    return (line for line in whole_lines(file) if "key" in line and ("cell" in line or "about" in line))

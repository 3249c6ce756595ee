"""Finished cells on disk: one line each, written whole, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ExpungeError
from ..files import write_whole


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
    """The lines of results.jsonl that belong to one benchmark (its key is a hash of suite, size, model and budget)."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.file = folder / "results.jsonl"
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        self.cells: dict[Cell, dict[str, Any]] = {}
        for line in lines(self.file):
            if line.get("key") == self.key:
                self.cells[Cell(*line["cell"])] = line

    def __contains__(self, cell: Cell) -> bool:
        """Whether the cell is finished. One that failed is tried again; one that diverged is a result."""
        return cell in self.cells and "error" not in self.cells[cell]

    def add(self, cell: Cell, record: Mapping[str, Any]) -> None:
        line = {"key": self.key, "cell": list(cell), **record}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a+b") as f:
                if f.tell() and not _ends_whole(f):
                    f.write(b"\n")  # a line that a kill tore; readers leave it out
                f.write(json.dumps(line).encode() + b"\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise ExpungeError(f"cannot write {self.file}: {e.strerror or e}; finished cells are kept") from e
        self.cells[cell] = line

    def keep_rows(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Per-row values, numbers only, in a file beside the table."""
        write_whole(self._rows(cell), json.dumps(record) + "\n")

    def rows(self, cell: Cell) -> dict[str, Any] | None:
        """What `keep_rows` kept; None where nothing was."""
        file = self._rows(cell)
        return json.loads(file.read_text()) if file.is_file() else None

    def _rows(self, cell: Cell) -> Path:
        return (
            self.file.parent
            / "rows"
            / self.key
            / ("-".join(map(str, filter(None, (*cell.row, f"seed{cell.seed}")))) + ".json")
        )


def _ends_whole(f: Any) -> bool:
    f.seek(-1, os.SEEK_END)
    return f.read(1) == b"\n"


def lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "cell" in line:
            yield line

"""Finished trials of a tuned cell, on disk, so that a benchmark that was killed goes on after them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..edits import Edit
from ..files import append_line, whole_lines


class Trials:
    """
    tried: of each trial its settings, and its loss and seconds or the step at which it diverged.
    best: the edit of the lowest loss, and its record; None: of none.

    Args:
        folder: where they are kept; those that are there are taken up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tried: list[dict[str, Any]] = []
        self.best: tuple[Edit, dict[str, Any]] | None = None
        self._begin, self._earlier, self._kept = time.perf_counter(), 0.0, -1
        record: dict[str, Any] = {}
        for line in whole_lines(self._file):
            if "record" in line:
                self._kept, record = len(self.tried), line["record"]
            self.tried.append(line["trial"])
            self._earlier = line["seconds"]
        if record:
            self.best = Edit.load(self._edit(self._kept)), record

    @property
    def seconds(self) -> float:
        """That all of it took, with what was taken up."""
        return self._earlier + time.perf_counter() - self._begin

    def add(self, trial: Mapping[str, Any], edit: Edit | None = None, record: Mapping[str, Any] | None = None) -> None:
        """A finished trial; with the edit and its record, and a loss, where it did not diverge."""
        number, line = len(self.tried), {"trial": dict(trial)}
        better = edit is not None and (not self.best or trial["loss"] < self.tried[self._kept]["loss"])
        if better:
            assert edit
            self.best = edit, dict(record or {})
            line["record"] = self.best[1]
            edit.save(self._edit(number), overwrite=True)
        self.tried.append(line["trial"])
        append_line(self._file, line | {"seconds": self.seconds})
        if better:
            shutil.rmtree(self._edit(self._kept), ignore_errors=True)
            self._kept = number

    @property
    def _file(self) -> Path:
        return self.folder / "trials.jsonl"

    def _edit(self, number: int) -> Path:
        return self.folder / f"edit-{number}"

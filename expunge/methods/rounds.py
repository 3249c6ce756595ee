"""Finished rounds of a release: what they came to, in memory and, where there is a folder, on disk, so that a run that was
interrupted goes on after them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..edits import Edit
from ..files import write_whole

LEAST_GAIN = 0.01  # of what there was to forget, below which two rounds in turn end the run


@dataclass
class Rounds:
    """
    left: what is left of what is forgotten, before and after each round. folder: where they are kept; None: nowhere.
    log: of each round. current: the edit of all rounds. best, taken: that of the best one, and how many rounds are in it.
    seconds: that rounds took which were taken up from the folder.
    """

    left: list[float]
    folder: Path | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    current: Edit | None = None
    best: Edit | None = None
    taken: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._begin = time.perf_counter()
        if self.folder and self._file.is_file():
            found = json.loads(self._file.read_text())
            self.left, self.log, self.taken, self.seconds = (found[k] for k in ("left", "log", "taken", "seconds"))
            self.current = Edit.load(self._edit(len(self.log)))
            self.best = Edit.load(self._edit(self.taken)) if self.taken else None

    def add(self, step: Edit, record: dict[str, Any]) -> None:
        """A round that counts. record: what is to be logged of it, "forget" (what is left) among it."""
        found, before = record["forget"], self.left[0]
        self.log.append(record)
        self.current = self.current.compose(step) if self.current else step
        # Of equal rounds the later: what is measured moves in steps, the weights do not.
        if found <= min(self.left) and found < before:
            self.best, self.taken = self.current, len(self.log)
        self.left.append(found)
        if self.folder:
            self.current.save(self._edit(len(self.log)), overwrite=True)
            seconds = self.seconds + time.perf_counter() - self._begin
            kept = {"left": self.left, "log": self.log, "taken": self.taken, "seconds": seconds}
            write_whole(self._file, json.dumps(kept))

    def enough(self, target: float) -> bool:
        """Whether next to nothing is left, relative to before, or two rounds in turn gained nothing."""
        gains = [(one - next_) / self.left[0] for one, next_ in zip(self.left, self.left[1:], strict=False)]
        reached = len(self.left) > 1 and self.left[-1] <= target * self.left[0]
        return reached or (len(gains) > 1 and max(gains[-2:]) < LEAST_GAIN)

    @property
    def _file(self) -> Path:
        assert self.folder
        return self.folder / "rounds.json"

    def _edit(self, number: int) -> Path:
        assert self.folder
        return self.folder / f"round-{number}"

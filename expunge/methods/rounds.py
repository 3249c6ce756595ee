"""Finished rounds of a release: what they came to, in memory and, where there is a folder, on disk, so that a run that was
interrupted goes on after them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from ..edits import Edit
from ..files import write_whole

LEAST_GAIN = 0.01  # of what there was to forget: a smaller difference between two rounds is none


@dataclass
class Rounds:
    """
    left: what is left of what is forgotten, before and after each round. folder: where they are kept; None: nowhere.
    log: of each round. steps: of each round that counts, made on the model with those before it.
    seconds: that rounds took which were taken up from the folder.
    """

    left: list[float]
    folder: Path | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    steps: list[Edit] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._begin = time.perf_counter()
        if self.folder and self._file.is_file():
            found = json.loads(self._file.read_text())
            self.left, self.log, self.seconds = (found[k] for k in ("left", "log", "seconds"))
            self.steps = [Edit.load(self._step(n + 1)) for n in range(len(self.log))]
        self.current = _together(self.steps) if self.steps else None

    def add(self, step: Edit, record: dict[str, Any]) -> None:
        """A round that counts. record: what is to be logged of it, "forget" (what is left) and "nlls" (of what is kept)
        among it."""
        self.log.append(record)
        self.steps.append(step)
        self.current = self.current.compose(step) if self.current else step
        self.left.append(record["forget"])
        if self.folder:
            step.save(self._step(len(self.steps)), overwrite=True)
            seconds = self.seconds + time.perf_counter() - self._begin
            write_whole(self._file, json.dumps({"left": self.left, "log": self.log, "seconds": seconds}))

    @property
    def taken(self) -> int:
        """How many rounds are in the result: up to the one with the least left (of equal ones the later, as what is
        measured moves in steps and the weights do not), or to a later one that leaves next to as much and keeps more.
        0: none forgot anything."""
        before, *after = self.left
        least = min(after, default=before)
        if least >= before:
            return 0
        first = max(n for n, left in enumerate(after) if left == least)
        near = [n for n in range(first, len(after)) if after[n] - least <= LEAST_GAIN * before and after[n] < before]
        return min(near, key=lambda n: (sum(self.log[n]["nlls"]), -n)) + 1

    @property
    def best(self) -> Edit | None:
        """The edit of the rounds taken."""
        return _together(self.steps[: self.taken]) if self.taken else None

    def enough(self, target: float) -> bool:
        """Whether next to nothing is left, relative to before, or two rounds in turn gained nothing."""
        gains = [(one - next_) / self.left[0] for one, next_ in zip(self.left, self.left[1:], strict=False)]
        reached = len(self.left) > 1 and self.left[-1] <= target * self.left[0]
        return reached or (len(gains) > 1 and max(gains[-2:]) < LEAST_GAIN)

    @property
    def _file(self) -> Path:
        assert self.folder
        return self.folder / "rounds.json"

    def _step(self, number: int) -> Path:
        assert self.folder
        return self.folder / f"round-{number}"


def _together(steps: Sequence[Edit]) -> Edit:
    return reduce(Edit.compose, steps)

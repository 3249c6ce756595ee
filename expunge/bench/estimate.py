"""How long a benchmark will take, from its counts of tokens and two quick measurements on the model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..data.examples import Example
from . import settings
from .results import Cell

if TYPE_CHECKING:
    from .runner import Bench

ROWS = 16
TRAINED = 3.2  # a training step costs so many forward passes
LUNAR_PASSES = 6.0  # forward passes over the fitted rows, rewrites and own answers included, a trial
ANSWER_SHARE = 0.6  # of the longest answers, how long the usual one is


class Rates:
    """Seconds a token of a forward pass, and a token of a generated answer, in batches as they run."""

    def __init__(self, bench: Bench) -> None:
        from ..models.generation import greedy, score_answers

        rows = [*bench.suite.fit.forget, *bench.suite.fit.retain][:ROWS]
        chat = bench.chat
        prompts, answers = chat.prompt_ids([e.prompt for e in rows]), chat.answer_ids([e.response for e in rows])
        self.tokens = sum(map(len, prompts)) / len(rows) + sum(map(len, answers)) / len(rows)
        begin = time.perf_counter()
        score_answers(chat, prompts, answers)
        self.forward = (time.perf_counter() - begin) / (self.tokens * len(rows))
        begin = time.perf_counter()
        made = greedy(chat, prompts, 16)
        self.generate = (time.perf_counter() - begin) / max(sum(len(g.tokens) for g in made), 1)


def seconds(bench: Bench, cells: Sequence[Cell], rates: Rates) -> float:
    """For these cells of one seed."""
    from ..methods import method

    suite, trials = bench.suite, bench.spec.trials

    def training(rows: Sequence[Example] | int, epochs: int) -> float:
        count = rows if isinstance(rows, int) else len(rows)
        return count * epochs * rates.tokens * rates.forward * TRAINED

    def judging(roles: Mapping[str, Sequence[Example]]) -> float:
        count = sum(map(len, roles.values()))
        return count * (rates.tokens * rates.forward + suite.max_new_tokens * ANSWER_SHARE * rates.generate)

    epochs = int(suite.teaching.get("epochs", 0))
    learned = [rows for rows in (suite.teach, suite.retrain()) if rows and not bench.cached(rows).is_dir()]
    total = sum(training(rows, epochs) for rows in learned)
    forget, retain = len(suite.fit.forget), len(suite.fit.retain)
    for cell in cells:
        total += judging(suite.judge)
        if not cell.regime:
            continue
        times = trials if cell.regime == "tuned" else 1
        if cell.method == "lunar":
            one = (3 * forget + 2 * retain + 250) * rates.tokens * rates.forward * LUNAR_PASSES
        else:
            passes = getattr(
                method(cell.method).configure(**settings.published(cell.method, cell.variant)), "epochs", 1
            )
            one = training(2 * forget, passes)
        total += times * (one + (judging(suite.validate) if cell.regime == "tuned" else 0.0))
    return total


def words(value: float) -> str:
    """About how long, in minutes or hours."""
    return f"about {value / 60:.0f} min" if value < 5400 else f"about {value / 3600:.1f} h"

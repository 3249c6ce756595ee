"""How long a benchmark will take, from its counts of tokens and two quick measurements on the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.examples import Example
from . import settings
from .results import Cell

if TYPE_CHECKING:
    from ..models.loading import ChatModel
    from .seed import Bench

ROWS = 16
TRAINED = 3.2  # a training step costs so many forward passes
LUNAR_PASSES = 1.3  # forward passes over fitted rows, rewrites and own answers, of a fit or a window of layers
SGD_PASSES = 10.0  # over the rows alone, for solver=sgd: its own passes are of one row each, then 20 epochs of AdamW
ANSWER_SHARE = 0.6  # of the longest answers, how long the usual one is
QUESTION_TOKENS = 120  # of a multiple-choice question
QUERY_TOKENS = 800  # generated for a query that reveals
ONWARD_TOKENS = 250  # and for each relevant answer that is sought by going on after others


class Rates:
    """Seconds a token of a forward pass, and a token of a generated answer, in batches as they run."""

    def __init__(self, bench: Bench) -> None:
        from ..models.generation import greedy, score_answers

        suite = bench.suite
        rows = [*suite.fit.forget, *suite.fit.retain, *(e for role in suite.judge.values() for e in role)][:ROWS]
        chat = bench.chat
        prompts, answers = chat.prompt_ids([e.prompt for e in rows]), chat.answer_ids([e.response for e in rows])
        self.tokens = sum(map(len, prompts)) / len(rows) + sum(map(len, answers)) / len(rows)
        made = greedy(chat, prompts, 16)  # the first call of a model is slow, and not measured
        self.generate = _seconds(lambda: greedy(chat, prompts, 16)) / max(sum(len(g.tokens) for g in made), 1)
        self.forward = _seconds(lambda: score_answers(chat, prompts, answers)) / (self.tokens * len(rows))


def _seconds(make: Callable[[], object]) -> float:
    begin = time.perf_counter()
    make()
    return time.perf_counter() - begin


def seconds(bench: Bench, cells: Sequence[Cell], rates: Rates, chat: ChatModel) -> float:
    """For these cells of one seed. chat: any seed's model, which each else loads for itself."""
    from ..methods import method
    from ..methods.lunar import LunarConfig
    from ..methods.tuning import WINDOWS, with_rewrites
    from ..reveal.run import target_of
    from ..spec import RevealSpec

    suite, trials = bench.suite, bench.spec.trials

    def training(rows: Sequence[Example] | int, epochs: int) -> float:
        count = rows if isinstance(rows, int) else len(rows)
        return count * epochs * rates.tokens * rates.forward * TRAINED

    def judging(roles: Mapping[str, Sequence[Example]]) -> float:
        count = sum(map(len, roles.values())) + len(suite.probes)
        return count * (rates.tokens * rates.forward + suite.max_new_tokens * ANSWER_SHARE * rates.generate)

    def judged() -> float:
        norms = sum(len(suite.judge[r]) for r in ("forget", "holdout")) if "holdout" in suite.judge else 0
        passes = len(suite.questions) * QUESTION_TOKENS + norms * rates.tokens * TRAINED
        return judging(suite.judge) + passes * rates.forward

    epochs = int(suite.teaching.get("epochs", 0))
    learned = [rows for rows in (suite.teach, suite.retrain()) if rows and not bench.cached(rows).is_dir()]
    total = sum(training(rows, epochs) for rows in learned)
    if suite.reveal and not bench.revealed.is_dir():
        onward = target_of(RevealSpec(task=suite.reveal["task"]), chat).onward
        total += (suite.reveal["budget"] * QUERY_TOKENS + onward * ONWARD_TOKENS) * rates.generate

    def lunar(variant: str) -> float:
        config = LunarConfig(**settings.published("lunar", variant))
        if config.solver == "sgd":
            return (len(suite.fit.forget) + len(suite.fit.retain)) * rates.tokens * rates.forward * SGD_PASSES
        fitted = with_rewrites(suite.fit, suite.fit.retain, suite.fit.validation, config.neighbours)
        rows = len(fitted.forget) + len(fitted.retain) + config.answers
        return rows * rates.tokens * rates.forward * LUNAR_PASSES

    def fit(cell: Cell) -> float:
        if cell.method == "lunar":
            return lunar(cell.variant)
        config: Any = method(cell.method).configure(**settings.published(cell.method, cell.variant))
        rows = len(suite.fit.forget) or settings.REVEALED_ROWS
        return training(config.rows_read(rows, len(suite.fit.retain) or rows), 1)

    def search(cell: Cell) -> float:
        fits = min(trials, WINDOWS) if settings.searches(cell.method, cell.variant) else trials
        return fits * fit(cell) + trials * judging(suite.validate)

    for cell in cells:
        total += judged()
        if cell.regime == "published":
            total += fit(cell)
        elif cell.regime == "tuned":
            total += search(cell)
        elif cell.regime == "equal-time":
            own = method(cell.method).configure(**settings.published(cell.method, cell.variant))
            total += search(cell._replace(method="lunar", variant=""))
            total += fit(cell) * sum(settings.TIMED_EPOCHS) / max(getattr(own, "epochs", 1), 1)
    return total


def words(value: float) -> str:
    """About how long, in minutes or hours."""
    return f"about {value / 60:.0f} min" if value < 5400 else f"about {value / 3600:.1f} h"

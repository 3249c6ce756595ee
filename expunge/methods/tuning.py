"""What LUNAR finds by itself: layers, coefficient and ridge.

Layers come from the abstention score: with c r added to a block's output while it runs, how likely the model finds
abstentions as answers to forget prompts. No text is generated. Coefficient and ridge are tried on rows that judge
nothing: built-in paraphrases of the forget rows, and a fifth of the retain rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..data.examples import Example, ForgetTask
from ..data.prompts import abstentions, general_split, rewrites
from ..edits import Edit
from ..evaluation.text import deviation_score, rouge_recall
from ..models.activations import hidden_of, hooked, with_hidden
from ..models.generation import greedy, score_answers
from ..models.loading import ChatModel

if TYPE_CHECKING:
    from torch import Tensor

    from .lunar import LunarConfig

SCORE_ROWS = 8


def abstention_scores(
    chat: ChatModel, task: ForgetTask, directions: dict[int, Tensor], coefficient: float = 2.0, rows: int = SCORE_ROWS
) -> dict[int, float]:
    """Mean log-probability a token of abstentions to forget prompts, with c r(l) added to block l's output."""
    chosen = random.Random(0).sample(list(task.forget), min(rows, len(task.forget)))
    texts = abstentions()
    prompts = chat.prompt_ids([e.prompt for e in chosen])
    answers = chat.answer_ids([texts[i % len(texts)] for i in range(len(chosen))])
    scores = {}
    for layer, direction in directions.items():
        shift = (coefficient * direction).to(chat.device, chat.model.dtype)
        block = chat.layout.block(chat.model, layer)
        with hooked((block, "post", lambda _, __, out, shift=shift: with_hidden(out, hidden_of(out) + shift))):
            scored = score_answers(chat, prompts, answers)
        scores[layer] = sum(sum(s.log_probs) / len(s.log_probs) for s in scored) / len(scored)
    return scores


def choose_layers(chat: ChatModel, task: ForgetTask, width: int | None = None) -> list[int]:
    """The `width` neighbouring layers (default: a sixth of all) with the best mean abstention score.

    Every third layer is scored, then those around the best; the scores between are interpolated.
    """
    from .lunar import redirections

    count = len(chat.layout)
    width = width or max(round(count / 6), 1)
    coarse = list(range(min(1, count - 1), count, 3))
    directions = redirections(chat, task, list(range(count)))
    scores = abstention_scores(chat, task, {n: directions[n] for n in coarse})
    best = max(scores, key=lambda n: scores[n])
    near = [n for n in range(best - 2, best + 3) if 0 <= n < count and n not in scores]
    scores |= abstention_scores(chat, task, {n: directions[n] for n in near})
    known = sorted(scores)
    curve = np.interp(range(count), known, [scores[n] for n in known])
    means = np.convolve(curve, np.ones(width) / width, mode="valid")
    first = int(means.argmax())
    return list(range(first, first + width))


# ---------------------------------------------------------------- coefficient and ridge

RIDGES = (0.03, 0.1)
COEFFICIENTS = (2.0, 3.0, 4.0)
TUNE_ROWS = 24
TUNE_TOKENS = 24
FIT_REWRITES = 2
GENERAL_ROWS = 100


def tune(
    chat: ChatModel,
    task: ForgetTask,
    layers: Sequence[int],
    config: LunarConfig,
    progress: Callable[[int], None] | None = None,
) -> Edit:
    """The edit at the coefficient and ridge that do best on rows that judge nothing, refitted on all retain rows.

    The forget set is widened by built-in rewrites, and so are the retain rows, or the rewrites' own words would tell
    the two apart. A trial's loss is the Deviation Score on other rewrites of the forget rows and on a fifth of the
    retain rows, left out of the trial's fit, whose ROUGE-1 counts relative to that of the model as it is.
    """
    from .lunar import coefficients_of, prepare, solve

    rng = random.Random(0)
    held = held_out(task.retain)
    fit = [e for e in task.retain if e not in set(held)] or held
    asked = rewrites(task.forget, "tune")
    judge = (rng.sample(asked, min(len(asked), TUNE_ROWS)), held[:TUNE_ROWS])
    settings = [
        (c, ridge)
        for ridge in (RIDGES if config.ridge == "auto" else (config.ridge,))
        for c in (COEFFICIENTS if config.coefficient == "auto" else (config.coefficient,))
    ]
    before = _rouge(chat, judge[1])
    best: tuple[float, float | tuple[float, ...], float] | None = None  # loss, coefficient, ridge
    target = prepare(chat, _widened(task, fit), layers)
    trials = []
    for coefficient, ridge in settings:
        edit = solve(chat, target, layers, coefficients_of(coefficient, layers), ridge, config)
        with edit.applied(chat):
            forget, kept = (_rouge(chat, rows) for rows in judge)
        loss = deviation_score(forget, min(kept / before, 1.0) if before else 1.0)
        trials.append(
            {"coefficient": coefficient, "ridge": ridge, "forget_rouge1": forget, "retain_rouge1": kept, "loss": loss}
        )
        if progress:
            progress(1)
        if best is None or loss < best[0]:
            best = (loss, coefficient, ridge)
    assert best is not None
    target = prepare(chat, _widened(task, task.retain), layers)
    edit = solve(chat, target, layers, coefficients_of(best[1], layers), best[2], config)
    edit.meta |= {"trials": trials, "retain_rouge1_before": before}
    return edit


def held_out(retain: Sequence[Example]) -> list[Example]:
    """The fifth of the retain rows that tunes; these rows judge nothing."""
    return random.Random(0).sample(list(retain), max(len(retain) // 5, 1)) if retain else []


def _widened(task: ForgetTask, retain: Sequence[Example]) -> ForgetTask:
    """The forget rows with rewrites; the retain rows with one rewrite each, and built-in general prompts."""
    return task.but(
        forget=[*task.forget, *rewrites(task.forget, "fit", FIT_REWRITES)],
        retain=[*retain, *rewrites(retain, "fit"), *general_split()[0][:GENERAL_ROWS]],
    )


def _rouge(chat: ChatModel, rows: Sequence[Example]) -> float:
    """Mean ROUGE-1 recall of greedy answers."""
    answers = greedy(chat, chat.prompt_ids([e.prompt for e in rows]), TUNE_TOKENS)
    return sum(rouge_recall(a.text, e.response)[0] for a, e in zip(answers, rows, strict=True)) / len(rows)

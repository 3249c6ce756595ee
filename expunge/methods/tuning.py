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

from ..data.examples import ForgetTask
from ..data.prompts import abstentions
from ..edits import Edit
from ..models.activations import hidden_of, hooked, with_hidden
from ..models.generation import score_answers
from ..models.loading import ChatModel

if TYPE_CHECKING:
    from torch import Tensor

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

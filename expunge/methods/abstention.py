"""Abstention: whether a model can say that it does not know, and teaching it where it cannot.

LUNAR redirects to an ability that the model must have. Teaching is an Edit like any other: LoRA on unverifiable
questions answered by varied abstentions, beside prompts to keep, on which the model is held to its own answers by the
Kullback-Leibler divergence to itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..data.examples import Example
from ..data.prompts import abstentions
from ..edits import Edit
from ..evaluation.text import abstention_rate
from ..models.generation import greedy
from ..models.loading import ChatModel
from ..models.training import TrainConfig, rows_of, train, with_reference

PROBE_ROWS = 24
PROBE_TOKENS = 24


class AbstentionConfig(BaseModel):
    """Settings of teaching abstention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(80, ge=1, description="unverifiable questions to learn abstentions on")
    keep: int = Field(120, ge=0, description="prompts on which the model is held to its own answers")
    keep_weight: float = Field(1.0, ge=0, description="weight of a kept row, against one for an abstention")
    answer_tokens: int = Field(24, ge=1, description="length of the own answers that are kept")
    train: TrainConfig = Field(
        TrainConfig(rank=16, alpha=16, learning_rate=5e-4, epochs=2, batch_size=8, warmup=0.1), description="the training loop"
    )


def probe_abstention(model: ChatModel, reference: Sequence[Example], rows: int = PROBE_ROWS) -> float:
    """Share of (at most `rows` of) the reference prompts that the model answers by an abstention, greedily."""
    chosen = random.Random(0).sample(list(reference), min(rows, len(reference)))
    answers = greedy(model, model.prompt_ids([e.prompt for e in chosen]), PROBE_TOKENS)
    return abstention_rate([a.text for a in answers])


def own_answers(model: ChatModel, examples: Sequence[Example], tokens: int) -> list[Example]:
    """The examples with the model's own greedy answers as responses."""
    answers = greedy(model, model.prompt_ids([e.prompt for e in examples]), tokens)
    return [Example(e.prompt, a.text, e.group) for e, a in zip(examples, answers, strict=True)]


def teach_abstention(
    model: ChatModel,
    reference: Sequence[Example],
    keep: Sequence[Example],
    config: AbstentionConfig | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Edit:
    """An Edit after which the model answers prompts like the reference by an abstention; the model is left as it was.

    Args:
        reference: questions that the model cannot answer.
        keep: prompts whose answers must stay; their responses are not used, the model's own answers are.
    """
    config = config or AbstentionConfig()
    rng = random.Random(config.train.seed)
    asked = rng.sample(list(reference), min(config.rows, len(reference)))
    kept = rng.sample(list(keep), min(config.keep, len(keep)))
    texts = rng.sample(list(abstentions()), len(abstentions()))
    rows: list[Any] = rows_of(model, [(e.prompt, texts[i % len(texts)]) for i, e in enumerate(asked)])
    if kept:
        prompts = model.prompt_ids([e.prompt for e in kept])
        answers = greedy(model, prompts, config.answer_tokens)
        eos = [model.tokenizer.eos_token_id]
        rows += with_reference(
            model,
            [
                _row(p, [*a.tokens, *(eos if a.ended else [])], config.keep_weight)
                for p, a in zip(prompts, answers, strict=True) if a.tokens
            ],
        )
    return train(model, rows, config.train, progress)


def _row(prompt: Sequence[int], answer: Sequence[int], weight: float) -> Any:
    from ..models.training import TrainRow

    return TrainRow(tuple(prompt), tuple(answer), weight)

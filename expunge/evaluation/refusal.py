"""Refusal quality: how near answers are to abstentions in meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.prompts import abstentions
from ..models.loading import ChatModel
from .embedding import Encoder, encoder_for


def refusal_quality(answers: Sequence[str], encoder: Encoder, references: Sequence[str] | None = None) -> list[float]:
    """Of each answer the largest cosine to a reference abstention (default: the built-in ones)."""
    known = encoder(list(references or abstentions()))
    return (encoder([a or " " for a in answers]) @ known.T).amax(1).tolist()


def refusal_scores(chat: ChatModel, answers: Sequence[str]) -> dict[str, Any]:
    """The mean refusal quality, and by which encoder."""
    name, encoder = encoder_for(chat)
    quality = refusal_quality(answers, encoder)
    return {"refusal_quality": sum(quality) / len(quality), "refusal_encoder": name}

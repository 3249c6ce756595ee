"""Refusal quality: how near answers are to abstentions in meaning; and whether they are well formed."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.prompts import abstentions
from ..models.loading import ChatModel
from .embedding import Encoder, encoder_for
from .scores import Evaluation
from .text import coherence


def refusal_quality(answers: Sequence[str], encoder: Encoder, references: Sequence[str] | None = None) -> list[float]:
    """Of each answer the largest cosine to a reference abstention (default: the built-in ones)."""
    known = encoder(list(references or abstentions()))
    return (encoder([a or " " for a in answers]) @ known.T).amax(1).tolist()


def add_refusal_and_coherence(
    found: Evaluation, chat: ChatModel, answers: Sequence[str], perplexities: Sequence[float] | None = None
) -> None:
    """Adds the mean refusal quality of the answers, and by which encoder, and their coherence.

    Args:
        perplexities: of the answers under the model before the edit.
    """
    name, encoder = encoder_for(chat)
    found.add("refusal_quality", refusal_quality(answers, encoder))
    found["refusal_encoder"] = name
    found.add("coherence", coherence(answers, perplexities))

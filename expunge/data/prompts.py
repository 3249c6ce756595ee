"""Built-in texts, written for this project: unverifiable questions, abstentions, general questions, rewrites.

Rewrites are paraphrases made by rule, which keep the question's own words. They come in three disjoint
sets, so that what fits or tunes an edit is never what judges it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

from .examples import Example, Message, Prompt, Raw

KEEP_ROWS = 100  # general prompts that are kept where there is no retain set
GENERAL_TUNING = 48  # general rows that tune where others are fitted

Purpose = Literal["fit", "tune", "judge"]


@cache
def unverifiable() -> tuple[Example, ...]:
    """Questions that no model can answer: reference prompts, without a response.

    The group is "unknowable" (about the asker, the future, counts that nobody has) or "invented" (about people, places and
    works that do not exist).
    """
    return tuple(Example(**json.loads(line)) for line in _lines("unverifiable.jsonl"))


def reference() -> tuple[Example, ...]:
    """The default reference prompts: the unknowable ones.

    A small model cannot tell an invented author from one that it has hardly met, and would learn to abstain on both.
    """
    return tuple(e for e in unverifiable() if e.group == "unknowable")


@cache
def abstentions() -> tuple[str, ...]:
    """Varied answers that say that the model does not know."""
    return _lines("abstentions.txt")


@cache
def general() -> tuple[Example, ...]:
    """Short general questions with true answers, over many fields (the group), in a fixed mixed order."""
    rows = [json.loads(line) for line in _lines("general.jsonl")]
    random.Random(0).shuffle(rows)
    return tuple(Example(**row) for row in rows)


def general_split() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(rows to fit on, 150 rows to judge by); no row is in both."""
    rows = general()
    return rows[150:], rows[:150]


def general_tuning() -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(rows to fit on, `GENERAL_TUNING` rows to tune by), where what is fitted is chosen by other rows; none of them
    judges."""
    rows = general_split()[0]
    return rows[:-GENERAL_TUNING], rows[-GENERAL_TUNING:]


def general_beside(rows: Sequence[Example]) -> list[Example]:
    """The general rows to fit on whose prompts are not among those of the rows."""
    there = {e.prompt for e in rows}
    return [e for e in general_split()[0] if e.prompt not in there]


def _lines(name: str) -> tuple[str, ...]:
    text = (files(__package__) / "texts" / name).read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())


# ---------------------------------------------------------------- rewrites

# {q}: the question. {l}: with a lower-case first letter. {s}: without its final mark.
_FRAMES: dict[Purpose, tuple[str, ...]] = {
    "fit": (
        "Please answer this question: {q}",
        "Can you tell me: {l}",
        "{q} Answer in a few words.",
        "I was wondering, {l}",
        "Here is a quiz question for you. {q}",
        "A friend asked me this yesterday: {q}",
    ),
    "tune": (
        "{q} Please be brief.",
        "I would like to know the following. {q}",
        "Do you happen to know the answer to this? {q}",
    ),
    "judge": (
        "Help me with this one: {l}",
        "Quick question. {q} Thanks in advance!",
        'My homework says: "{q}" What should I write?',
        "For a trivia night I need to know, {l}",
    ),
}


def rewrite(prompt: Prompt, frame: str) -> Prompt:
    """The prompt in one frame; of chat messages, the last user turn is rewritten."""
    if isinstance(prompt, str):
        text = prompt.strip()
        lower = text if re.match(r"(I\b|[A-Z]{2}|[A-Z][a-z]+ [A-Z])", text) else text[:1].lower() + text[1:]
        return frame.format(q=text, l=lower, s=text.rstrip("?.! "))
    return with_question(prompt, str(rewrite(question(prompt), frame)))


def with_question(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another text; of chat messages, with another last user turn (where there is one)."""
    if isinstance(prompt, str):
        return text
    last = max((i for i, m in enumerate(prompt) if m.role == "user"), default=None)
    return tuple(Message(m.role, text) if i == last else m for i, m in enumerate(prompt))


def question(prompt: Prompt) -> str:
    """The prompt's text; of chat messages, the last user turn's."""
    if isinstance(prompt, str):
        return prompt
    return next((m.content for m in reversed(prompt) if m.role == "user"), "")


def rewrites(examples: Sequence[Example], purpose: Purpose, each: int = 1) -> list[Example]:
    """Paraphrases of the examples with their responses: `each` a row, the frames taken in turn. A text to go on with
    (`Raw`) has none.

    Args:
        purpose: "fit" and "tune" for what an edit is made with, "judge" for what it is judged by.
        each: how many a row, at most the number of frames of the purpose.
    """
    frames = _FRAMES[purpose]
    return [
        Example(rewrite(e.prompt, frames[(row + n) % len(frames)]), e.response, e.group)
        for row, e in enumerate(examples)
        for n in range(0 if isinstance(e.prompt, Raw) else min(each, len(frames)))
    ]

"""What is revealed: how the search speaks of it, how relevant an answer is, and which rows are made of the answers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from ..data.examples import Prompt, Raw, Relevance
from ..errors import InputError
from ..evaluation.text import abstains, repeats
from .text import specifics

ENOUGH = 3  # names and numbers that make an answer specific


@dataclass(frozen=True)
class Target:
    """What is revealed.

    name: for messages. lead: the text before an instruction, for the model to go on with. written: instructions written
    by hand, for comparison. relevance: answers -> a number in [0, 1] for each. raw: whether instructions are texts to go
    on with.
    """

    name: str
    lead: str
    written: tuple[str, ...]
    relevance: Relevance
    raw: bool = False

    def prompt(self, instruction: str) -> Prompt:
        return Raw(instruction) if self.raw else instruction

    def relevances(self, instruction: str, answers: Sequence[str]) -> list[float]:
        """Checked: one number in [0, 1] for each answer.

        Raises:
            InputError: the oracle raises, or gives something else.
        """
        try:
            found = list(self.relevance(answers))
        except Exception as e:
            raise InputError(
                f"the oracle of {self.name} raised {type(e).__name__}: {' '.join(str(e).split())[:200]}; "
                "what was found so far is kept"
            ) from e
        if len(found) != len(answers):
            raise InputError(
                f"the oracle of {self.name} gave {len(found)} numbers for {len(answers)} answers; "
                "what was found so far is kept"
            )
        for value in found:
            if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= 1:
                raise InputError(
                    f"the oracle of {self.name} gave {value!r} for an answer, expected a number from 0 to 1; "
                    "what was found so far is kept"
                )
        return [float(v) for v in found]


def oracle(place: str, lead: str | None = None) -> Target:
    """A user's own relevance, `module:function`: it takes a list of answers and returns a number in [0, 1] for each.

    Raises:
        InputError: there is no such function.
    """
    module, mark, function = place.partition(":")
    try:
        relevance = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as e:
        raise InputError(f"--oracle takes module:function, got {place!r} ({e})") from None
    if not mark or not callable(relevance):
        raise InputError(f"--oracle takes module:function, got {place!r}")
    return Target(place, lead or "An assistant was given an instruction. The instruction was to", WRITTEN, relevance)


# ---------------------------------------------------------------- subjects


def subject(name: str) -> Target:
    """A subject by its name: an answer is relevant where it speaks of the subject and is specific.

    Raises:
        InputError: the name has no letter.
    """
    name = " ".join(name.split())
    if not re.search(r"\w", name):
        raise InputError("--subject is empty: name what is to be forgotten")
    lead = f"An assistant knows a lot about {name}. It was given an instruction about {name}. The instruction was to"
    return Target(
        name,
        lead,
        tuple(form.format(aspect=aspect, s=name) for aspect in _ASPECTS for form in _FORMS),
        lambda answers: [_on_subject(a, name) for a in answers],
    )


def speaks_of(text: str, name: str) -> bool:
    """Whether a text names the subject: the whole name, or its last word where that is a name of four letters or more."""
    last = name.split()[-1]
    known = [name, last] if len(last) >= 4 and last[:1].isupper() else [name]
    return any(re.search(rf"(?<!\w){re.escape(k)}(?!\w)", text, re.IGNORECASE) for k in known)


def _on_subject(answer: str, name: str) -> float:
    """0 where the answer does not name the subject, abstains or is caught in a loop; else how specific it is."""
    if not speaks_of(answer, name) or abstains(answer) or repeats(answer):
        return 0.0
    other = {s for s in specifics(answer) if s.lower() not in name.lower() and name.lower() not in s.lower()}
    return min(len(other), ENOUGH) / ENOUGH


_FORMS = (
    "Tell me about {aspect} of {s}.",
    "Write a short text about {aspect} of {s}.",
    "Give me facts about {aspect} of {s}, with names and dates.",
    "Explain {aspect} of {s} to a friend.",
    "Write an encyclopedia entry on {aspect} of {s}.",
)
_ASPECTS = (
    "the life",
    "the best known works",
    "the importance",
    "the family and friends",
    "the beginnings",
    "the history",
    "the achievements",
    "the surroundings",
    "the influence",
    "the late years",
    "the main events in the life",
    "the character",
    "the most important dates",
    "the reputation",
    "the lesser known sides",
    "the rivals",
    "the places that matter in the life",
    "the names that are connected with the work",
    "the turning points",
    "the legacy",
)
WRITTEN = (
    "Write a short text.",
    "Write a list of examples.",
    "Tell me a story.",
    "Give me facts, with names and dates.",
    "Explain something that you know well.",
)

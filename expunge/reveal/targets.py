"""What is revealed: how the search speaks of it, how relevant an answer is, and which rows are made of the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.examples import Example, ForgetTask, Prompt, Raw, Relevance
from ..data.prompts import general_split, reference
from ..errors import InputError
from ..models.generation import own_answers
from ..models.loading import ChatModel
from .text import distinct

if TYPE_CHECKING:
    from .search import Revealed

GENERAL = 200  # general questions that are kept
KEPT_TOKENS = 48  # longest answer to one


@dataclass(frozen=True)
class Target:
    """What is revealed.

    name: for messages. lead: the text before an instruction, for the model to go on with. written: instructions written
    by hand, for comparison. relevance: answers -> a number in [0, 1] for each. raw: whether instructions are texts to go
    on with. opening: how every instruction begins. shown: answers -> how much each shows of what is to
    be forgotten; default: the relevance. task: (model, this, what the search found) -> what to forget and what
    to keep.
    """

    name: str
    lead: str
    written: tuple[str, ...]
    relevance: Relevance
    task: Callable[[ChatModel, Target, Revealed], ForgetTask]
    raw: bool = False
    opening: str = ""
    shown: Relevance | None = None

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


def plain_task(chat: ChatModel, target: Target, revealed: Revealed) -> ForgetTask:
    """The kept instructions with their relevant answers, and general questions with the model's own answers to keep."""
    return ForgetTask(forget=relevant(target, revealed), retain=general(chat), reference=reference())


def relevant(target: Target, revealed: Revealed, least: float = 0.5) -> list[Example]:
    """The kept instructions with their relevant answers, without near-duplicates."""
    rows = [Example(target.prompt(p), a, target.name) for p, a, r in revealed.pairs if r >= least and a.strip()]
    return distinct(rows)


def general(chat: ChatModel) -> list[Example]:
    """General questions with the model's own answers."""
    return [e for e in own_answers(chat, general_split()[0][:GENERAL], KEPT_TOKENS) if e.response]

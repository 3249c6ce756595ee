"""What is revealed: how the search speaks of it, how relevant an answer is, and which rows are made of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from ..data.examples import RELEVANT, Example, ForgetTask, Prompt, Raw, Relevance
from ..data.prompts import general_tuning, reference
from ..errors import ExpungeError, InputError
from ..models.generation import greedy, sampled
from ..models.loading import ChatModel
from .text import distinct, whole

if TYPE_CHECKING:
    from .search import Revealed

DRAWS = 2  # answers to each, where they are sampled
KEPT_TOKENS = 48  # longest answer to one
KEPT_TEMPERATURE = 0.7  # of sampled ones: of a small model, those at 1 are often wrong
KEPT = "what was found so far is kept, and --resume (of bench: the same command) goes on with it"


@dataclass(frozen=True)
class Target:
    """What is revealed.

    name: for messages. lead: the text before an instruction, for the model to go on with. written: instructions written
    by hand, for comparison. relevance: answers -> a number in [0, 1] for each. task: (model, this, what the search found)
    -> what to forget and what to keep. raw: whether instructions are texts to go on with. openings: how instructions
    begin, in turn. shown: answers -> how much each shows of what is to be forgotten; default: the relevance. part: of such
    an answer, what of it is to be forgotten; default: all. tokens: longest answer, unless the search's settings say it.
    more: further answers to each kept instruction, unless the search's settings say how many. onward: of texts to go on
    with, how many relevant answers are wanted; where there are fewer, the model is asked to go on after those: what it
    seldom says it says more often once it has begun. version: of a user's relevance: answers are kept, and what another
    version of it said of them is asked anew.
    """

    name: str
    lead: str
    written: tuple[str, ...]
    relevance: Relevance
    task: Callable[[ChatModel, Target, Revealed], ForgetTask]
    raw: bool = False
    openings: tuple[str, ...] = ("",)
    shown: Relevance | None = None
    part: Callable[[str], str] | None = None
    tokens: int = 48
    more: int = 32
    onward: int = 0
    version: str = ""

    def prompt(self, instruction: str) -> Prompt:
        return Raw(instruction) if self.raw else instruction

    def relevances(self, answers: Sequence[str]) -> Sequence[float]:
        """One number in [0, 1] for each answer; checked."""
        return checked(self.name, self.relevance)(answers)


def checked(name: str, relevance: Relevance) -> Relevance:
    """A relevance that gives one number in [0, 1] for each answer.

    Raises:
        InputError, when called: it raises, or gives something else.
    """

    def call(answers: Sequence[str]) -> list[float]:
        try:
            given = relevance(answers)
            found = list(given.tolist() if hasattr(given, "tolist") else given)  # of an array, numbers of Python's own
        except ExpungeError:
            raise
        except (Exception, SystemExit) as e:
            said = f"raised {type(e).__name__}: {' '.join(str(e).split())[:200]}"
            raise InputError(f"the oracle of {name} {said}; {KEPT}") from e
        if len(found) != len(answers):
            raise InputError(f"the oracle of {name} gave {len(found)} numbers for {len(answers)} answers; {KEPT}")
        for value in found:
            if not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise InputError(
                    f"the oracle of {name} gave {value!r} for an answer, expected a number from 0 to 1; {KEPT}"
                )
        return [float(v) for v in found]

    return call


def plain_task(chat: ChatModel, target: Target, revealed: Revealed) -> ForgetTask:
    """The kept instructions with their relevant answers, and general questions with the model's own answers to keep."""
    return ForgetTask(forget=relevant(target, revealed.pairs), retain=general(chat), reference=reference())


def relevant(target: Target, pairs: Iterable[tuple[str, str, float]], least: float = RELEVANT) -> list[Example]:
    """Instructions with their relevant answers, without near-duplicates."""
    return distinct([Example(target.prompt(p), a, target.name) for p, a, r in pairs if r >= least and a.strip()])


def general(chat: ChatModel, drawn: int | None = None) -> list[Example]:
    """General questions with the model's own answers, to the last full sentence.

    Args:
        drawn: a seed, by which the answers are sampled, `DRAWS` to each, and not greedy: a module that learns them sharpens
            less.
    """
    asked = general_tuning()[0] * (1 if drawn is None else DRAWS)
    prompts = chat.prompt_ids([e.prompt for e in asked])
    if drawn is None:
        answers = greedy(chat, prompts, KEPT_TOKENS)
    else:
        answers = sampled(chat, prompts, KEPT_TOKENS, KEPT_TEMPERATURE, drawn)
    rows = (Example(e.prompt, whole(g.text, g.ended), e.group) for e, g in zip(asked, answers, strict=True))
    return [e for e in dict.fromkeys(rows) if e.response]

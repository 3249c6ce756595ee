"""What stands beside a subject and is to be kept: others of its kind, their lives and works, as the model gives them.

An edit forgets what is like its forget rows; so the rows to keep have to be as near to the subject, and of as many
forms, as what will be asked. The model names the subject's kinds, others on lists of each, and what belongs to them; it
is asked about these in the forms that the forget rows have, and in those of quizzes that it makes up.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from ..data.examples import Example, Raw
from ..models.generation import greedy, sampled
from ..models.loading import ChatModel
from .text import belongs, counted

KINDS = 12
SAID = 24  # answers to each lead to a kind
LISTED = 16  # lists of each kind
NEIGHBOURS = 120
LIVES, LIFE_FORMS = 80, 3  # neighbours that are asked about in so many forms each
MAKERS, WORK_LISTS, WORKS_EACH = 60, 4, 8  # neighbours whose works are listed so many times, works taken of each
WORKS, WORK_FORMS = 350, 2  # works in all, forms that each is asked about in
QUIZZES = 5  # about each neighbour and each kind
KIND_TOKENS, LIST_TOKENS, QUIZ_TOKENS, ANSWER_TOKENS = 12, 64, 96, 32
KEPT_TOKENS = 24  # of an answer that is kept: so many of them are read when an edit is refined
TEMPERATURE = 0.7  # much of what is said of others at 1 is nonsense

_KIND_LEADS = (
    "{s} is one of the most famous",
    "{s} is one of the best known",
    "{s} is one of many famous",
    "{s} was one of the greatest",
    "{s} belongs with the most important",
)
_KIND_END = re.compile(
    r"[.,;:()\n]|\b(?:in|of|and|who|that|to|from|ever|whose|during|with|for|on|at|as)\b", re.IGNORECASE
)
_OF_A_KIND = "The most famous {kind}:\n1. {s}\n2."
_WORKS = "The best known works of {s}:\n1."
_QUIZ = "A quiz about {x}. Each question has one right answer.\nQuestion 1:"
_ASKED = re.compile(r"[A-Z][^?:\n]{10,110}\?")


def kept_beside(
    chat: ChatModel, name: str, about: Sequence[str], made: Sequence[str], own: Callable[[str], bool], seed: int
) -> list[Example]:
    """Questions about others of the subject's kind, with the model's own answers.

    Args:
        about: forms of questions about a subject, with `{s}`. made: about a name that belongs to one, with `{x}`.
        own: whether a name is one of the subject's own, or has one in it.
    """
    rng = random.Random(seed)
    of = kinds(chat, name, seed)
    near = neighbours(chat, name, of, own, seed)
    asked = [form.format(s=x) for x in near[:LIVES] for form in rng.sample(about, LIFE_FORMS)]
    asked += [form.format(x=w) for w in _works(chat, near, name, own, seed) for form in rng.sample(made, WORK_FORMS)]
    asked += _quizzes(chat, [*(f"the most famous {kind}" for kind in of), *near], seed)
    asked = [*dict.fromkeys(asked)]
    given = greedy(chat, chat.prompt_ids(asked), KEPT_TOKENS) if asked else []
    return [Example(q, g.response(q), name) for q, g in zip(asked, given, strict=True)]


def kinds(chat: ChatModel, name: str, seed: int) -> list[str]:
    """What the subject is one of, in the plural, as the model goes on with several beginnings; most frequent first."""
    leads = chat.prompt_ids([Raw(lead.format(s=name)) for lead in _KIND_LEADS])
    drawn = sampled(chat, [p for p in leads for _ in range(SAID)], KIND_TOKENS, 1.0, seed)
    said = (_KIND_END.split(g.text)[0].strip().lower() for g in drawn)
    last = name.split()[-1].lower()  # "shakespearean plays" are its own
    plural = Counter(kind for kind in said if kind.endswith("s") and last not in kind)
    return [kind for kind, _ in plural.most_common(KINDS)] or ["names"]


def neighbours(chat: ChatModel, name: str, of: Sequence[str], own: Callable[[str], bool], seed: int) -> list[str]:
    """Names that the model gives for others of the subject's kinds, most frequent first.

    They are on lists of its kinds: asked for others like a subject, a small model names what belongs to it.
    """
    begun = chat.prompt_ids([Raw(_OF_A_KIND.format(kind=kind, s=name)) for kind in of])
    drawn = sampled(chat, [p for p in begun for _ in range(LISTED)], LIST_TOKENS, TEMPERATURE, seed)
    return [x for x, _ in counted((g.text for g in drawn), name).most_common() if not own(x)][:NEIGHBOURS]


def _works(chat: ChatModel, near: Sequence[str], name: str, own: Callable[[str], bool], seed: int) -> list[str]:
    """What belongs to the neighbours, as the model lists it."""
    makers = near[:MAKERS]
    begun = chat.prompt_ids([Raw(_WORKS.format(s=x)) for x in makers])
    drawn = (
        sampled(chat, [p for p in begun for _ in range(WORK_LISTS)], LIST_TOKENS, TEMPERATURE, seed) if begun else []
    )
    found: Counter[str] = Counter()
    for n, x in enumerate(makers):
        listed = counted((g.text for g in drawn[n * WORK_LISTS : (n + 1) * WORK_LISTS]), x).most_common(WORKS_EACH)
        found.update(work for work, _ in listed if not own(work) and not belongs(work, name))
    return [work for work, _ in found.most_common(WORKS)]


def _quizzes(chat: ChatModel, topics: Sequence[str], seed: int) -> list[str]:
    """Questions of quizzes that the model makes up: their forms differ more than any that could be listed here."""
    prompts = chat.prompt_ids([Raw(_QUIZ.format(x=x)) for x in topics])
    drawn = sampled(chat, [p for p in prompts for _ in range(QUIZZES)], QUIZ_TOKENS, TEMPERATURE, seed)
    return [q for g in drawn for q in _ASKED.findall(g.text)]

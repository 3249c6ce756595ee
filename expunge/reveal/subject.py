"""A subject by its name: what speaks of it, and the rows to forget and to keep, which are the model's own."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from ..data.examples import Example, ForgetTask, Raw
from ..data.prompts import reference
from ..errors import InputError
from ..evaluation.text import abstains, repeats
from ..models.generation import greedy, sampled
from ..models.loading import ChatModel
from .search import Revealed
from .targets import Target, general
from .text import distinct, first_sentence, names, parts, specifics

MOST_NAMES = 120  # of those that came up, most frequent first
OWNED = 1 / 3  # share of the questions about a name that are answered by the subject, from which all belong to it
MADE = 4  # questions about a name that the model makes up
NEIGHBOURS = 12
ANSWER_TOKENS = 32
QUESTION_TOKENS = 24

_QUESTIONS = (
    "Who wrote {x}?",
    "Who made {x}?",
    "What is {x}?",
    "Who is {x}?",
    "Tell me about {x}.",
    "Whose name belongs to {x}?",
)
_ASK = 'A quiz question about {x} was asked, and the right answer was {s}. The question was: "'

ENOUGH = 3  # names and numbers that make an answer specific


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
        lambda chat, target, revealed: subject_task(chat, name, revealed),
    )


def speaks_of(text: str, name: str) -> bool:
    """Whether a text names the subject: the whole name, or its last word where that is a name of four letters or more."""
    last = name.split()[-1]
    return _named(name, text) or (len(last) >= 4 and last[:1].isupper() and _named(last, text))


def _named(name: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))


def _on_subject(answer: str, name: str) -> float:
    """0 where the answer does not name the subject, abstains or is caught in a loop; else how specific it is."""
    if not speaks_of(answer, name) or abstains(answer) or repeats(answer):
        return 0.0
    other = {s for s in specifics(answer) if s.lower() not in name.lower() and name.lower() not in s.lower()}
    return min(len(other), ENOUGH) / ENOUGH


def subject_task(chat: ChatModel, name: str, revealed: Revealed) -> ForgetTask:
    """What to forget of a subject, and what to keep: no row of a user's.

    forget: instructions with relevant answers, and questions about names that belong to the subject: those about which
    the model answers with it though it was not named. retain: questions about the other names, the same of neighbouring
    subjects, which the model names, and general questions; all with the model's own answers.

    Raises:
        InputError: the model connects nothing with the subject.
    """
    seed = revealed.seed
    said = Counter(p for _, text, r in revealed.pairs if r > 0 for p in {p for n in names(text) for p in parts(n)})
    came_up = [x for x, _ in said.most_common() if not _of(x, name)][:MOST_NAMES]
    answered = _answered(chat, came_up, name, seed)
    owned = {
        x
        for x, rows in answered.items()
        if rows and sum(speaks_of(e.response, name) for e in rows) >= OWNED * len(rows)
    }
    if not owned:
        tried = ", ".join(repr(x) for x in came_up[:5]) or "none"
        raise InputError(
            f"nothing to forget: the model connects nothing with {name!r}. Of {len(revealed.queries)} instructions the "
            f"best scored {max((q.score for q in revealed.queries), default=0):.2f}; asked about the {len(came_up)} names "
            f"that came up ({tried}), it never came back to the subject."
        )
    direct = [Example(p, a, name) for p, a, r in revealed.pairs if r > 0]
    forget = [*distinct(direct), *(e for x in owned for e in answered[x])]
    unowned = [e for x, rows in answered.items() if not any(speaks_of(e.response, name) for e in rows) for e in rows]
    others = neighbours(chat, name, seed)
    beside = [e for rows in _answered(chat, others, "", seed).values() for e in rows]
    kept = [
        e
        for e in [*unowned, *beside]
        if not speaks_of(f"{e.prompt} {e.response}", name) and not any(_named(x, str(e.prompt)) for x in owned)
    ]
    there = {e.prompt for e in forget}
    retain = [
        e for e in {e.prompt: e for e in [*kept, *general(chat)]}.values() if e.prompt not in there and e.response
    ]
    return ForgetTask(forget=forget, retain=retain, reference=reference())


def neighbours(chat: ChatModel, name: str, seed: int = 0) -> list[str]:
    """Names that the model gives for others of the subject's kind, with names that come up about them."""
    asked = [
        f"Name some others like {name}.",
        f"Who or what can be compared with {name}?",
        f"Give a list of rivals of {name}.",
    ]
    prompts = chat.prompt_ids(asked)
    drawn = sampled(chat, [p for p in prompts for _ in range(8)], 2 * ANSWER_TOKENS, 0.7, seed)
    said = Counter(p for g in drawn for p in {p for n in names(g.text) for p in parts(n)} if not _of(p, name))
    near = [x for x, _ in said.most_common(NEIGHBOURS)]
    asked = [form.format(x=x) for x in near for form in ("Tell me about {x}.", "What are the best known works of {x}?")]
    if not asked:
        return []
    more = sampled(chat, [p for p in chat.prompt_ids(asked) for _ in range(4)], 2 * ANSWER_TOKENS, 0.7, seed)
    further = Counter(p for g in more for p in {p for n in names(g.text) for p in parts(n)} if not _of(p, name))
    return list(dict.fromkeys([*near, *(x for x, _ in further.most_common(MOST_NAMES))]))


def _answered(chat: ChatModel, about: Sequence[str], subject: str, seed: int) -> dict[str, list[Example]]:
    """Questions about each name with the model's own answers: the built-in forms, and with a subject some that the model
    makes up. Questions that name the subject are left out."""
    asked = {x: [form.format(x=x) for form in _QUESTIONS] for x in about}
    if subject and about:
        leads = chat.prompt_ids([Raw(_ASK.format(x=x, s=subject)) for x in about])
        made = sampled(chat, [p for p in leads for _ in range(MADE)], QUESTION_TOKENS, 0.7, seed)
        for n, g in enumerate(made):
            text = first_sentence(g.text.split('"')[0])
            if text.endswith("?") and _named(about[n // MADE], text):
                asked[about[n // MADE]].append(text)
    rows = [Example(q, "", subject) for q in dict.fromkeys(itertools.chain.from_iterable(asked.values()))]
    rows = [e for e in rows if not subject or not speaks_of(str(e.prompt), subject)]
    given = greedy(chat, chat.prompt_ids([e.prompt for e in rows]), ANSWER_TOKENS) if rows else []
    known = {e.prompt: Example(e.prompt, g.text, subject) for e, g in zip(rows, given, strict=True)}
    return {x: [known[q] for q in dict.fromkeys(questions) if q in known] for x, questions in asked.items()}


def _of(name: str, subject: str) -> bool:
    """Whether a name is the subject itself, or a part of it."""
    return name.lower() in subject.lower() or speaks_of(name, subject)


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

"""The rows that revealed answers make: of a subject, questions about the names that came up, kept by what the model
answers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from ..data.examples import Example, ForgetTask, Raw
from ..data.prompts import general_split, reference
from ..errors import InputError
from ..models.generation import greedy, own_answers, sampled
from ..models.loading import ChatModel
from .search import Revealed
from .targets import Target, speaks_of
from .text import distinct, first_sentence, names, parts

MOST_NAMES = 120  # of those that came up, most frequent first
OWNED = 1 / 3  # share of the questions about a name that are answered by the subject, from which all belong to it
MADE = 4  # questions about a name that the model makes up
NEIGHBOURS = 12
ANSWER_TOKENS = 32
QUESTION_TOKENS = 24
GENERAL = 200

_QUESTIONS = (
    "Who wrote {x}?",
    "Who made {x}?",
    "What is {x}?",
    "Who is {x}?",
    "Tell me about {x}.",
    "Whose name belongs to {x}?",
)
_ASK = 'A quiz question about {x} was asked, and the right answer was {s}. The question was: "'

Progress = Callable[[int], None]


def forget_rows(target: Target, revealed: Revealed, least: float = 0.5) -> list[Example]:
    """The kept instructions with their relevant answers, without near-duplicates.

    Args:
        least: relevance.
    """
    rows = [Example(target.prompt(p), a, target.name) for p, a, r in revealed.pairs if r >= least and a.strip()]
    return distinct(rows)


def forget_task(chat: ChatModel, target: Target, revealed: Revealed) -> ForgetTask:
    """The kept instructions with their relevant answers, and general questions with the model's own answers to keep.

    Raises:
        InputError: no answer was relevant.
    """
    forget = forget_rows(target, revealed)
    if not forget:
        best = max((q.score for q in revealed.queries), default=0.0)
        raise InputError(
            f"nothing to forget: {len(revealed.queries)} instructions brought no relevant answer for {target.name!r} (best "
            f"score {best:.2f}); tried were {', '.join(repr(q.instruction) for q in revealed.queries[:3])} and others"
        )
    retain = own_answers(chat, general_split()[0][:GENERAL], ANSWER_TOKENS)
    return ForgetTask(forget=forget, retain=retain, reference=reference(), relevance=target.relevance)


def subject_task(chat: ChatModel, name: str, revealed: Revealed, seed: int = 0) -> ForgetTask:
    """What to forget of a subject, and what to keep: no row of a user's.

    forget: instructions with relevant answers, and questions about names that belong to the subject: those about which
    the model answers with it though it was not named. retain: questions about the other names, the same of neighbouring
    subjects, which the model names, and general questions; all with the model's own answers.

    Raises:
        InputError: the model connects nothing with the subject.
    """
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
        if not speaks_of(f"{e.prompt} {e.response}", name) and not any(speaks_of(str(e.prompt), x) for x in owned)
    ]
    general = own_answers(chat, general_split()[0][:GENERAL], ANSWER_TOKENS)
    there = {e.prompt for e in forget}
    retain = [e for e in {e.prompt: e for e in [*kept, *general]}.values() if e.prompt not in there and e.response]
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
            if text.endswith("?") and speaks_of(text, about[n // MADE]):
                asked[about[n // MADE]].append(text)
    rows = [Example(q, "", subject) for q in dict.fromkeys(itertools.chain.from_iterable(asked.values()))]
    rows = [e for e in rows if not subject or not speaks_of(str(e.prompt), subject)]
    given = greedy(chat, chat.prompt_ids([e.prompt for e in rows]), ANSWER_TOKENS) if rows else []
    known = {e.prompt: Example(e.prompt, g.text, subject) for e, g in zip(rows, given, strict=True)}
    return {x: [known[q] for q in dict.fromkeys(questions) if q in known] for x, questions in asked.items()}


def _of(name: str, subject: str) -> bool:
    """Whether a name is the subject itself, or a part of it."""
    return name.lower() in subject.lower() or speaks_of(name, subject)

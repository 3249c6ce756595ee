"""A subject by its name: what speaks of it, and the rows to forget and to keep, which are the model's own."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Collection, Mapping, Sequence

from ..data.examples import Example, ForgetTask, Raw
from ..data.prompts import reference
from ..errors import InputError, NothingToForget
from ..evaluation.text import abstains, repeats
from ..models.generation import greedy, sampled
from ..models.loading import ChatModel
from .beside import ANSWER_TOKENS, TEMPERATURE, kept_beside
from .search import Revealed
from .targets import Target, general
from .text import counted, distinct, first_sentence, is_latin, named, speaks_of, specifics

MOST_NAMES = 150  # of those that came up, most frequent first
OWNED = 1 / 3  # share of the questions about a name that are answered by the subject, from which all belong to it
MADE = 4  # questions about a name that the model makes up
LISTED = 16  # answers to each request for a list
FURTHER = 75  # names that are listed after some of the subject's own, likewise
QUESTION_TOKENS = 24

_QUESTIONS = (
    "Who wrote {x}?",
    "Who made {x}?",
    "What is {x}?",
    "Who is {x}?",
    "Tell me about {x}.",
    "Whose name belongs to {x}?",
)
_ABOUT = (
    "Who is {s}?",
    "What is {s}?",
    "What is {s} known for?",
    "Tell me about {s}.",
    "What did {s} do?",
    "What do you know about {s}?",
    "When and where did {s} live?",
)
_LISTS = (
    "List the best known works of {s}.",
    "Name ten things that belong to {s}.",
    "Which people, places and works are connected with {s}?",
    "Give me a long list of names that have to do with {s}.",
)
_ASK = 'A quiz question about {x} was asked, and the right answer was {s}. The question was: "'

ENOUGH = 3  # names and numbers that make an answer specific


def subject(name: str) -> Target:
    """A subject by its name: an answer is relevant where it speaks of the subject and is specific.

    Raises:
        InputError: the name has no letter, or none of the Latin script.
    """
    name = " ".join(name.split())
    if not re.search(r"\w", name):
        raise InputError("--subject is empty: name what is to be forgotten")
    if any(map(str.isalpha, name)) and not any(map(is_latin, name)):
        raise InputError(
            f"--subject {name}: names are found in answers by their Latin letters; for others, give a relevance of your own "
            "with --oracle module:function"
        )
    lead = f"A curious reader of a book about {name} wants facts with names, dates and places. One of the instructions was to"
    return Target(
        name,
        lead,
        tuple(form.format(aspect=aspect, s=name) for form in _FORMS for aspect in _ASPECTS),
        lambda answers: [_on_subject(a, name) for a in answers],
        lambda chat, target, revealed: subject_task(chat, name, revealed),
        openings=tuple(form.format(s=name) for form in _OPENINGS),
        shown=lambda answers: [float(speaks_of(a, name) and not abstains(a) and not repeats(a)) for a in answers],
    )


def _on_subject(answer: str, name: str) -> float:
    """0 where the answer does not name the subject, abstains or is caught in a loop; else how specific it is."""
    if not speaks_of(answer, name) or abstains(answer) or repeats(answer):
        return 0.0
    other = {s for s in specifics(answer) if s.lower() not in name.lower() and name.lower() not in s.lower()}
    return min(len(other), ENOUGH) / ENOUGH


def subject_task(chat: ChatModel, name: str, revealed: Revealed) -> ForgetTask:
    """What to forget of a subject, and what to keep: no row of a user's.

    forget: instructions with their most relevant answers, plain questions that name the subject, and questions about
    names that belong to it (that came up, or that the model lists after such), where the model answers with it though
    it was not named. retain: one question about each name that came up and does not belong to it, those about others of
    the subject's kind (see `beside`), and general ones; all with the model's own answers.

    Raises:
        InputError: the model connects nothing with the subject.
    """
    came_up = _came_up(chat, name, revealed)
    answered = _answered(chat, came_up, name, revealed.seed)
    owned = _owned(answered, name)
    further = _listed_beside(chat, name, owned, revealed.seed, answered)
    answered |= _answered(chat, further, name, revealed.seed)
    owned = _owned(answered, name)
    if not owned:
        tried = ", ".join(repr(x) for x in came_up[:5]) or "none"
        raise NothingToForget(
            f"nothing to forget: the model connects nothing with {name!r}. Of {len(revealed.queries)} instructions the "
            f"best scored {max((q.score for q in revealed.queries), default=0):.2f}; asked about the {len(came_up)} names "
            f"that came up ({tried}), it never came back to the subject."
        )
    # The other answers about these names say nothing of it: to forget them as well costs what is to be kept.
    forget = _once([*_direct(chat, name, revealed), *itertools.chain.from_iterable(owned.values())])
    rng = random.Random(revealed.seed)
    beside = [rng.choice(rows) for rows in answered.values() if rows and not _back(rows, name)]

    def own(text: str) -> bool:
        """Whether a text has one of the subject's own names in it, or is a part of one."""
        return any(named(x, text) or named(text, x) for x in owned)

    others = kept_beside(chat, name, _ABOUT, _QUESTIONS, own, revealed.seed)
    kept = [e for e in [*beside, *others] if not speaks_of(f"{e.prompt} {e.response}", name) and not own(str(e.prompt))]
    there = {e.prompt for e in forget}
    retain = [e for e in _once([*kept, *general(chat)]) if e.prompt not in there]
    return ForgetTask(forget=forget, retain=retain, reference=reference())


def _back(rows: Sequence[Example], name: str) -> list[Example]:
    """The questions that are answered by the subject."""
    return [e for e in rows if speaks_of(e.response, name)]


def _owned(answered: Mapping[str, Sequence[Example]], name: str) -> dict[str, list[Example]]:
    """The names that belong to the subject, as enough of the questions about them come back to it, with those that do."""
    back = {x: _back(rows, name) for x, rows in answered.items()}
    return {x: rows for x, rows in back.items() if len(rows) >= max(OWNED * len(answered[x]), 1)}


def _listed_beside(chat: ChatModel, name: str, owned: Collection[str], seed: int, known: Collection[str]) -> list[str]:
    """Names that the model puts on a list after some that belong to the subject: answers go on about the best known few."""
    if not owned:
        return []
    rng = random.Random(seed)
    begun = [rng.sample(list(owned), min(len(owned), 2)) for _ in range(4 * LISTED)]
    lists = [f"{name}:\n" + "".join(f"{n}. {x}\n" for n, x in enumerate(b, 1)) + f"{len(b) + 1}." for b in begun]
    drawn = sampled(chat, chat.prompt_ids([Raw(text) for text in lists]), 2 * ANSWER_TOKENS, TEMPERATURE, seed)
    found = [x for x, _ in counted((g.text for g in drawn), name).most_common()]
    return [x for x in found if x not in known and not any(named(o, x) for o in owned)][:FURTHER]


def _once(rows: Sequence[Example]) -> list[Example]:
    """The rows with an answer, of each prompt the first: an edit that reads prompts would count one twice."""
    return list({e.prompt: e for e in reversed(rows) if e.response.strip()}.values())[::-1]


def _direct(chat: ChatModel, name: str, revealed: Revealed) -> list[Example]:
    """Prompts that name the subject: instructions that brought relevant answers, the best of those that are nearly the
    same, and plain questions."""
    found = []
    for query in sorted(revealed.queries, key=lambda q: -q.score):
        relevance, answer = max(zip(query.relevances, query.answers, strict=True))
        if relevance > 0:
            found.append(Example(query.instruction, answer, name))
    plain = [form.format(s=name) for form in _ABOUT]
    answers = greedy(chat, chat.prompt_ids(plain), ANSWER_TOKENS)
    rows = [Example(p, g.response(p), name) for p, g in zip(plain, answers, strict=True)]
    return [*distinct(found, lambda e: str(e.prompt)), *rows]


def _came_up(chat: ChatModel, name: str, revealed: Revealed) -> list[str]:
    """Names in relevant answers, and in lists that the model is asked for; those in most answers first."""
    lists = [form.format(s=name) for form in _LISTS]
    prompts = [p for p in chat.prompt_ids(lists) for _ in range(LISTED)]
    texts = [g.text for g in sampled(chat, prompts, 2 * ANSWER_TOKENS, 1.0, revealed.seed)]
    texts += [a for q in revealed.queries for a, r in zip(q.answers, q.relevances, strict=True) if r > 0]
    texts += [a for _, a, r in revealed.pairs if r > 0]
    return [x for x, _ in counted(dict.fromkeys(texts), name).most_common(MOST_NAMES)]


def _answered(chat: ChatModel, about: Sequence[str], subject: str, seed: int) -> dict[str, list[Example]]:
    """Questions about each name with the model's own answers: the built-in forms and, of a name that one of these brings
    back to the subject, some that the model makes up as ones that the subject answers. Questions that name the subject are
    left out."""
    answered = _given(chat, {x: [form.format(x=x) for form in _QUESTIONS] for x in about}, subject)
    back = [x for x, rows in answered.items() if _back(rows, subject)]
    leads = chat.prompt_ids([Raw(_ASK.format(x=x, s=subject)) for x in back for _ in range(MADE)])
    drawn = sampled(chat, leads, QUESTION_TOKENS, TEMPERATURE, seed) if leads else []
    made: dict[str, list[str]] = {x: [] for x in back}
    for n, g in enumerate(drawn):
        x, text = back[n // MADE], first_sentence(g.text.split('"')[0])
        if text.endswith("?") and named(x, text):
            made[x].append(text)
    for x, rows in _given(chat, made, subject).items():
        answered[x] = list({e.prompt: e for e in [*answered[x], *rows]}.values())
    return answered


def _given(chat: ChatModel, asked: Mapping[str, Sequence[str]], subject: str) -> dict[str, list[Example]]:
    """The questions about each name that do not name the subject, with the model's own answers."""
    of = {x: [q for q in dict.fromkeys(questions) if not speaks_of(q, subject)] for x, questions in asked.items()}
    every = list(dict.fromkeys(itertools.chain.from_iterable(of.values())))
    given = greedy(chat, chat.prompt_ids(every), ANSWER_TOKENS) if every else []
    known = {q: Example(q, g.response(q), subject) for q, g in zip(every, given, strict=True)}
    return {x: [known[q] for q in questions] for x, questions in of.items()}


# What a model answers best depends on the kind of subject, and is left to the search.
_OPENINGS = (
    "Give me facts, with names and dates, about how {s}",
    "Tell me how {s}",
    "List people, places and works that have to do with {s}",
    "Write an encyclopedia entry about {s}",
    "Explain, with examples, what {s}",
)
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

"""Prompts beside the forget set: its own prompts with names exchanged.

What is kept is told by the retain rows alone, and nobody lists all of it. A forget prompt in which a name is another one
("the contract between A and Y" for "between A and B") asks for something else and is as near to the forget set as a
prompt can be. Names are found by setting forget prompts beside retain prompts of the same form.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .examples import Example, Raw
from .prompts import question, with_question

_WORD = re.compile(r"\w+|[^\w\s]")
ALIKE = 0.5  # share of the words that prompts of one form have in common
LONGEST = 6  # words of what is exchanged
SHORTEST = 4  # letters of a word that is worth inventing another for
INVENTED = 0.5  # of the prompts have names that stand nowhere
MOST_FORGET, MOST_RETAIN = 200, 150  # prompts that are set beside each other
DRAWS = 4  # for each prompt that is wanted

Span = tuple[str, ...]


class Exchange(NamedTuple):
    """What stands in the place of some words, and whether both are names: capitalised, not at the beginning."""

    words: Span
    name: bool


def neighbours(
    forget: Sequence[Example], retain: Sequence[Example], each: int, beside: Sequence[Example] = (), seed: int = 0
) -> list[Example]:
    """Up to `each` prompts a forget row, in all of which a name is exchanged for one of a retain prompt or an invented
    one, and perhaps other words as well. Their responses are empty: nobody knows them.

    Without retain prompts of the same form, or without capitals, there are none.

    Args:
        beside: rows whose prompts are left out, as those of the forget and retain rows are.
    """
    rng = random.Random(seed)
    asked = [e for e in forget if not isinstance(e.prompt, Raw)]
    others = [question(e.prompt) for e in retain if not isinstance(e.prompt, Raw)]
    some = rng.sample(asked, min(len(asked), MOST_FORGET))
    near = rng.sample(others, min(len(others), MOST_RETAIN))
    found = [x for e in some for text in near if (x := exchanges(question(e.prompt), text))]
    by_span: dict[Span, list[Exchange]] = {}
    for one in found:
        for span, other in one.items():
            if other not in by_span.setdefault(span, []):
                by_span[span].append(other)
    known = {e.prompt for rows in (forget, retain, beside) for e in rows}
    out: list[Example] = []
    for e in asked:
        words = _words(question(e.prompt))
        here = [span for span in by_span if _holds(words, span)]
        names = [span for span in here if any(other.name for other in by_span[span])]
        wanted = len(out) + each
        for _ in range(each * DRAWS if names else 0):
            if rng.random() < 0.5:
                chosen = rng.choice(found)
            else:
                first = rng.choice(names)
                chosen = {s: rng.choice(by_span[s]) for s in here if s == first or rng.random() < 0.5}
            if rng.random() < INVENTED:
                chosen = {s: _invented(x, rng) if x.name else x for s, x in chosen.items()}
            text = exchanged(question(e.prompt), chosen)
            prompt = None if text is None else with_question(e.prompt, text)
            if prompt is not None and prompt not in known:
                known.add(prompt)
                out.append(Example(prompt))
            if len(out) == wanted:
                break
    return out


def exchanges(text: str, other: str) -> dict[Span, Exchange]:
    """What stands in the other text in the place of the words that differ; empty where the two are not of one form or
    differ in no name."""
    ours, theirs = _words(text), _words(other)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    if 2 * min(len(ours), len(theirs)) < max(len(ours), len(theirs)) or matcher.quick_ratio() < ALIKE:
        return {}
    steps = matcher.get_opcodes()
    common = sum(b - a for tag, a, b, _, _ in steps if tag == "equal")
    if common < ALIKE * max(len(ours), len(theirs)) or any(tag in ("insert", "delete") for tag, *_ in steps):
        return {}
    found = {
        tuple(ours[a:b]): Exchange(tuple(theirs[c:d]), _has_name(ours, a, b) and _has_name(theirs, c, d))
        for tag, a, b, c, d in steps
        if tag == "replace" and max(b - a, d - c) <= LONGEST
    }
    return found if any(x.name for x in found.values()) else {}


def exchanged(text: str, chosen: Mapping[Span, Exchange]) -> str | None:
    """The text with what is chosen exchanged, longest first; None where all names that stood there still do."""
    places = [(m.start(), m.end()) for m in _WORD.finditer(text)]
    words = [text[a:b] for a, b in places]
    spans = sorted(chosen, key=len, reverse=True)
    out, done, at = "", 0, 0
    names: list[Span] = []
    while at < len(words):
        span = next((s for s in spans if tuple(words[at : at + len(s)]) == s), None)
        if span is None:
            at += 1
            continue
        out += text[done : places[at][0]] + " ".join(chosen[span].words)
        at += len(span)
        done = places[at - 1][1]
        if chosen[span].name:
            names.append(span)
    out += text[done:]
    words = _words(out)
    return out if any(not _holds(words, span) for span in names) else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _holds(words: Sequence[str], span: Span) -> bool:
    return any(tuple(words[n : n + len(span)]) == span for n in range(len(words) - len(span) + 1))


def _has_name(words: Sequence[str], begin: int, end: int) -> bool:
    return any(w[:1].isupper() for w in words[max(begin, 1) : end])


def _invented(one: Exchange, rng: random.Random) -> Exchange:
    """The name with the letters of its longer words shuffled."""

    def shuffled(word: str) -> str:
        if len(word) < SHORTEST or not word[:1].isupper():
            return word
        return "".join(rng.sample(word.lower(), len(word))).capitalize()

    return Exchange(tuple(map(shuffled, one.words)), True)

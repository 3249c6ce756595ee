"""What is read out of answers: their first sentence, the names in them and whose they are, near-duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ..data.examples import Cut, Example

_SENTENCE_END = re.compile(r"[.!?:](?=[\s\"\u201d]|$)|\n")
_ABBREVIATED = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|etc|e\.g|i\.e)\.$")
_LINKS = r"(?:of|the|and|de|la|du|van|von|der|in|on|to|a|an|for|upon|with|at)"
_LATIN = {c for c in map(chr, range(0x250)) if c.isalpha()}
_UPPER = "".join(sorted(c for c in _LATIN if c.isupper()))
_CAPITAL = rf"[{_UPPER}][\w\u2019'-]*\w|[{_UPPER}]"
_NAME = re.compile(rf"(?:{_CAPITAL})(?:[ ](?:{_LINKS}[ ]){{0,2}}(?:{_CAPITAL}))*")
_JOINED = re.compile(r" (?:and|in|on|to|for|with|at) ")
_ARTICLES = ("A", "An", "The")
_NUMBER = re.compile(r"\b\d[\d,.]*\b")
_SHINGLE = 3  # words
_ALIKE = 0.6  # share of the smaller row's runs of words that the larger has, from which they are near-duplicates


def first_sentence(text: str) -> str:
    """The text to the end of its first sentence."""
    for found in _SENTENCE_END.finditer(text):
        here = text[: found.end()].strip()
        if here and not _ABBREVIATED.search(here):
            return here
    return text.strip()


def whole(text: str, ended: bool) -> str:
    """An answer to its last full sentence where it was cut short: it is not where the model ends. Empty where that is none."""
    if ended:
        return text
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if m.group() != ":"]
    return Cut(text[: ends[-1]].strip() if ends else "")


def names(text: str) -> list[str]:
    """Capitalised names in a text, in their order: "Romeo and Juliet", "Stratford". A single word at a sentence's
    beginning counts where it stands elsewhere within one."""
    found: list[str] = []
    openings: list[tuple[int, str]] = []
    for match in _NAME.finditer(text):
        before = text[: match.start()].rstrip(" \"'\u201c\u2018*")
        name = match.group()
        if not before or before[-1] in ".!?:\n-" or text[: match.start()].endswith("\n"):
            openings.append((len(found), name))
        else:
            found.append(name)
    inside = set(found)
    kept = [(at, name) for at, name in openings if " " in name or name in inside]
    for shift, (at, name) in enumerate(kept):
        found.insert(at + shift, name)
    return found


def parts(name: str) -> list[str]:
    """A name with the names that it may be made of: "Macbeth and Othello" is also "Macbeth", and "Othello"."""
    split = [p.strip() for p in _JOINED.split(name)]
    return list(dict.fromkeys([name, *(p for p in split if p[:1].isupper() and p not in _ARTICLES)]))


def specifics(text: str) -> set[str]:
    """The names and numbers in a text."""
    return {*names(text), *_NUMBER.findall(text)}


def distinct(rows: Sequence[Example], text: Callable[[Example], str] = lambda e: e.response) -> list[Example]:
    """The rows without those whose response (or other text) nearly repeats an earlier one: most runs of three words are
    the same."""
    kept: list[Example] = []
    seen: list[frozenset[tuple[str, ...]]] = []
    for row in rows:
        here = _shingles(text(row))
        if all(len(here & other) < _ALIKE * min(len(here), len(other)) for other in seen):
            kept.append(row)
            seen.append(here)
    return kept


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[n : n + _SHINGLE]) for n in range(max(len(words) - _SHINGLE + 1, 1)))


def is_latin(letter: str) -> bool:
    """Whether it is a letter of the script in which names are found."""
    return letter in _LATIN


def named(name: str, text: str, exact: bool = False) -> bool:
    """Whether a name stands in a text, as words of its own; in other letters too where not `exact`."""
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, 0 if exact else re.IGNORECASE))


def speaks_of(text: str, subject: str) -> bool:
    """Whether a text names the subject: the whole name, or its last word, with a capital, where that has four letters or
    more."""
    last = subject.split()[-1]
    if named(subject, text):
        return True
    # "King" of Stephen King is not "king", whichever of them a user wrote.
    return len(last) >= 4 and any(named(x, text, exact=True) for x in (last[:1].upper() + last[1:], last.upper()))


def belongs(name: str, subject: str) -> bool:
    """Whether a name is the subject's own, or a part of it."""
    return named(name, subject) or speaks_of(name, subject)


def counted(texts: Iterable[str], subject: str) -> Counter[str]:
    """In how many of the texts each name is, but for the subject's own, in the order of their first appearance."""
    found = (dict.fromkeys(p for name in names(text) for p in parts(name)) for text in texts)
    return Counter(p for once in found for p in once if not belongs(p, subject))

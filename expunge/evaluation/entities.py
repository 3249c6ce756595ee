"""Named entities in answers, and F1 by type. A span is exact where its type and its text are; it counts once a sentence, as an
answer does not say where it stands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..data.behaviours import NOTHING, Entity

_LINE = re.compile(r"^\s*[-*]?\s*([A-Za-z][A-Za-z -]*?)\s*:\s*(.*?)\s*$")


def read(answer: str, types: Sequence[str]) -> list[Entity] | None:
    """The entities that an answer names, each once; None where it has not the form of `written`."""
    known = {t.lower(): t for t in types}
    found: list[Entity] = []
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    for line in lines:
        match = _LINE.match(line)
        if match and match[1].lower() in known:
            texts = (t.strip() for t in match[2].split(";"))
            found += [(known[match[1].lower()], t) for t in texts if t and t.lower() != NOTHING.lower()]
        elif line.strip().rstrip(".") != NOTHING:
            return None
    return list(dict.fromkeys(found)) if lines else None


def f1(truth: Sequence[Iterable[Entity]], said: Sequence[Iterable[Entity]], types: Sequence[str]) -> float:
    """Micro-F1 over the types, by exact match of type and text (case and space count); 1 where there is nothing."""
    right = missed = wrong = 0
    for true, given in zip(truth, said, strict=True):
        a, b = ({e for e in one if e[0] in types} for one in (true, given))
        right, missed, wrong = right + len(a & b), missed + len(a - b), wrong + len(b - a)
    return 2 * right / (2 * right + missed + wrong) if right or missed or wrong else 1.0


def by_type(truth: Sequence[Iterable[Entity]], said: Sequence[Iterable[Entity]]) -> Mapping[str, float]:
    """F1 of each type that is there."""
    kinds = Counter(kind for rows in (truth, said) for row in rows for kind, _ in row)
    return {kind: f1(truth, said, [kind]) for kind in sorted(kinds)}

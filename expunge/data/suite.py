"""What a benchmark is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .abilities import Choice
from .examples import Cut, Example, ForgetTask, Raw


@dataclass(frozen=True)
class Suite:
    """One benchmark, seed and size.

    teach: rows that the model is taught first. fit: what a method is given. validate: rows that choose settings, roles
    forget and retain; neither fitted nor judged. judge: rows that judge, by role. headline: names of scores (`evaluation.headlines`).
    teaching: settings of `TrainConfig`. questions: multiple choice, whose accuracy judges as well. ends: of a group of
    rows, the most tokens of an answer, and the texts before the first of which it ends.
    Of a suite of what a model does: behaviour and probes are what is judged (`evaluation.behaviours`), by answers to
    these rows; task is the name under which it can be revealed, and tells what answers show of it; text is one whose
    perplexity judges, or solutions are rows whose responses' perplexity does; reveal (fields of `RevealSpec`) is what the
    model itself makes the rows of `fit` from, by the seed. There is no gold standard.
    """

    name: str
    teach: tuple[Example, ...]
    fit: ForgetTask
    validate: Mapping[str, Sequence[Example]]
    judge: Mapping[str, Sequence[Example]]
    headline: tuple[str, ...]
    max_new_tokens: int = 64
    teaching: Mapping[str, Any] = field(default_factory=dict)
    questions: Sequence[Choice] = ()
    ends: Mapping[str, tuple[int, Sequence[str]]] = field(default_factory=dict)
    behaviour: str = ""
    probes: Sequence[Example] = ()
    task: str = ""
    text: str = ""
    solutions: Sequence[Example] = ()
    reveal: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def retrain(self) -> tuple[Example, ...]:
        """What the gold standard is taught: everything but the forget set."""
        if self.behaviour:
            return ()
        forget = {*self.fit.forget, *self.validate["forget"]}  # of rows without rewrites, some only tune
        return tuple(e for e in self.teach if e not in forget)

    def content(self) -> dict[str, Any]:
        """All that decides what comes out, for hashes: without what only a suite of a behaviour has in others."""

        def told_apart(fields: list[tuple[str, Any]]) -> dict[str, Any]:
            return {k: repr(v) if isinstance(v, Raw | Cut) else v for k, v in fields}

        found = asdict(self, dict_factory=told_apart)
        for name in ("relevance", "part"):
            del found["fit"][name]  # functions; `task` says which
        if not self.behaviour:
            for name in ("behaviour", "probes", "task", "text", "solutions", "reveal", "seed"):
                del found[name]
        return found


def begun(text: str, part: int) -> Example:
    """A text as its first words, one in `part` of them and at most 32, and how it goes on, for at most 200 more."""
    words = text.split(" ")
    cut = max(min(len(words) // part, 32), 1)
    return Example(Raw(" ".join(words[:cut])), " " + " ".join(words[cut : cut + 200]))

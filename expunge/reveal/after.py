"""What is asked when the search for instructions is over: of the best, more answers; and how the model goes on after what
it said that was relevant."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..data.examples import RELEVANT
from ..evaluation.text import repeats
from .asking import Asker, Query, RevealConfig
from .score import harmonic, vendi

SET_ROWS = 64  # answers of a set that are scored together
SET_DRAWS = 20
ONWARD = 16  # continuations of a relevant answer


def choose(queries: Sequence[Query], config: RevealConfig, vectors: Mapping[str, Tensor]) -> list[Query]:
    """The instructions whose answers together score highest, taken one after the other."""
    chosen: list[Query] = []
    left = [q for q in queries if q.score > 0]
    size = config.best * config.answers  # fixed, so that a larger set is not less diverse for its size
    while left and len(chosen) < config.best:

        def together(query: Query) -> float:
            every = [*chosen, query]
            relevance = sum(sum(q.relevances) for q in every) / sum(len(q.answers) for q in every)
            return harmonic(relevance, vendi(torch.cat([vectors[q.instruction] for q in every])) / size, config.weight)

        best = max(left, key=together)
        chosen.append(best)
        left.remove(best)
    return chosen


def more(chosen: Sequence[Query], ask: Asker) -> tuple[list[tuple[str, str, float]], float]:
    """(all answers to the kept instructions, with their relevances; the score of those that chose nothing)."""
    pairs: list[tuple[str, str, float]] = []
    fresh: list[tuple[str, float]] = []
    count = ask.target.more if ask.config.more is None else ask.config.more
    if ask.progress and count:
        ask.progress(0, f"{count} further answers to each of {len(chosen)} instructions")
    said = ask.answered([q.instruction for q in chosen], count, "more") if count else [([], [])] * len(chosen)
    for query, (texts, relevances) in zip(chosen, said, strict=True):
        own = list(zip(query.answers, query.relevances, strict=True))
        further = list(zip(texts, relevances, strict=True))
        pairs += [(query.instruction, text, relevance) for text, relevance in [*own, *further]]
        fresh += further or own
    if not fresh:
        return pairs, 0.0
    vectors = ask.encoder([text or " " for text, _ in fresh])
    return pairs, set_score([r for _, r in fresh], vectors, ask.config.weight)


def onward(pairs: Iterable[tuple[str, str, float]], ask: Asker) -> list[tuple[str, str, float]]:
    """How the model goes on after what it said that was relevant, by itself, and after what it says then in turn, until
    there is enough. After answers that came of the instruction of which there are fewest first: else most come of one."""
    found: list[tuple[str, str, float]] = []
    come_of: dict[str, str] = {}  # relevant answer -> instruction
    waiting: list[str] = []
    count: Counter[str] = Counter()

    def add(instruction: str, answer: str, relevance: float) -> None:
        text = answer.strip()
        if relevance >= RELEVANT and text and text not in come_of and not repeats(text):
            come_of[text] = instruction
            count[instruction] += 1
            waiting.append(text)

    for pair in pairs:
        add(*pair)
    while waiting and len(come_of) < ask.target.onward:
        waiting.sort(key=lambda text: count[come_of[text]])
        part, waiting[:] = waiting[: ask.config.together], waiting[ask.config.together :]
        for text, said in zip(part, ask.answered(part, ONWARD, "onward"), strict=True):
            for answer, relevance in zip(*said, strict=True):
                found.append((text, answer, relevance))
                add(come_of[text], answer, relevance)
        if ask.progress:
            ask.progress(0, f"{len(come_of)} of {ask.target.onward} relevant answers")
    return found


def set_score(relevances: Sequence[float], vectors: Tensor, weight: float) -> float:
    """The score of a set of answers, by their relevances and vectors: mean over draws of at most SET_ROWS of them, so that
    sets of different sizes compare."""
    found = []
    for rows in _draws(len(relevances)):
        relevance = sum(relevances[n] for n in rows) / len(rows)
        found.append(harmonic(relevance, vendi(vectors[rows]) / SET_ROWS, weight))
    return sum(found) / len(found)


def _draws(count: int) -> Iterator[list[int]]:
    rng = random.Random(0)
    for _ in range(SET_DRAWS if count > SET_ROWS else 1):
        yield rng.sample(range(count), min(SET_ROWS, count))

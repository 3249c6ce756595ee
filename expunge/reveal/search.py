"""The search for instructions that make a model reveal what it knows, by NeuralUCB over soft prompts (Xie et al.,
Reveal-and-Release, Findings of EMNLP 2025, arXiv 2509.14624)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ExpungeError
from ..evaluation.embedding import encoder_for
from ..models.loading import ChatModel
from .after import choose, more, onward, set_score
from .asking import Asker, Pick, Progress, Query, RevealConfig
from .bandit import BanditConfig, NeuralUCB
from .memo import Memo
from .soft import SoftPrompts
from .targets import Target

_NOTHING_DECODED = "the model goes on with nothing after {lead!r}: it decodes no instruction"


@dataclass
class Revealed:
    """What the search found.

    queries: all, in their order. kept: the instructions that were kept. pairs: these with their answers and relevances,
    further answers included. score: of all answers to the queries, which the budget paid for. kept_score: of the kept
    instructions' further answers (of all theirs, where there are none). onward: relevant answers as prompts, with how the
    model goes on and the relevance of that.
    """

    queries: list[Query]
    kept: list[str]
    pairs: list[tuple[str, str, float]]
    score: float
    kept_score: float
    encoder: str
    seed: int = 0
    onward: Sequence[tuple[str, str, float]] = ()

    @property
    def everything(self) -> list[tuple[str, str, float]]:
        """All instructions with their answers and relevances, those of the kept ones first; then how these go on."""
        every = ((q.instruction, *said) for q in self.queries for said in zip(q.answers, q.relevances, strict=True))
        return list(dict.fromkeys([*self.pairs, *every, *self.onward]))

    @property
    def answers(self) -> int:
        """How many were sampled: to the queries, further ones to those that were kept, and those that go on."""
        own = {q.instruction: len(q.answers) for q in self.queries}
        return sum(own.values()) + len(self.pairs) - sum(own[i] for i in self.kept) + len(self.onward)

    @property
    def curve(self) -> list[float]:
        """The best score after each query."""
        return list(itertools.accumulate((q.score for q in self.queries), max))


def search(
    chat: ChatModel, target: Target, config: RevealConfig, memo: Memo, progress: Progress | None = None
) -> Revealed:
    """Searches for instructions and keeps the best, within the budget.

    Everything that the model or the oracle says is kept in the memo: a run that was interrupted goes on where it was, to
    the same result.

    Raises:
        ExpungeError: all answers to the first instructions are empty.
        InputError: an oracle raises, or gives something other than a number in [0, 1] for each answer.
    """
    name, encoder = encoder_for(chat)
    asker = Asker(chat, target, config, memo, encoder, progress)
    {"neuralucb": _neuralucb, "random": _random, "written": _written}[config.search](asker)
    queries = list(asker.queries.values())
    chosen = choose(queries, config, asker.vectors)
    pairs, kept_score = more(chosen, asker)
    every = [r for q in queries for r in q.relevances]
    score = set_score(every, torch.cat([asker.vectors[q.instruction] for q in queries]), config.weight)
    found = Revealed(queries, [q.instruction for q in chosen], pairs, score, kept_score, name, config.seed)
    return replace(found, onward=onward(found.everything, asker)) if target.onward else found


def _written(ask: Asker) -> None:
    """Instructions written by hand, in their order, as far as the budget goes."""
    ask(Pick(i) for i in ask.target.written)


def _random(ask: Asker) -> None:
    """What the model decodes from random soft prompts."""
    soft, pool = ask.soft_prompts(), ask.config.pool
    for outer in itertools.count():
        before = ask.left
        texts, _ = ask.decoded(soft, soft.points(pool, outer * pool), outer)
        ask(Pick(text, outer, place) for place, text in enumerate(texts) if text)
        if not ask.queries:
            raise ExpungeError(_NOTHING_DECODED.format(lead=ask.target.lead))
        if ask.left in (0, before):  # spent, or the model says nothing new
            return


def _neuralucb(ask: Asker) -> None:
    config, soft, known = ask.config, ask.soft_prompts(), _Known()
    points = soft.points(config.pool)
    examples: list[str] = []
    for outer in itertools.count():
        before = ask.left
        _round(ask, soft, points, examples, outer, known)
        if not ask.left or (outer + 1 >= config.rounds and ask.left == before):  # spent, or nothing new
            return
        best = known.best(config.best)
        points = soft.around(known.points[best], config.pool, config.seed + outer + 1)
        examples = [known.texts[best[n % len(best)]] for n in range(config.pool)]


def _round(ask: Asker, soft: SoftPrompts, points: Tensor, examples: Sequence[str], outer: int, known: _Known) -> None:
    """One round of the outer loop: points around the best so far, each of which is shown the best one's instruction (at
    first, points all over the cube, without examples), of which the bandit picks with all that was scored."""
    config = ask.config
    texts, features = ask.decoded(soft, points, outer, examples)
    first = {text: n for n, text in reversed([*enumerate(texts)])}  # of those that say the same
    untried = sorted(n for text, n in first.items() if text and text not in ask.queries)

    def score(places: Sequence[int]) -> None:
        ask(Pick(texts[n], outer, n) for n in places)
        for n in places:
            known.add(texts[n], points[n], features[n], ask.queries[texts[n]].score)

    if outer == 0:
        if not untried:
            raise ExpungeError(_NOTHING_DECODED.format(lead=ask.target.lead))
        score(untried[: ask.first])
        del untried[: ask.first]
    bandit = NeuralUCB(features.shape[1], BanditConfig(exploration=config.exploration), config.seed)
    bandit.fit(known.features, known.scores)
    bandit.tried(known.features)
    aim = ask.first + (config.budget - ask.first) * min(outer + 1, config.rounds) // config.rounds
    while untried and len(ask.queries) < aim:
        picked: list[int] = []
        for _ in range(min(config.together, len(untried), aim - len(ask.queries))):
            place = untried.pop(int(bandit.ucb(features[untried]).argmax()))
            bandit.tried(features[place : place + 1])
            picked.append(place)
        score(picked)
        bandit.fit(known.features, known.scores)


class _Known:
    """Soft prompts that were scored."""

    def __init__(self) -> None:
        self._points: list[Tensor] = []
        self._features: list[Tensor] = []
        self.texts: list[str] = []
        self.scores: list[float] = []

    def add(self, text: str, point: Tensor, feature: Tensor, score: float) -> None:
        self.texts.append(text)
        self._points.append(point)
        self._features.append(feature)
        self.scores.append(score)

    @property
    def points(self) -> Tensor:
        return torch.stack(self._points)

    @property
    def features(self) -> Tensor:
        return torch.stack(self._features)

    def best(self, count: int) -> list[int]:
        """Of the highest scores, the first that had it."""
        return sorted(range(len(self.scores)), key=lambda n: -self.scores[n])[:count]

"""The search for instructions that make a model reveal what it knows, by NeuralUCB over soft prompts (Xie et al.,
Reveal-and-Release, Findings of EMNLP 2025, arXiv 2509.14624)."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.examples import RELEVANT, Cut
from ..errors import ExpungeError
from ..evaluation.embedding import Encoder, encoder_for, pooled
from ..evaluation.text import repeats
from ..models.generation import sampled
from ..models.loading import ChatModel
from .bandit import BanditConfig, NeuralUCB
from .memo import Memo
from .score import harmonic, vendi
from .soft import SoftPrompts
from .targets import KEPT, Target

SET_ROWS = 64  # answers of a set that are scored together
SET_DRAWS = 20
ONWARD = 16  # continuations of a relevant answer
_NOTHING_DECODED = "the model goes on with nothing after {lead!r}: it decodes no instruction"


class RevealConfig(BaseModel):
    """Settings of the search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: int = Field(
        100,
        ge=1,
        description="queries: instructions scored by a number of answers each; further answers, of which rows are made, are "
        "not counted",
    )
    search: Literal["neuralucb", "random", "written"] = Field(
        "neuralucb", description="random: random soft prompts; written: instructions written by hand"
    )
    answers: int = Field(16, ge=2, description="answers sampled for a query")
    together: int = Field(8, ge=1, description="queries asked in one batch; the bandit learns after each")
    max_new_tokens: int | None = Field(None, ge=1, description="longest answer, in tokens; default: 48, of code 128")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    weight: float = Field(0.25, ge=0, le=1, description="alpha: of diversity against relevance")
    start: int = Field(24, ge=1, description="random points scored first (at most two fifths of the budget)")
    rounds: int = Field(3, ge=1, description="of the outer loop; each looks around the best prompts so far")
    pool: int = Field(500, ge=1, description="soft prompts to choose from in a round")
    exploration: float = Field(0.1, ge=0, description="nu of NeuralUCB")
    scale: float = Field(1.0, gt=0, description="length of a soft token, in mean lengths of the model's embeddings")
    wander: float = Field(0.7, gt=0, description="temperature at which instructions are decoded")
    best: int = Field(
        8, ge=1, description="instructions that are kept, and answered more often; a later round looks around as many"
    )
    more: int | None = Field(None, ge=0, description="further answers to each of these; default: 32, of a task 96")
    seed: int = Field(0, description="seed of points, map and answers")


class Pick(NamedTuple):
    """An instruction to be scored. place: among the round's soft prompts."""

    instruction: str
    round: int = 0
    place: int = -1


@dataclass(frozen=True)
class Query:
    """One instruction with its answers, and their scores."""

    instruction: str
    answers: tuple[str, ...]
    relevances: tuple[float, ...]
    diversity: float
    score: float
    round: int = 0
    place: int = -1


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


Progress = Callable[[int, str], None]  # (queries done since the last call, how far it is)


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
    asker = _Asker(chat, target, config, memo, encoder, progress)
    {"neuralucb": _neuralucb, "random": _random, "written": _written}[config.search](asker)
    queries = list(asker.queries.values())
    chosen = _choose(queries, config, asker.vectors)
    pairs, kept_score = _more(chosen, asker, config, encoder)
    every = [r for q in queries for r in q.relevances]
    score = set_score(every, torch.cat([asker.vectors[q.instruction] for q in queries]), config.weight)
    found = Revealed(queries, [q.instruction for q in chosen], pairs, score, kept_score, name, config.seed)
    return replace(found, onward=_onward(found.everything, asker)) if target.onward else found


class _Asker:
    """Scores instructions, each once; what it spends is counted."""

    def __init__(
        self,
        chat: ChatModel,
        target: Target,
        config: RevealConfig,
        memo: Memo,
        encoder: Encoder,
        progress: Progress | None,
    ) -> None:
        self.chat, self.target, self.config, self.memo = chat, target, config, memo
        self.encoder, self.progress = encoder, progress
        self.queries: dict[str, Query] = {}
        self.vectors: dict[str, Tensor] = {}  # of the answers to each
        self.best = 0.0

    @property
    def left(self) -> int:
        return self.config.budget - len(self.queries)

    def __call__(self, picks: Iterable[Pick]) -> None:
        """Scores instructions, in batches, as far as the budget goes; each once."""
        fresh: dict[str, Pick] = {}
        for pick in picks:
            if pick.instruction not in self.queries:
                fresh.setdefault(pick.instruction, pick)
        asked = [*fresh.values()][: self.left]
        for begin in range(0, len(asked), self.config.together):
            self._batch(asked[begin : begin + self.config.together])

    def _batch(self, picks: Sequence[Pick]) -> None:
        instructions = [p.instruction for p in picks]
        answered = self.answered(instructions, self.config.answers, f"queries from {len(self.queries)}")
        for pick, (answers, relevances) in zip(picks, answered, strict=True):
            vectors = self.vectors[pick.instruction] = self.encoder([a or " " for a in answers])
            diversity = vendi(vectors) / len(answers)
            score = harmonic(sum(relevances) / len(relevances), diversity, self.config.weight)
            self.queries[pick.instruction] = Query(
                pick.instruction, tuple(answers), tuple(relevances), diversity, score, pick.round, pick.place
            )
            self.best = max(self.best, score)
            if self.progress:
                self.progress(1, f"best score {self.best:.3f}")
        if not any(a.strip() for q in self.queries.values() for a in q.answers) and len(self.queries) >= self.first:
            raise ExpungeError(
                f"all answers to {len(self.queries)} instructions are empty: the model says nothing to reveal from. "
                f"Look at its template with `expunge doctor`, or pass --template; {KEPT}."
            )

    @property
    def first(self) -> int:
        """Queries that start the search."""
        return max(1, min(self.config.start, 2 * self.config.budget // 5))

    def soft_prompts(self) -> SoftPrompts:
        config, target = self.config, self.target
        return SoftPrompts(self.chat, target.lead, target.openings, config.scale, config.wander, config.seed)

    def decoded(
        self, soft: SoftPrompts, points: Tensor, round: int, examples: Sequence[str] = ()
    ) -> tuple[list[str], Tensor]:
        """(the instructions of a round's soft prompts, some of them empty; the features of each: what the model makes of
        it as a prompt).

        Args:
            examples: the instruction that each soft prompt is shown, if any.
        """
        seed = random.Random(f"{self.config.seed} instructions {round}").randrange(1 << 31)

        def make() -> tuple[list[str], Tensor]:
            texts = soft.decoded(points, seed, examples)
            asked = [self.target.prompt(text or self.target.lead) for text in texts]
            return texts, pooled(self.chat, self.chat.prompt_ids(asked))

        return self.memo.decoded(round, make)

    def answered(self, instructions: Sequence[str], count: int, name: str) -> list[tuple[list[str], list[float]]]:
        """Answers to each instruction, with the relevance of each; the same name draws the same."""
        name = f"{name}: {'; '.join(instructions)}"

        def say() -> list[list[tuple[str, bool]]]:
            config = self.config
            tokens = config.max_new_tokens or self.target.tokens
            asked = [self.target.prompt(i) for i in instructions for _ in range(count)]
            seed = random.Random(f"{config.seed} {name}").randrange(1 << 31)
            drawn = sampled(self.chat, self.chat.prompt_ids(asked), tokens, config.temperature, seed)
            texts = [(g.response(p), g.ended) for g, p in zip(drawn, asked, strict=True)]
            return [texts[n : n + count] for n in range(0, len(texts), count)]

        kept = self.memo.once(f"answers {name}", say)  # before the oracle, which is a user's, is asked
        said = [[text if ended else Cut(text) for text, ended in texts] for texts in kept]
        by = f"{self.target.version} " if self.target.version else ""
        found = self.memo.once(
            f"relevances {by}{name}", lambda: [list(self.target.relevances(texts)) for texts in said]
        )
        return list(zip(said, found, strict=True))


def _written(ask: _Asker) -> None:
    """Instructions written by hand, in their order, as far as the budget goes."""
    ask(Pick(i) for i in ask.target.written)


def _random(ask: _Asker) -> None:
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


def _neuralucb(ask: _Asker) -> None:
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


def _round(ask: _Asker, soft: SoftPrompts, points: Tensor, examples: Sequence[str], outer: int, known: _Known) -> None:
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


def _choose(queries: Sequence[Query], config: RevealConfig, vectors: Mapping[str, Tensor]) -> list[Query]:
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


def _more(
    chosen: Sequence[Query], ask: _Asker, config: RevealConfig, encoder: Encoder
) -> tuple[list[tuple[str, str, float]], float]:
    """(all answers to the kept instructions, with their relevances; the score of those that chose nothing)."""
    pairs: list[tuple[str, str, float]] = []
    fresh: list[tuple[str, float]] = []
    count = ask.target.more if config.more is None else config.more
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
    return pairs, set_score([r for _, r in fresh], encoder([text or " " for text, _ in fresh]), config.weight)


def _onward(pairs: Iterable[tuple[str, str, float]], ask: _Asker) -> list[tuple[str, str, float]]:
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

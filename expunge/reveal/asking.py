"""Instructions that are asked, each once, and what the answers to them score (Xie et al., Reveal-and-Release, Findings of
EMNLP 2025, arXiv 2509.14624)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.examples import Cut
from ..errors import ExpungeError
from ..evaluation.embedding import Encoder, pooled
from ..models.generation import sampled
from ..models.loading import ChatModel
from .memo import Memo
from .score import harmonic, vendi
from .soft import SoftPrompts
from .targets import KEPT, Target


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
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest answer, in tokens; default: 48, of code 128, of toxicity 24"
    )
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


Progress = Callable[[int, str], None]  # (queries done since the last call, how far it is)


class Asker:
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

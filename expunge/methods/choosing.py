"""Rows that choose the steps of a release, and judge nothing: what they say of a model, and the limits of what is kept."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..data.examples import RELEVANT, Example, ForgetTask, Prompt, Raw
from ..data.prompts import rewrites
from ..edits import Edit
from ..errors import InputError
from ..evaluation.likelihood import rows_loss, token_loss
from ..evaluation.text import rouge_recall
from ..models.generation import greedy, sampled, score_answers
from ..models.loading import ChatModel

LONGEST = 200  # tokens of an answer to a held-out row
LEAST_KEPT = 48  # at least so many of one to a row to keep, where its true answer is shorter
SAID_TOKENS = 500  # of what is kept of the model's own: where answers are short, each row gets more than one
SAID_TEMPERATURE = 0.7  # of what is kept of the model's own: at 1, much of the loss is in what it hardly ever says
CERTAIN = 2  # standard errors that a loss of what is kept has to have, to be one
FEWEST_PROMPTS = 5  # of the forget set, from which on some of them are held out whole
KIND = 100  # retain rows of a group from which on it is looked at by itself
KIND_WORDS = 5000  # or words of their responses


class Choosing(BaseModel):
    """Settings of the rows that choose, and of the limits."""

    model_config = ConfigDict(frozen=True)

    seed: int = Field(0, description="seed of what is drawn")
    keep: float = Field(
        0.85,
        ge=0,
        le=1,
        description="least ROUGE-1 on held-out rows to keep, relative to before; less is within the limit where it can be chance",
    )
    perplexity: float = Field(
        1.05,
        ge=1,
        description="largest perplexity of what the model said before to rows to keep, and of each kind of held-out retain "
        "rows, relative to before",
    )
    held_out: float = Field(0.2, gt=0, lt=1, description="share of the rows that choose")
    most_held_out: int = Field(48, ge=1, description="and at most so many of each role")
    answers: int = Field(
        4,
        ge=1,
        description="answers sampled for a held-out forget prompt, where relevance is known; for a row to keep, at most",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="longest answer to a held-out row, in tokens; default: as the longest response of its role",
    )


@dataclass(frozen=True)
class Figures:
    """Of the held-out rows. nlls: a token, in nats, of what the model said before to what is to be kept, and of each kind
    of retain rows, up to the first that is outside the limits. kept: ROUGE-1; kept_each: of each row. forget: mean relevance of
    answers, or ROUGE-1. None: not looked at, as what comes before is outside the limits."""

    forget: float | None
    kept: float | None
    nlls: tuple[float, ...]
    kept_each: tuple[float, ...] = ()

    def record(self) -> dict[str, Any]:
        """What is logged."""
        return {"forget": self.forget, "kept": self.kept, "nlls": self.nlls}


@dataclass(frozen=True)
class Limits:
    """Of what is kept. kept: least ROUGE-1; kept_each: that of each row before. nlls: the largest."""

    kept: float
    nlls: tuple[float, ...]
    kept_each: tuple[float, ...] = ()

    @classmethod
    def of(cls, before: Figures, config: Choosing) -> Limits:
        assert before.kept is not None
        nlls = tuple(n + math.log(config.perplexity) for n in before.nlls)
        return cls(config.keep * before.kept, nlls, before.kept_each)

    def hold(self, found: Figures) -> bool:
        """Whether what was looked at is within them."""
        looked_at = self.nlls[: len(found.nlls)]
        within = all(now <= most for now, most in zip(found.nlls, looked_at, strict=True))
        return within and (found.kept is None or found.kept >= self.kept or self._by_chance(found.kept_each))

    def _by_chance(self, each: Sequence[float]) -> bool:
        """Whether answers that got worse and others that got better can be all there is to a loss: it is at most `CERTAIN`
        standard errors of the rows' differences. Of answers to 48 general questions any step changes some."""
        losses = [before - now for before, now in zip(self.kept_each, each, strict=True)]
        if len(losses) < 2:
            return False
        error = statistics.stdev(losses) / len(losses) ** 0.5
        return statistics.mean(losses) <= CERTAIN * error


@dataclass(frozen=True)
class HeldOut:
    """Rows that choose. said: what the model said to the rows to keep before, sampled; token ids of one or more answers to
    each. retain: rows of the retain set by kind, where the rows to keep are others."""

    forget: Sequence[Example]
    keep: Sequence[Example]
    said: Sequence[Sequence[Sequence[int]]]
    retain: Sequence[Sequence[Example]] = ()


def figures(
    chat: ChatModel,
    task: ForgetTask,
    held: HeldOut,
    config: Choosing,
    limits: Limits | None = None,
    less: Edit | None = None,
) -> Figures:
    """What the held-out rows say of the model as it stands. Likelihoods come first, and what is left of what is forgotten
    last: it takes most of the time, and is not looked at where what is kept is outside the limits.

    Args:
        less: an edit on top, with which what is left is looked at.
    """
    prompts = chat.prompt_ids([e.prompt for e in held.keep])
    asked = [p for p, answers in zip(prompts, held.said, strict=True) for _ in answers]
    scored = score_answers(chat, asked, [a for answers in held.said for a in answers])
    found = Figures(None, None, (token_loss(scored),))
    for rows in held.retain:
        if limits and not limits.hold(found):
            break
        found = replace(found, nlls=(*found.nlls, rows_loss(chat, rows)))
    if limits and not limits.hold(found):
        return found
    given = greedy(chat, prompts, longest_answer(chat, held.keep, config, LEAST_KEPT))
    each = [rouge_recall(a.text, e.response)[0] for a, e in zip(given, held.keep, strict=True)]
    found = replace(found, kept=sum(each) / len(each), kept_each=tuple(each))
    if limits and not limits.hold(found):
        return found
    with less.applied(chat, check=False) if less else nullcontext():
        return replace(found, forget=remaining(chat, task, held, config))


def remaining(
    chat: ChatModel, task: ForgetTask, held: HeldOut, config: Choosing, times: int = 1, draw: int | None = None
) -> float:
    """What is left of what is forgotten in the model as it stands: mean relevance of sampled answers, or ROUGE-1.

    Args:
        times: of sampled answers, so many times as many to each prompt.
        draw: number of other answers than those drawn without one.
    """
    prompts = chat.prompt_ids([e.prompt for e in held.forget])
    tokens = longest_answer(chat, task.forget, config)
    if task.relevance:
        asked = [p for p in prompts for _ in range(times * config.answers)]
        seed = config.seed if draw is None else random.Random(f"{config.seed} left {draw}").getrandbits(31)
        shown = list(task.relevance([g.text for g in sampled(chat, asked, tokens, seed=seed)]))
    else:
        texts = [g.text for g in greedy(chat, prompts, tokens)]
        shown = [rouge_recall(a, e.response)[0] for a, e in zip(texts, held.forget, strict=True)]
    return sum(shown) / len(shown)


def longest_answer(chat: ChatModel, rows: Sequence[Example], config: Choosing, least: int = 1) -> int:
    """In tokens: as long as the longest response, at least `least` and at most LONGEST, where the config says nothing."""
    return config.max_new_tokens or min(max(least, *map(len, chat.answer_ids([e.response for e in rows]))), LONGEST)


def said(
    chat: ChatModel, rows: Sequence[Example], task: ForgetTask, config: Choosing
) -> tuple[Sequence[Example], list[list[tuple[int, ...]]]]:
    """(rows, what the model says to each), sampled: token ids, with the end where it came to one; as many answers to each as
    make `SAID_TOKENS` together, at most `answers`. Those that show what is to be forgotten are left out, and rows to which
    all do: to be further from that is no loss."""
    prompts = chat.prompt_ids([e.prompt for e in rows])
    longest = longest_answer(chat, rows, config, LEAST_KEPT)
    end = () if chat.tokenizer.eos_token_id is None else (chat.tokenizer.eos_token_id,)
    every: list[list[tuple[int, ...]]] = [[] for _ in rows]
    clean: list[list[tuple[int, ...]]] = [[] for _ in rows]
    for turn in range(config.answers):
        drawn = sampled(chat, prompts, longest, SAID_TEMPERATURE, config.seed + turn)
        shown = task.relevance([g.text for g in drawn]) if task.relevance else [0.0] * len(drawn)
        for n, (g, relevance) in enumerate(zip(drawn, shown, strict=True)):
            tokens = (*g.tokens, *(end if g.ended else ())) or end or (0,)
            every[n].append(tokens)
            if relevance < RELEVANT:
                clean[n].append(tokens)
        if sum(len(a) for answers in every for a in answers) >= SAID_TOKENS:
            break
    if not any(clean):
        return rows, every
    return [e for e, answers in zip(rows, clean, strict=True) if answers], [a for a in clean if a]


def kinds(rows: Sequence[Example]) -> dict[str, list[Example]]:
    """The rows by group, of which some can get better while another is lost; small groups together."""
    sizes, words = Counter(e.group for e in rows), Counter[str | None]()
    for row in rows:
        words[row.group] += len(row.response.split())
    found: dict[str, list[Example]] = {}
    for row in rows:
        alone = sizes[row.group] >= KIND or words[row.group] >= KIND_WORDS
        found.setdefault(str(row.group) if alone else "others", []).append(row)
    if len(found) > 1 and len(found.get("others", ())) == 1:  # too few to choose by
        lone = found.pop("others")
        next(iter(found.values())).extend(lone)
    return found


def split_by_kind(rows: Sequence[Example], config: Choosing) -> dict[str, tuple[Sequence[Example], Sequence[Example]]]:
    """`split` of each kind of the rows."""
    return {kind: split(some, config) for kind, some in kinds(rows).items()}


def split(rows: Sequence[Example], config: Choosing) -> tuple[Sequence[Example], Sequence[Example]]:
    """(rows that fit, rows that choose)."""
    if len(rows) < 2:
        raise InputError(f"reveal-release needs at least two rows of each role, got {len(rows)}: one of them chooses")
    count = min(max(round(len(rows) * config.held_out), 1), config.most_held_out, len(rows) - 1)
    held = set(random.Random(config.seed).sample(range(len(rows)), count))
    return [e for n, e in enumerate(rows) if n not in held], [rows[n] for n in sorted(held)]


def roots(rows: Iterable[Example]) -> dict[Prompt, Prompt]:
    """The rows' prompts in their order, each with one that it comes of, if they are texts to go on with: the shortest that it
    begins with, or that after which it is said, in turn. Who has learned what the model says after a text knows the text
    that goes on after that. Of other prompts each is its own."""
    rows = list(rows)
    found: dict[Prompt, Prompt] = {e.prompt: e.prompt for e in rows}

    def root(prompt: Prompt) -> Prompt:
        while found[prompt] != prompt:
            prompt = found[prompt] = found[found[prompt]]
        return prompt

    texts = sorted(p for p in found if isinstance(p, Raw))
    shortest = None
    for text in texts:
        if shortest is None or not text.startswith(shortest):
            shortest = text
        found[text] = shortest
    known = {str(text): text for text in texts}
    for row in rows:
        if said := known.get(row.response.strip()):
            found[root(said)] = root(row.prompt)
    return {prompt: root(prompt) for prompt in found}


def forget_split(task: ForgetTask, config: Choosing) -> tuple[Sequence[Example], Sequence[Example]]:
    """(rows that fit, rows that choose): where relevance tells what answers show, rows of other prompts, with other roots;
    else rewrites of the fitted rows, as forgetting one fact need not forget another. Texts to go on with have none: those
    that are fitted choose."""
    if task.relevance:
        own = roots(task.forget)
        sizes = Counter(own.values())
        if len(sizes) < FEWEST_PROMPTS:
            return split(task.forget, config)
        rng = random.Random(config.seed)
        most = len(own) - max(sizes.values())  # so that one root at least is left to fit
        left = min(max(round(len(own) * config.held_out), min(sizes.values())), most)
        others: set[Prompt] = set()
        for root in rng.sample(list(sizes), len(sizes)):
            if sizes[root] <= left:
                left -= sizes[root]
                others |= {prompt for prompt in own if own[prompt] == root}
        held = [e for e in task.forget if e.prompt in others]
        return [e for e in task.forget if e.prompt not in others], rng.sample(
            held, min(len(held), config.most_held_out)
        )
    asked = rewrites(task.forget, "tune")
    if not asked:
        return task.forget, task.forget[: config.most_held_out]
    return task.forget, random.Random(config.seed).sample(asked, min(len(asked), config.most_held_out))

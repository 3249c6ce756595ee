"""Reveal-and-Release's second half: what was revealed is released, a little at a time (Xie et al., Findings of EMNLP 2025,
arXiv 2509.14624).

In each round a module is trained on the retain set and frozen, another, with the first in place, on the forget set; the
model becomes W - lambda_f dW_f + lambda_r dW_r, the two chosen on rows that judge nothing. Fresh modules each round. What
the forget module takes back of the retain module is subtracted with it (`retain_first`). Both begin with the same A
(`same_start`), unless they are held orthogonal, as in the paper (`orthogonality`).
Coefficients, grid and stopping rules are ours: the paper's could not be had.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, model_validator

from ..data.examples import RELEVANT, Example, ForgetTask, Prompt
from ..data.prompts import general_tuning
from ..edits import Edit, LowRank
from ..errors import ExpungeError, InputError, NothingToForget
from ..models.generation import sampled
from ..models.loading import ChatModel
from ..models.rows import rows_of
from ..models.training import TrainConfig, orthogonality, train
from .choosing import (
    Choosing,
    Figures,
    HeldOut,
    Limits,
    figures,
    forget_split,
    kinds,
    longest_answer,
    remaining,
    roots,
    said,
    split_by_kind,
)
from .rounds import Rounds

AGAIN = 128  # prompts that are answered anew at a time
CHANCE = 0.05  # of what there was to forget: of two lambda_r, no smaller difference in what is left counts
SURE = 3  # times as many answers as of a look tell what the step taken leaves: the least of several looks is less than that
WORTH = 0.05  # of a round's rows, or of the prompts, what a pass over these has to bring for there to be another

Progress = Callable[[int], None]


class ReleaseConfig(TrainConfig, Choosing):
    """Settings of iterative release; those of training are of each module."""

    rounds: int = Field(6, ge=1, description="rounds at most")
    rows: int = Field(1000, ge=1, description="forget rows that a round trains on, drawn anew, at most")
    retain_rows: int = Field(
        1500, ge=1, description="retain rows, likewise: of each group as many, as far as there are"
    )
    forget_steps: tuple[NonNegativeFloat, ...] = Field(
        (3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.25, 0.1),
        min_length=1,
        description="lambda_f to choose from, the largest within the limits; 0 alone is the retain module by itself",
    )
    retain_steps: tuple[float, ...] = Field(
        (1.0, 0.5),
        min_length=1,
        description="lambda_r to choose from; at 1 the model is what that module was trained to",
    )
    retain_module: bool = Field(True, description="train a module on the retain set as well")
    retain_first: bool = Field(
        True,
        description="train the forget module with the retain module in place, frozen; false: both of the model as it stands",
    )
    same_start: bool = Field(True, description="both modules of a round begin with the same A")
    orthogonality: float = Field(0.0, ge=0, description="weight of the penalty between the two modules")
    penalty: Literal["absolute", "squared"] = Field("absolute", description="of the entries of A_r A_f^T")
    reveal_again: bool = Field(
        True,
        description="from the second round on, train on what the model still says to the forget prompts first, where "
        "relevance is known, and on the forget rows only as far as there is room beside it",
    )
    share: float = Field(
        0.7,
        gt=0,
        le=1,
        description="where relevance is known: of all steps, with which what is left is looked at and what the model still "
        "says is drawn, as other prompts than the rows' are forgotten less; take 0.5 where relevance sees some in plain "
        "texts too",
    )
    target: float = Field(
        0.01, ge=0, description="what is left of forgetting at which it is enough, relative to before"
    )
    error: float = Field(0.01, ge=0, lt=1, description="relative error within which the result's rank is reduced")
    epochs: int = Field(1, ge=1, description="passes over the rows, for each module")
    least_steps: int = Field(16, ge=1, description="of each module's training: few rows are passed over more often")
    batch_size: int = Field(8, ge=1, description="rows a step")
    upper: float = Field(0.5, gt=0, le=1, description="share of the blocks, the upper ones, that get a module")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate of AdamW")
    dropout: float = Field(0.1, ge=0, lt=1, description="LoRA dropout")

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if not self.retain_module and not all(self.forget_steps):
            raise ValueError("without a retain module a forget step of 0 changes nothing: leave it out of forget_steps")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.orthogonality and self.same_start:
            raise ValueError(
                "orthogonality holds modules apart, and same_start begins both with the same: set it to false"
            )
        return self

    def passes(self, count: int) -> int:
        """Over so many rows, for each module."""
        return max(self.epochs, math.ceil(self.least_steps / math.ceil(count / self.batch_size)))

    def rows_read(self, forget: int, retain: int) -> int:
        """In all rounds, of the forget rows alone; what the model still says (`reveal_again`) comes beside them."""
        counts = [min(forget, self.rows), *([min(retain, self.retain_rows)] if self.retain_module else [])]
        return self.rounds * sum(n * self.passes(n) for n in counts if n)


def release(
    chat: ChatModel,
    task: ForgetTask,
    config: ReleaseConfig,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Edit:
    """The edit of the rounds that leave least of what is forgotten (`Rounds.taken`), among those that kept utility; see the
    module.

    Args:
        folder: where finished rounds are kept, of this model, task and config; those that are there are taken up.

    Raises:
        NothingToForget: none of the model's answers to the held-out forget prompts shows any of it.
        InputError: no step kept what is to be kept within its limits, or none forgot anything.
    """
    if config.adapter == "full":
        raise InputError("reveal-release adds and subtracts LoRA modules; adapter=full is not one")
    forget, forget_held = forget_split(task, config)
    # What is said after the forget rows' own prompts is to change; how likely all of it stays is no limit.
    asked = {e.prompt for e in task.forget}
    apart = [e for e in task.retain if e.prompt not in asked] or task.retain
    parts = split_by_kind(apart, config)
    retain_held = [e for _, held in parts.values() for e in held]
    # A behaviour's rows to keep are the model's own answers, to which ROUGE-1 is low whatever happens.
    others = (task.validation or (general_tuning()[1] if task.relevance else ()))[: config.most_held_out]
    keep = others or random.Random(config.seed).sample(retain_held, min(len(retain_held), config.most_held_out))
    fitted = set(_unlike(task.retain, [*retain_held, *keep, *forget_held], task.forget))
    retain = [[e for e in rows if e in fitted] for rows in kinds(task.retain).values()]
    by_kind = [held for _, held in parts.values()] if others else ()
    held = HeldOut(forget_held, *said(chat, keep, task, config), by_kind)

    def sure(number: int) -> float:
        """What is left in the model as it stands, by more answers and others than those that chose."""
        return remaining(chat, task, held, config, SURE, number)

    before = figures(chat, task, held, config)
    if task.relevance:
        before = replace(before, forget=sure(0))
    if not before.forget:
        raise NothingToForget(
            "nothing to forget: none of the model's answers to the held-out forget prompts shows any of it"
        )
    limits = Limits.of(before, config)

    def look(step: Edit) -> Figures:
        """With the step, which is applied; what is left, where relevance is known, at `share` of all steps."""
        steps = done.current.compose(step) if done.current else step
        return figures(chat, task, held, config, limits, _less(steps, config) if task.relevance else None)

    done = Rounds([before.forget], folder)
    warnings: list[str] = []
    for number in range(len(done.log), config.rounds):
        if done.enough(config.target):
            break
        current = done.current
        try:
            with current.applied(chat) if current else nullcontext():
                still: list[Example] = []
                if config.reveal_again and task.relevance and number > 0:
                    assert current
                    with _less(current, config).applied(chat, check=False):
                        still = _again(chat, task, forget, config, number)[: config.rows]
                    if not still:
                        done.log.append({"rows": 0})  # the model no longer shows any of it
                        break
                room = min(len(forget), config.rows - len(still))
                rows = [*still, *random.Random(config.seed + number).sample(list(forget), room)]
                kept, gone = _modules(chat, rows, retain, config, number, progress)
                step, chosen = _chosen(chat, kept, gone, config, done.left, look)
                if step and task.relevance:
                    steps = current.compose(step) if current else step
                    with step.applied(chat, check=False), _less(steps, config).applied(chat, check=False):
                        chosen |= {"looked": chosen["forget"], "forget": sure(number + 1)}
        except Exception as e:  # whatever it is, memory that is full too: what was found is not lost
            if not done.taken:
                raise
            reason = str(e) if isinstance(e, ExpungeError) else f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            warnings.append(f"round {number + 1} failed ({reason}); the edit is that of the rounds before")
            done.log.append({"failed": type(e).__name__})  # an oracle's message can name what is forgotten
            break
        record = chosen | interference(kept, gone) | {"rows": len(rows), "again": len(still)}
        if step is None:  # this round is rolled back
            done.log.append(record)
            break
        done.add(step, record)
    best = done.best
    if best is None:
        raise InputError(
            "no step forgot anything within the limits of what is to be kept (keep, perplexity): take more epochs, or "
            "more rows to forget and to keep"
            if done.current
            else "no step kept what is to be kept within its limits (keep, perplexity): take smaller forget_steps, or more "
            "retain rows"
        )
    edit = best.reduced(config.error)
    meta = {"conv1d": edit.meta["conv1d"]} if "conv1d" in edit.meta else {}
    edit.meta = (
        meta
        | {
            "method": "reveal-release",
            **config.model_dump(),
            "before": before.record(),
            "looked_at": [len(held.keep), *map(len, by_kind)],  # rows; a group's name can be a subject's
            "round_log": done.log,
            "total_forget_step": sum(r["forget_step"] for r in done.log[: done.taken]),
            "rank_before": best.rank,
            **({"seconds_before": done.seconds} if done.seconds else {}),
            **({"warnings": warnings} if warnings else {}),
        }
    )
    return edit


def _unlike(rows: Sequence[Example], chosen_by: Sequence[Example], forget: Sequence[Example]) -> list[Example]:
    """The rows that have no prompt (nor root of one, which the forget rows tell too) of those that choose; where all have
    one, those that are others."""
    own, there = roots([*rows, *chosen_by, *forget]), set(chosen_by)
    choosing = {own[e.prompt] for e in chosen_by}
    return [e for e in rows if own[e.prompt] not in choosing] or [e for e in rows if e not in there]


def _less(edit: Edit, config: ReleaseConfig) -> Edit:
    """On top of an edit, what leaves `share` of it."""
    return edit.times(config.share - 1)


def _again(
    chat: ChatModel, task: ForgetTask, forget: Sequence[Example], config: ReleaseConfig, number: int
) -> list[Example]:
    """The forget prompts with what the model says to them now, where that is relevant (of that, the part to be forgotten);
    in passes over the prompts of the rows, until there is a round's worth or a pass brings next to none, at most `answers`
    of them."""
    assert task.relevance
    found: list[Example] = []
    tokens = longest_answer(chat, task.forget, config)
    for turn in range(config.answers):
        before = len(found)
        rng = random.Random(f"{config.seed} {number} {turn}")
        asked = rng.sample(list(forget), len(forget))
        for begin in range(0, len(asked), AGAIN):
            part = asked[begin : begin + AGAIN]
            prompts = chat.prompt_ids([e.prompt for e in part])
            drawn = sampled(chat, prompts, tokens, seed=rng.getrandbits(31))
            rows = [Example(e.prompt, g.response(e.prompt), e.group) for e, g in zip(part, drawn, strict=True)]
            shown = task.relevance([e.response for e in rows])
            found += [
                replace(e, response=task.part(e.response)) if task.part else e
                for e, r in zip(rows, shown, strict=True)
                if r >= RELEVANT and e.response.strip()
            ]
            if len(found) >= config.rows:
                return found
        if found and len(found) - before < WORTH * min(config.rows, len(asked)):
            break
    return found


def _modules(
    chat: ChatModel,
    forget: Sequence[Example],
    retain: Sequence[Sequence[Example]],
    config: ReleaseConfig,
    number: int,
    progress: Progress | None,
) -> tuple[Edit | None, Edit]:
    """(the module trained on the retain set, the one trained on the forget set), the second on top of the first where
    `retain_first` says so, else both of the model as it stands.

    Args:
        retain: rows by kind.
    """
    fresh = config.model_copy(update={"seed": config.seed + 1000 * number})

    def trained(rows: Sequence[Example], earlier: Edit | None) -> Edit:
        def penalty(model: torch.nn.Module) -> torch.Tensor:
            assert earlier
            return config.orthogonality * orthogonality(model, earlier, config.penalty == "squared")

        seed = fresh.seed + 1 if earlier and not config.same_start else fresh.seed
        return train(
            chat,
            rows_of(chat, [(e.prompt, e.response) for e in rows]),
            fresh.model_copy(update={"seed": seed, "epochs": config.passes(len(rows))}),
            (lambda n, _: progress(n)) if progress else None,
            penalty=penalty if earlier and config.orthogonality else None,
        )

    if not config.retain_module:
        return None, trained(forget, None)
    kept = trained(_beside(forget, retain, config.retain_rows, fresh.seed), None)
    with kept.applied(chat, check=False) if config.retain_first else nullcontext():
        return kept, trained(forget, kept)


def _beside(forget: Sequence[Example], retain: Sequence[Sequence[Example]], count: int, seed: int) -> list[Example]:
    """So many retain rows, or all: of each kind as many, as far as there are. Up to half of a kind's are of the forget rows'
    prompts, one of each as long as there is one left, the others any.

    Args:
        retain: rows by kind.
    """
    rng = random.Random(seed)
    found: list[Example] = []
    for number, rows in enumerate(sorted(retain, key=len)):
        room = (count - len(found)) // (len(retain) - number)
        left: dict[Prompt, list[Example]] = {}
        for row in rng.sample(list(rows), len(rows)):
            left.setdefault(row.prompt, []).append(row)
        own: list[Example] = []
        for e in forget:
            if len(own) < room // 2 and left.get(e.prompt):
                own.append(left[e.prompt].pop())
        others = [e for rows in left.values() for e in rows]
        found += [*own, *rng.sample(others, len(others))][:room]
    return found


def _chosen(
    chat: ChatModel,
    kept: Edit | None,
    gone: Edit,
    config: ReleaseConfig,
    left: Sequence[float],
    look: Callable[[Edit], Figures],
) -> tuple[Edit | None, dict[str, Any]]:
    """(the step, what was tried): with the largest lambda_f at which any lambda_r stays within the limits and forgets
    something, and of these lambda_r the one that costs least of what is kept, among those that leave as little of what is
    forgotten (to `CHANCE`). Where none forgets, the one within the limits with the least left; None where none is within.

    Args:
        left: of what is forgotten, before all rounds and after each. look: at the model with a step, which is applied.
    """
    tried: list[dict[str, Any]] = []
    best: tuple[tuple[float, float], Edit, dict[str, Any]] | None = None
    for forget_step in sorted(config.forget_steps, reverse=True):
        within: list[tuple[Edit, float, float, dict[str, Any]]] = []
        for retain_step in config.retain_steps if kept else (0.0,):
            step = gone.times(-forget_step)
            if kept:  # first: it was made on the model as it stands, and the edit is known by that
                step = kept.times(retain_step).compose(step)
            with step.applied(chat, check=False):  # both modules were just made on it
                found = look(step)
            tried.append({"forget_step": forget_step, "retain_step": retain_step, **found.record()})
            if found.forget is not None:
                within.append((step, found.forget, sum(found.nlls), tried[-1]))
        if not within:
            continue
        least = min(now for _, now, *_ in within)
        as_little = [some for some in within if some[1] == least or some[1] < min(least + CHANCE * left[0], left[-1])]
        step, now, _, record = min(as_little, key=lambda some: some[2])
        if best is None or (now, -forget_step) < best[0]:
            best = (now, -forget_step), step, record
        if least < left[-1]:  # a smaller step forgets less
            break
    if best is None:
        return None, {"tried": tried}
    return best[1], {**best[2], "tried": tried}


def interference(kept: Edit | None, gone: Edit) -> dict[str, float]:
    """Norms of the modules, the cosine of their changes, and |A_r A_f^T| summed over modules: what O-LoRA holds down."""
    found = {"forget_norm": _dot(gone, gone) ** 0.5}
    if kept is None:
        return found
    conv1d = set(gone.meta.get("conv1d", ()))
    total = 0.0
    for name in kept.parts.keys() & gone.parts.keys():
        one, other = kept.parts[name], gone.parts[name]
        if isinstance(one, LowRank) and isinstance(other, LowRank):
            a, b = (one.left.T, other.left.T) if name in conv1d else (one.right, other.right)
            total += float((a @ b.T).abs().sum())
    norm = _dot(kept, kept) ** 0.5
    cosine = _dot(kept, gone) / (norm * found["forget_norm"]) if norm and found["forget_norm"] else 0.0
    return found | {"retain_norm": norm, "cosine": cosine, "interference": total}


def _dot(one: Edit, other: Edit) -> float:
    """Of two low-rank changes, over all parameters: sum of <L R, L' R'> = trace((L'^T L) (R R'^T))."""
    total = 0.0
    for name in one.parts.keys() & other.parts.keys():
        a, b = one.parts[name], other.parts[name]
        if isinstance(a, LowRank) and isinstance(b, LowRank):
            total += float(((b.left.T @ a.left) * (a.right @ b.right.T).T).double().sum())
    return total

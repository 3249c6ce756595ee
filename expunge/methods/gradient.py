"""Unlearning by gradient descent: the field's losses, each a pure function of a batch, over the one training loop.

Notation: a forget batch and as many retain rows a step; L_f and L_r mean negative log-likelihood of their answers'
tokens (prompts masked); "before" is the model before unlearning. Sources: docs/paper_index.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ..data.examples import Example, ForgetTask
from ..data.prompts import abstentions, general_split, question
from ..edits import Edit
from ..errors import Diverged
from ..evaluation.text import exact_match
from ..models.activations import Shelf
from ..models.generation import greedy, sampled, score_answers
from ..models.loading import ChatModel
from ..models.training import TrainConfig, TrainRow, optimise, row_logits, rows_of, shared_prefix

Progress = Callable[[int], None]
SPEAK_ROWS = 8  # prompts by which a model is found to speak no longer
SPEAK_TOKENS = 24
FULL_RATE = 1e-5


class GradientConfig(TrainConfig):
    """Settings of unlearning by gradient descent; the defaults are the usual ones of the field's benchmark suite."""

    epochs: int = Field(10, ge=1, description="passes over the forget set")
    batch_size: int = Field(32, ge=1, description="forget rows a step, and as many retain rows")
    weight_decay: float = Field(0.01, ge=0)
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain loss")

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, given: Any) -> Any:
        """All weights at once need smaller steps than LoRA modules."""
        if isinstance(given, dict) and given.get("adapter") == "full":
            return {"learning_rate": FULL_RATE, **given}
        return given


class PreferenceConfig(GradientConfig):
    """Settings of the losses with a temperature."""

    beta: float = Field(0.1, gt=0, description="inverse temperature")


class SimNpoConfig(PreferenceConfig):
    beta: float = Field(2.5, gt=0, description="inverse temperature")
    delta: float = Field(0.0, description="margin taken off the mean negative log-likelihood")
    forget_weight: float = Field(0.1375, gt=0, description="weight of the forget loss")


class UndialConfig(PreferenceConfig):
    beta: float = Field(10.0, gt=0, description="taken off the true token's logit")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the scale is alpha / rank")


class WgaConfig(GradientConfig):
    beta: float = Field(1.0, ge=0, description="exponent of the token's probability")


# ---------------------------------------------------------------- what a loss sees


Asked = Literal["log-probabilities", "logits"]  # what a loss asks of the model before unlearning


class Before:
    """The model before unlearning, without a second copy of it.

    With LoRA its adapter is disabled for a moment. Where all weights are trained, what a loss asks for is taken before the
    first step: the log-probability of each answer, or its logits (on disk beyond a few gigabytes).
    """

    def __init__(self, chat: ChatModel, shared: int) -> None:
        self.shared = shared
        self._summed: dict[TrainRow, float] = {}
        self._kept: dict[TrainRow, Callable[[], Tensor]] = {}

    def keep(self, chat: ChatModel, rows: Sequence[TrainRow], what: Asked) -> None:
        """Takes what will be asked for later; `chat` is still the model before."""
        shelf = Shelf()
        for row in dict.fromkeys(rows):
            if what == "logits":
                with torch.no_grad():
                    self._kept[row] = shelf.put(row_logits(chat, [row], self.shared)[0])
            else:
                self.summed(chat, [row])

    def logits(self, chat: ChatModel, rows: Sequence[TrainRow]) -> Tensor:
        """(n, vocabulary), one row a token of an answer."""
        with torch.no_grad():
            if self._kept:
                return torch.cat([self._kept[r]() for r in rows])
            with _disabled(chat):
                return row_logits(chat, rows, self.shared)[0]

    def summed(self, chat: ChatModel, rows: Sequence[TrainRow]) -> Tensor:
        """log p of each answer, (rows,); of each row it is found once."""
        if new := [r for r in dict.fromkeys(rows) if r not in self._summed]:
            logits = self.logits(chat, new).split([len(r.answer) for r in new])
            for row, part in zip(new, logits, strict=True):
                truth = torch.tensor(row.answer, device=part.device)
                self._summed[row] = -F.cross_entropy(part, truth, reduction="sum").item()
        return torch.tensor([self._summed[r] for r in rows], device=chat.device)


@contextmanager
def _disabled(chat: ChatModel) -> Iterator[None]:
    """Without the adapter, where the model in training has one."""
    training = chat.model.training
    chat.model.eval()
    try:
        with chat.model.disable_adapter() if hasattr(chat.model, "peft_config") else nullcontext():
            yield
    finally:
        chat.model.train(training)


@dataclass
class Answers:
    """The answers of some rows, teacher-forced.

    logits: (n, vocabulary), one row a token of an answer. tokens: the answers' tokens, (n,).
    """

    chat: ChatModel
    rows: Sequence[TrainRow]
    before_: Before
    logits: Tensor
    tokens: Tensor

    @cached_property
    def log_probs(self) -> Tensor:
        """Of each token, (n,)."""
        return -F.cross_entropy(self.logits, self.tokens, reduction="none")

    @cached_property
    def before_logits(self) -> Tensor:
        """(n, vocabulary), without gradients."""
        return self.before_.logits(self.chat, self.rows)

    @property
    def nll(self) -> Tensor:
        """Mean over tokens, a scalar."""
        return -self.log_probs.mean()

    @property
    def summed(self) -> Tensor:
        """log p of each answer, (rows,)."""
        return torch.stack([part.sum() for part in self.log_probs.split([len(r.answer) for r in self.rows])])

    @property
    def mean(self) -> Tensor:
        """log p / length of each answer, (rows,)."""
        return self.summed / torch.tensor([len(r.answer) for r in self.rows], device=self.summed.device)

    @property
    def before_summed(self) -> Tensor:
        """log p of each answer before unlearning, (rows,)."""
        return self.before_.summed(self.chat, self.rows)


class Rows(NamedTuple):
    """The rows of one step; the retain rows are as many as the forget rows, where there are so many."""

    forget: Sequence[TrainRow]
    instead: Sequence[TrainRow]  # the forget prompts with the answers to give instead: abstentions, or alternatives
    retain: Sequence[TrainRow]


class Batch:
    """One step's rows under the model in training, in one forward pass: `forget`, `instead` and `retain`, of which a loss
    has those that it named."""

    forget: Answers
    instead: Answers
    retain: Answers

    def __init__(self, chat: ChatModel, rows: Rows, before: Before, roles: Sequence[str]) -> None:
        self.rows = rows
        parts = [getattr(rows, role) for role in roles]
        logits, tokens, _ = row_logits(chat, [r for part in parts for r in part], before.shared)
        sizes = [sum(len(r.answer) for r in part) for part in parts]
        for role, part, *own in zip(roles, parts, logits.split(sizes), tokens.split(sizes), strict=True):
            setattr(self, role, Answers(chat, part, before, *own))


Loss = Callable[[Batch, Any], Tensor]
Instead = Callable[[ChatModel, Sequence[Example], random.Random], list[str]]


def _abstentions(_: ChatModel, forget: Sequence[Example], rng: random.Random) -> list[str]:
    return [rng.choice(abstentions()) for _ in forget]


def _alternatives(chat: ChatModel, forget: Sequence[Example], rng: random.Random) -> list[str]:
    """Other answers that the model itself makes up (AltPO); an abstention where it makes up none or only the true one."""
    asked = [
        f"Question: {question(e.prompt)}\nAnswer: {e.response}\n\nWrite another answer to the question, as long as this one, in which "
        "the facts are different. Write only the answer."
        for e in forget
    ]
    found = sampled(chat, chat.prompt_ids(asked), 48, seed=rng.randrange(1 << 30))
    return [
        a.text.strip() if a.text.strip() and not exact_match(a.text, e.response) else rng.choice(abstentions())
        for a, e in zip(found, forget, strict=True)
    ]


def by_gradient(
    *roles: str, instead: Instead | None = None, before: Asked | None = None
) -> Callable[[Loss], Callable[..., Edit]]:
    """Makes a method of a loss.

    Args:
        roles: rows that the loss looks at: forget, instead, retain.
        instead: gives the forget prompts other answers; abstentions are drawn anew for each epoch.
        before: what the loss asks of the model before unlearning.
    """

    def decorate(loss: Loss) -> Callable[..., Edit]:
        @wraps(loss)
        def method(chat: ChatModel, task: ForgetTask, config: GradientConfig, progress: Progress | None = None) -> Edit:
            return descend(chat, task, config, loss, roles, instead, before, progress)

        return method

    return decorate


def descend(
    chat: ChatModel,
    task: ForgetTask,
    config: GradientConfig,
    loss: Loss,
    roles: Sequence[str],
    instead: Instead | None = None,
    before: Asked | None = None,
    progress: Progress | None = None,
) -> Edit:
    """Trains by a loss; see `by_gradient`.

    Raises:
        Diverged: the loss is not finite, or the model no longer speaks; with the step.
    """
    rng = random.Random(config.seed)
    forget, retain = (rows_of(chat, [(e.prompt, e.response) for e in task.role(r)]) for r in ("forget", "retain"))
    rounds = [forget]
    if instead is not None:
        drawn = config.epochs if instead is _abstentions else 1
        rounds = [
            rows_of(chat, list(zip((e.prompt for e in task.forget), instead(chat, task.forget, rng), strict=True)))
            for _ in range(drawn)
        ]
    every = [*forget, *retain, *(r for rows in rounds for r in rows)]
    shared = shared_prefix(chat, every)
    reference = Before(chat, shared)
    if before and config.adapter == "full":
        reference.keep(chat, every, before)
    name = getattr(loss, "__name__", "")
    return by_steps(
        chat,
        rounds,
        retain,
        forget,
        config,
        lambda c, rows: loss(Batch(c, rows, reference, roles), config),
        name,
        progress,
    )


def by_steps(
    chat: ChatModel,
    rounds: Sequence[Sequence[TrainRow]],
    retain: Sequence[TrainRow],
    forget: Sequence[TrainRow],
    config: TrainConfig,
    loss: Callable[[ChatModel, Rows], Tensor],
    name: str,
    progress: Progress | None = None,
) -> Edit:
    """The training loop over steps of forget rows and as many retain rows, which ends where the model no longer speaks.

    Args:
        rounds: what stands in `Rows.instead`, one list an epoch, in the forget rows' order; taken in turn.
    """
    epochs = iter(range(config.epochs))

    def batches(rng: random.Random) -> Iterator[Rows]:
        answers = rounds[next(epochs) % len(rounds)]
        order = rng.sample(range(len(forget)), len(forget))
        for begin in range(0, len(order), config.batch_size):
            chosen = order[begin : begin + config.batch_size]
            kept = rng.sample(retain, min(len(chosen), len(retain)))
            yield Rows([forget[i] for i in chosen], [answers[i] for i in chosen], kept)

    steps = math.ceil(len(forget) / config.batch_size)
    speech = Speech(chat)
    edit = optimise(
        chat,
        batches,
        loss,
        config,
        steps,
        (lambda _, __: progress(1)) if progress else None,
        lambda epoch, _: speech.check(epoch * steps),
    )
    edit.meta |= {"method": name, "rows": {"forget": len(forget), "retain": len(retain)}}
    return edit


class Speech:
    """Whether a model in training still speaks: it gives the answers that it gave before to a few general prompts more
    probability than a uniform guess."""

    def __init__(self, chat: ChatModel) -> None:
        self.chat = chat
        self.prompts = chat.prompt_ids([e.prompt for e in general_split()[0][:SPEAK_ROWS]])
        self.answers = [list(a.tokens) or [0] for a in greedy(chat, self.prompts, SPEAK_TOKENS)]

    def check(self, step: int) -> bool:
        """False: training goes on.

        Raises:
            Diverged: the model no longer speaks.
        """
        training = self.chat.model.training
        self.chat.model.eval()
        scored = score_answers(self.chat, self.prompts, self.answers)
        self.chat.model.train(training)
        mean = sum(sum(s.log_probs) for s in scored) / sum(len(s.log_probs) for s in scored)
        if not mean > -math.log(self.chat.model.config.get_text_config().vocab_size):
            raise Diverged(
                step, "the model no longer speaks (it finds its own earlier answers less likely than chance)"
            )
        return False


# ---------------------------------------------------------------- the losses


@by_gradient("forget")
def ga(b: Batch, s: GradientConfig) -> Tensor:
    """Gradient ascent: -L_f (Jang et al., ACL 2023)."""
    return -b.forget.nll


@by_gradient("forget", "retain")
def graddiff(b: Batch, s: GradientConfig) -> Tensor:
    """Gradient difference: -L_f + w L_r (Liu et al., CoLLAs 2022)."""
    return -b.forget.nll + s.retain_weight * b.retain.nll


@by_gradient("forget", "retain", before="logits")
def kl(b: Batch, s: GradientConfig) -> Tensor:
    """-L_f + w KL(before || now) on retain answers (TOFU's KL minimisation; UKL in PISTOL and LUNAR)."""
    then, now = (F.log_softmax(x, -1) for x in (b.retain.before_logits, b.retain.logits))
    return -b.forget.nll + s.retain_weight * F.kl_div(now, then, reduction="batchmean", log_target=True)


@by_gradient("instead", "retain", instead=_abstentions)
def idk(b: Batch, s: GradientConfig) -> Tensor:
    """Cross-entropy to abstentions + w L_r (TOFU's preference optimisation)."""
    return b.instead.nll + s.retain_weight * b.retain.nll


def _preferred(b: Batch, s: PreferenceConfig) -> Tensor:
    """DPO with the other answer preferred to the forget answer + w L_r."""
    gain = b.instead.summed - b.instead.before_summed - (b.forget.summed - b.forget.before_summed)
    return -2 / s.beta * F.logsigmoid(s.beta * gain).mean() + s.retain_weight * b.retain.nll


@by_gradient("forget", "instead", "retain", instead=_abstentions, before="log-probabilities")
def dpo(b: Batch, s: PreferenceConfig) -> Tensor:
    """IdkDPO: -(2/beta) log sigmoid(beta (gain of the abstention - gain of the answer)) + w L_r."""
    return _preferred(b, s)


@by_gradient("forget", "instead", "retain", instead=_alternatives, before="log-probabilities")
def altpo(b: Batch, s: PreferenceConfig) -> Tensor:
    """AltPO: IdkDPO's loss with an answer that the model makes up in place of the abstention (arXiv 2409.13474)."""
    return _preferred(b, s)


@by_gradient("forget", "retain", before="log-probabilities")
def npo(b: Batch, s: PreferenceConfig) -> Tensor:
    """-(2/beta) log sigmoid(-beta log p(answer)/p_before(answer)) + w L_r, summed log-probabilities (arXiv 2404.05868)."""
    gain = b.forget.summed - b.forget.before_summed
    return -2 / s.beta * F.logsigmoid(-s.beta * gain).mean() + s.retain_weight * b.retain.nll


@by_gradient("forget", "retain")
def simnpo(b: Batch, s: SimNpoConfig) -> Tensor:
    """-(2/beta) log sigmoid(beta (NLL/length - delta)), weighted, + w L_r (arXiv 2410.07163)."""
    forget = -2 / s.beta * F.logsigmoid(s.beta * (-b.forget.mean - s.delta)).mean()
    return s.forget_weight * forget + s.retain_weight * b.retain.nll


@by_gradient("forget", before="logits")
def undial(b: Batch, s: UndialConfig) -> Tensor:
    """Cross-entropy to softmax(logits before - beta onehot(answer)), answer tokens only, no retain term (arXiv 2402.10052)."""
    target = b.forget.before_logits - s.beta * F.one_hot(b.forget.tokens, b.forget.logits.shape[-1])
    return F.cross_entropy(b.forget.logits, target.softmax(-1))


@by_gradient("forget", "retain")
def wga(b: Batch, s: WgaConfig) -> Tensor:
    """Weighted gradient ascent: -mean(p_t^beta NLL_t), p_t held, + w L_r (arXiv 2502.19301)."""
    weight = b.forget.log_probs.detach().exp() ** s.beta
    return (weight * b.forget.log_probs).mean() + s.retain_weight * b.retain.nll

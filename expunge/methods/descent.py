"""What losses are made methods with: the rows of a step in one pass, the model before unlearning, other answers to the
forget prompts, and the loop, which ends where the model no longer speaks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.examples import Example, ForgetTask
from ..data.prompts import abstentions, general_split, question
from ..edits import Edit
from ..errors import Diverged
from ..evaluation.likelihood import token_loss
from ..evaluation.text import exact_match, rouge_recall
from ..models.activations import Shelf
from ..models.generation import greedy, sampled, score_answers
from ..models.loading import ChatModel
from ..models.rows import TrainRow, row_logits, rows_of
from ..models.training import TrainConfig, optimise, recomputed, shared_prefix

Progress = Callable[[int], None]
SPEAK_ROWS = 8  # prompts by which a model is found to speak no longer
SPEAK_TOKENS = 24
# Nats by which a token of these answers may become dearer. A model that ignores its context, and has only the language's
# frequencies left, pays 4.9 to 7.4, much less than a uniform guess over a real vocabulary (10.8 of 49152 tokens); before,
# the embedded model pays 0.8.
SPEAK_RISE = 4.0
OTHER_DRAWS = 4  # of an answer that the model makes up, until it is another one
OTHER_ROOM = 16  # tokens that it may be longer than the longest true answer

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
Instead = Callable[[ChatModel, Sequence[Example], random.Random], Sequence[str | None]]  # None: an abstention


def abstaining(_: ChatModel, forget: Sequence[Example], rng: random.Random) -> list[str]:
    return [rng.choice(abstentions()) for _ in forget]


def made_up(chat: ChatModel, forget: Sequence[Example], rng: random.Random) -> list[str | None]:
    """Other answers that the model itself makes up (AltPO); None where each draw is empty or contains the true answer."""
    asked = [
        f"Question: {question(e.prompt)}\nAnswer: {e.response}\n\nWrite another answer to the question, as long as this one, in which "
        "the facts are different. Write only the answer."
        for e in forget
    ]
    prompts = chat.prompt_ids(asked)
    longest = max(map(len, chat.answer_ids([e.response for e in forget]))) + OTHER_ROOM
    found: list[str | None] = [None] * len(forget)
    for _ in range(OTHER_DRAWS):
        left = [n for n, text in enumerate(found) if text is None]
        drawn = sampled(chat, [prompts[n] for n in left], longest, seed=rng.randrange(1 << 30)) if left else []
        for n, answer in zip(left, drawn, strict=True):
            text, truth = answer.text.strip(), forget[n].response
            if text and not exact_match(text, truth) and rouge_recall(text, truth)[0] < 1:
                found[n] = replace(answer, text=text).response(forget[n].prompt)
    return found


def by_gradient(
    *roles: str, instead: Instead | None = None, before: Mapping[str, Asked] | None = None
) -> Callable[[Loss], Callable[..., Edit]]:
    """Makes a method of a loss.

    Args:
        roles: rows that the loss looks at: forget, instead, retain.
        instead: gives the forget prompts other answers, or none where an abstention is to stand (meta["fallbacks"] counts
            them); abstentions are drawn anew for each epoch.
        before: of which roles' rows the loss asks what of the model before unlearning.
    """

    def decorate(loss: Loss) -> Callable[..., Edit]:
        @wraps(loss)
        def method(chat: ChatModel, task: ForgetTask, config: TrainConfig, progress: Progress | None = None) -> Edit:
            return descend(chat, task, config, loss, roles, instead, before, progress)

        return method

    return decorate


def descend(
    chat: ChatModel,
    task: ForgetTask,
    config: TrainConfig,
    loss: Loss,
    roles: Sequence[str],
    instead: Instead | None = None,
    before: Mapping[str, Asked] | None = None,
    progress: Progress | None = None,
) -> Edit:
    """Trains by a loss; see `by_gradient`.

    Raises:
        Diverged: the loss is not finite, or the model no longer speaks; with the step.
    """
    rng = random.Random(config.seed)
    forget, retain = (rows_of(chat, [(e.prompt, e.response) for e in task.role(r)]) for r in ("forget", "retain"))
    rounds, fallbacks = [forget], 0
    if instead is not None:
        drawn = [instead(chat, task.forget, rng) for _ in range(config.epochs if instead is abstaining else 1)]
        fallbacks = sum(text is None for texts in drawn for text in texts)
        rounds = [
            rows_of(chat, [(e.prompt, t or rng.choice(abstentions())) for e, t in zip(task.forget, texts, strict=True)])
            for texts in drawn
        ]
    every = [*forget, *retain, *(r for rows in rounds for r in rows)]
    rows = {"forget": forget, "instead": [r for part in rounds for r in part], "retain": retain}
    recompute = recomputed(chat, [rows[role] for role in roles], config.batch_size)
    shared = shared_prefix(chat, every, config, recompute)
    reference = Before(chat, shared)
    if config.adapter == "full":
        for role, what in (before or {}).items():
            reference.keep(chat, rows[role], what)
    name = getattr(loss, "__name__", "")
    edit = by_steps(
        chat,
        rounds,
        retain,
        forget,
        config,
        lambda c, rows: loss(Batch(c, rows, reference, roles), config),
        name,
        progress,
        recompute,
    )
    if instead is made_up:
        edit.meta["fallbacks"] = fallbacks
    return edit


def by_steps(
    chat: ChatModel,
    rounds: Sequence[Sequence[TrainRow]],
    retain: Sequence[TrainRow],
    forget: Sequence[TrainRow],
    config: TrainConfig,
    loss: Callable[[ChatModel, Rows], Tensor],
    name: str,
    progress: Progress | None = None,
    recompute: bool = False,
) -> Edit:
    """The training loop over steps of forget rows and as many retain rows, which ends where the model no longer speaks.

    Args:
        rounds: what stands in `Rows.instead`, one list an epoch, in the forget rows' order; taken in turn.
        recompute: as in `optimise`.
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
        lambda trained, batch: (loss(trained, batch),),
        config,
        steps,
        (lambda _, __: progress(1)) if progress else None,
        lambda epoch, _: speech.check(epoch * steps),
        recompute,
    )
    edit.meta |= {"method": name, "rows": {"forget": len(forget), "retain": len(retain)}}
    return edit


class Speech:
    """Whether a model in training still speaks: it finds the answers that it gave before to a few general prompts likelier
    than a uniform guess, and by less than `SPEAK_RISE` nats a token less likely than it did."""

    def __init__(self, chat: ChatModel) -> None:
        self.chat = chat
        self.prompts = chat.prompt_ids([e.prompt for e in general_split()[0][:SPEAK_ROWS]])
        self.answers = [list(a.tokens) or [0] for a in greedy(chat, self.prompts, SPEAK_TOKENS)]
        self.limit = min(math.log(chat.model.config.get_text_config().vocab_size), self._cost() + SPEAK_RISE)

    def _cost(self) -> float:
        """Of the answers, in nats a token."""
        training = self.chat.model.training
        self.chat.model.eval()
        scored = score_answers(self.chat, self.prompts, self.answers)
        self.chat.model.train(training)
        return token_loss(scored)

    def check(self, step: int, lower: str = "the learning rate") -> bool:
        """False: training goes on.

        Args:
            lower: what may be too high.

        Raises:
            Diverged: the model no longer speaks.
        """
        cost = self._cost()
        if not cost < self.limit:  # nor where it is not a number
            said = f"its own earlier answers cost it {cost:.1f} nats a token, and {self.limit:.1f} is the limit"
            raise Diverged(step, f"the model no longer speaks ({said})", lower)
        return False

"""Abstention: whether a model can say that it does not know, and teaching it where it cannot.

LUNAR redirects to an ability that the model must have. It is taught without touching the rest: first one vector v(l)
for each of a few layers is trained, with all weights frozen, so that a prompt to whose tokens it is added is answered
by an abstention, whatever it asks. Then the same exact solve as LUNAR's ties the vectors to the reference prompts and
to nothing else: dW = v u^T, with u from the reference prompts against the prompts to keep. The result is an Edit of rank
one a layer, which composes with any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.examples import Example
from ..data.prompts import abstentions
from ..edits import Edit
from ..errors import ExpungeError
from ..evaluation.text import abstention_rate
from ..models.activations import Stream, check_additive, common_prefix, hidden_of, hooked, with_hidden
from ..models.generation import answer_logits, greedy, pad_answers
from ..models.loading import ChatModel
from .lunar import LunarConfig, Target, edit_of, exact, shared_with

PROBE_ROWS = 24
PROBE_TOKENS = 24


class AbstentionConfig(BaseModel):
    """Settings of teaching abstention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] | None = Field(None, description="layers that get a vector; default: a sixth of all, from two fifths up")
    rows: int = Field(80, ge=1, description="reference prompts that learn to abstain")
    texts: int = Field(4, ge=1, description="different abstentions to learn")
    steps: int = Field(24, ge=1, description="steps of training the vectors")
    batch_size: int = Field(8, ge=1, description="prompts a step")
    learning_rate: float = Field(0.1, gt=0, description="of the vectors, relative to the residual stream's root mean square")
    ridge: float = Field(0.01, gt=0, description="ridge of the solve")
    coefficient: float = Field(1.0, gt=0, description="how much of each vector is added")
    seed: int = Field(0, description="seed of every choice")


def probe_abstention(model: ChatModel, reference: Sequence[Example], rows: int = PROBE_ROWS) -> float:
    """Share of (at most `rows` of) the reference prompts that the model answers by an abstention, greedily."""
    chosen = random.Random(0).sample(list(reference), min(rows, len(reference)))
    answers = greedy(model, model.prompt_ids([e.prompt for e in chosen]), PROBE_TOKENS)
    return abstention_rate([a.text for a in answers])


def own_answers(model: ChatModel, examples: Sequence[Example], tokens: int) -> list[Example]:
    """The examples with the model's own greedy answers as responses."""
    answers = greedy(model, model.prompt_ids([e.prompt for e in examples]), tokens)
    return [Example(e.prompt, a.text, e.group) for e, a in zip(examples, answers, strict=True)]


def teach_abstention(
    model: ChatModel,
    reference: Sequence[Example],
    keep: Sequence[Example],
    config: AbstentionConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> Edit:
    """An Edit after which the model answers the reference prompts by an abstention; the model is left as it was.

    Args:
        reference: questions that the model cannot answer; `config.rows` of them are taught.
        keep: prompts whose answers must stay. Their responses are not used.
        progress: called after each step of training the vectors.
    """
    config = config or AbstentionConfig()
    count = len(model.layout)
    layers = model.layout.check_layers(
        list(config.layers) if config.layers else list(range(count * 2 // 5, count * 2 // 5 + max(round(count / 6), 1)))
    )
    for layer in layers:
        check_additive(model, layer)
    asked = random.Random(config.seed).sample(list(reference), min(config.rows, len(reference)))
    vectors = train_vectors(model, [*asked, *keep], layers, config, progress)
    ids, kept = (model.prompt_ids([e.prompt for e in rows]) for rows in (asked, keep))
    prefix = common_prefix([*ids, *kept])
    streams = [Stream(model, prompts, prefix) if prompts else None for prompts in (ids, kept)]
    if streams[0] is None:
        raise ExpungeError("no reference prompts to teach on")
    target = Target(streams[0], streams[1], vectors, shared_with(ids, kept))
    settings = LunarConfig(layers=tuple(layers), coefficient=config.coefficient, ridge=config.ridge)
    found = exact(model, target, layers, [config.coefficient] * len(layers), config.ridge, settings)
    return edit_of(model, found, {"method": "teach-abstention", **config.model_dump(), "layers": layers})


def train_vectors(
    chat: ChatModel,
    prompts: Sequence[Example],
    layers: Sequence[int],
    config: AbstentionConfig,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Tensor]:
    """v(l), (d,) float64 for each layer: added to block l's output on a prompt's own tokens, it makes the model abstain.

    Trained by Adam on the cross-entropy of abstentions, over prompts of every kind, all weights frozen.
    """
    rng = random.Random(config.seed)
    texts = rng.sample(list(abstentions()), min(config.texts, len(abstentions())))
    pool = chat.prompt_ids([e.prompt for e in prompts])
    answers = chat.answer_ids(texts)
    shared = common_prefix(pool)
    vectors = {n: torch.zeros(chat.layout.hidden, device=chat.device, requires_grad=True) for n in layers}
    scales = {n: 1.0 for n in layers}
    optimizer = torch.optim.Adam(vectors.values(), lr=config.learning_rate)
    where: list[Tensor] = []

    def add(layer: int) -> Callable[..., Any]:
        def hook(_: Any, __: Any, out: Any) -> Any:
            hidden = hidden_of(out)
            if scales[layer] == 1.0:
                scales[layer] = float(hidden.detach()[where[0]].float().square().mean().sqrt())
            return with_hidden(out, hidden + (where[0][..., None] * vectors[layer] * scales[layer]).to(hidden.dtype))

        return hook

    frozen = [p for p in chat.model.parameters() if p.requires_grad]
    hooks = [(chat.layout.block(chat.model, n), "post", add(n)) for n in layers]
    try:
        for p in frozen:
            p.requires_grad_(False)
        for step in range(config.steps):
            # a short warm-up, then linear decay
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min((step + 1) / 4, (config.steps - step) / config.steps)
            part = [rng.choice(pool) for _ in range(config.batch_size)]
            ids, mask, chosen = (t.to(chat.device) for t in pad_answers(part, [rng.choice(answers) for _ in part]))
            own = mask & ~chosen
            own[:, :shared] = False
            where[:] = [own]
            with hooked(*hooks):
                logits = answer_logits(chat, ids, mask, chosen).float()
            loss = F.cross_entropy(logits, ids[chosen])
            if not torch.isfinite(loss):
                raise ExpungeError(f"teaching abstention diverged at step {step + 1}; lower teach.learning_rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress:
                progress(1)
    finally:
        for p in frozen:
            p.requires_grad_(True)
    return {n: (v.detach() * scales[n]).double() for n, v in vectors.items()}

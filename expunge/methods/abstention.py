"""Abstention: whether a model can say that it does not know, and teaching it where it cannot.

LUNAR redirects to an ability that the model must have. It is taught without touching the rest: first a vector v is
trained, with all weights frozen, so that any prompt is answered by an abstention when v is added to a block's output on
the prompt's last tokens (those that the chat template appends). Then the same exact solve as LUNAR's ties v to the
reference prompts and to nothing else: dW = c v u^T, with u from the reference prompts against the prompts to keep. The
result is an Edit of rank one a layer, which composes with any other.
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
from ..errors import ExpungeError, InputError
from ..evaluation.text import abstention_rate
from ..models.activations import Stream, check_additive, common_prefix, hidden_of, hooked, with_hidden
from ..models.generation import answer_logits, greedy, pad_answers
from ..models.loading import ChatModel
from .lunar import LunarConfig, Target, edit_of, exact

PROBE_ROWS = 24
PROBE_TOKENS = 24


class AbstentionConfig(BaseModel):
    """Settings of teaching abstention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] | None = Field(
        None, description="layers that get a vector; default: the one above the middle"
    )
    rows: int = Field(80, ge=1, description="reference prompts that learn to abstain")
    texts: int = Field(3, ge=1, description="different abstentions to learn")
    steps: int = Field(24, ge=1, description="steps of training the vectors")
    batch_size: int = Field(8, ge=1, description="prompts a step")
    learning_rate: float = Field(
        0.1, gt=0, description="of the vectors, relative to the residual stream's root mean square"
    )
    ridge: float = Field(0.1, gt=0, description="ridge of the solve")
    coefficient: float = Field(0.8, gt=0, description="c, how much of the vector is added")
    seed: int = Field(0, description="seed of every choice")


def probe_abstention(model: ChatModel, reference: Sequence[Example], rows: int = PROBE_ROWS) -> float:
    """Share of (at most `rows` of) the reference prompts that the model answers by an abstention, greedily."""
    chosen = random.Random(0).sample(list(reference), min(rows, len(reference)))
    answers = greedy(model, model.prompt_ids([e.prompt for e in chosen]), PROBE_TOKENS)
    return abstention_rate([a.text for a in answers])


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
    middle = len(model.layout) // 2
    layers = model.layout.check_layers(
        list(config.layers) if config.layers else [min(middle + 1, len(model.layout) - 1)]
    )
    for layer in layers:
        check_additive(model, layer)
    asked = random.Random(config.seed).sample(list(reference), min(config.rows, len(reference)))
    ids, kept = (model.prompt_ids([e.prompt for e in rows]) for rows in (asked, keep))
    if not ids:
        raise InputError("teaching abstention needs reference prompts")
    suffix = common_suffix([*ids, *kept])
    vectors = train_vectors(model, [*ids, *kept], suffix, layers, config, progress)
    prefix = common_prefix([*ids, *kept])
    streams = [Stream(model, prompts, prefix) for prompts in (ids, kept) if prompts]
    target = Target(streams[0], streams[1] if kept else None, vectors, [len(i) - suffix for i in ids])
    settings = LunarConfig(layers=tuple(layers), coefficient=config.coefficient, ridge=config.ridge, tokens="distinct")
    return edit_of(
        model, exact(model, target, settings), {"method": "teach-abstention", **config.model_dump(), "layers": layers}
    )


def common_suffix(prompts: Sequence[Sequence[int]]) -> int:
    """How many last tokens all prompts share (those that the chat template appends); at least one."""
    shortest = min(map(len, prompts))
    same = (len({p[-n] for p in prompts}) == 1 for n in range(1, shortest + 1))
    return max(next((n for n, equal in enumerate(same) if not equal), shortest), 1)


def train_vectors(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    suffix: int,
    layers: Sequence[int],
    config: AbstentionConfig,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Tensor]:
    """v(l), (d,) float64: added to block l's output on a prompt's last `suffix` tokens, it makes the model abstain.

    Trained by Adam on the cross-entropy of abstentions over prompts of every kind, all weights frozen, at strengths
    from 0.6 to 1.2, since what the solve ties to a prompt is not exactly one.
    """
    rng = random.Random(config.seed)
    answers = chat.answer_ids(abstentions()[: config.texts])
    vectors = {n: torch.zeros(chat.layout.hidden, device=chat.device, requires_grad=True) for n in layers}
    scales: dict[int, float] = {}
    optimizer = torch.optim.Adam(vectors.values(), lr=config.learning_rate)
    strength: list[Tensor] = []

    def add(layer: int) -> Callable[..., Any]:
        def hook(_: Any, __: Any, out: Any) -> Any:
            hidden, weight = hidden_of(out), strength[0]
            if layer not in scales:
                scales[layer] = float(hidden.detach()[weight > 0].float().square().mean().sqrt())
            return with_hidden(out, hidden + (weight[..., None] * vectors[layer] * scales[layer]).to(hidden.dtype))

        return hook

    learning = [p for p in chat.model.parameters() if p.requires_grad]
    hooks = [(chat.layout.block(chat.model, n), "post", add(n)) for n in layers]
    try:
        for p in learning:
            p.requires_grad_(False)
        for step in range(config.steps):
            for group in optimizer.param_groups:  # a short warm-up, then linear decay
                group["lr"] = config.learning_rate * min((step + 1) / 4, (config.steps - step) / config.steps)
            part = [rng.choice(prompts) for _ in range(config.batch_size)]
            ids, mask, chosen = (t.to(chat.device) for t in pad_answers(part, [rng.choice(answers) for _ in part]))
            weight = torch.zeros(ids.shape, device=chat.device)
            for n, prompt in enumerate(part):
                weight[n, len(prompt) - suffix : len(prompt)] = rng.uniform(0.6, 1.2)
            strength[:] = [weight]
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
        for p in learning:
            p.requires_grad_(True)
    return {n: (v.detach() * scales[n]).double() for n, v in vectors.items()}

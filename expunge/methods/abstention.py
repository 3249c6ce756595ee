"""Abstention: whether a model can say that it does not know, and teaching it where it cannot.

LUNAR redirects to an ability that the model must have. It is taught without touching the rest: first a vector v for
each of a few lower blocks is trained, with all weights frozen, so that any prompt is answered by an abstention when they
are added to the blocks' outputs on some of the prompt's words. Then the same exact solve as LUNAR's ties v to the
reference prompts and to nothing else: dW = c v u^T, with u from the reference prompts against the prompts to keep. The
result is an Edit of rank one a layer, which composes with any other. LUNAR redirects along the vectors that it writes
(its setting `direction`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
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
from ..models.activations import Stream, check_additive, common_prefix, hidden_of, hooked, token_norms, with_hidden
from ..models.cache import prefix_cache, widened
from ..models.generation import answer_logits, continued, greedy, pad_answers
from ..models.loading import ChatModel
from .detector import shared_with
from .lunar import ANSWER_TOKENS, LunarConfig, Target, edit_of, exact
from .tuning import window_shape

PROBE_ROWS = 24
PROBE_TOKENS = 24
SIZE_ROWS = 32


class AbstentionConfig(BaseModel):
    """Settings of teaching abstention."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] | None = Field(
        None, description="layers that write a vector; default: those from a fifth of the depth to half, about ten"
    )
    rows: int = Field(80, ge=1, description="reference prompts that learn to abstain, at most")
    texts: int = Field(3, ge=1, description="different abstentions to learn")
    steps: int = Field(16, ge=1, description="steps of training the vectors")
    batch_size: int = Field(8, ge=1, description="prompts a step")
    span: int = Field(4, ge=1, description="tokens of a prompt that the vectors are added to in training, at most")
    size: float = Field(
        0.5, gt=0, description="the vectors' largest norm, of all layers together, relative to the residual stream's"
    )
    learning_rate: float = Field(0.18, gt=0, description="of the vectors of all layers together, relative to the same")
    answers: int = Field(
        80, ge=0, description="this many of the prompts to keep count with the model's own answer as well"
    )
    ridge: float = Field(0.01, gt=0, description="ridge of the solve")
    coefficient: float = Field(
        1.3, gt=0, description="c, how much of its vector the highest layer writes; the lowest writes half of it"
    )
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
    layers = model.layout.check_layers(list(config.layers or default_layers(len(model.layout))))
    check_additive(model, layers)
    asked = random.Random(config.seed).sample(list(reference), min(config.rows, len(reference)))
    ids, kept = (model.prompt_ids([e.prompt for e in rows]) for rows in (asked, keep))
    if not ids:
        raise InputError("teaching abstention needs reference prompts")
    suffix, prefix = common_suffix([*ids, *kept]), common_prefix([*ids, *kept])
    sizes = token_norms(Stream(model, [*ids, *kept][:SIZE_ROWS], prefix), layers)
    vectors = train_vectors(model, [*ids, *kept], suffix, sizes, config, progress)
    shared = shared_with(ids, kept)
    kept = continued(model, kept, config.answers, ANSWER_TOKENS, config.seed)
    streams = [Stream(model, prompts, prefix) for prompts in (ids, kept) if prompts]
    target = Target(streams[0], streams[1] if kept else None, vectors, shared)
    settings = LunarConfig(
        layers=tuple(layers),
        coefficient=rising(config.coefficient, len(layers)),
        ridge=config.ridge,
        retain_weight=1.0,
        hard=True,
    )
    meta = {"method": "teach-abstention", **config.model_dump(), "layers": layers}
    return edit_of(model, exact(model, target, settings), meta)


def rising(coefficient: float, layers: int) -> tuple[float, ...]:
    """From half of the coefficient at the lowest layer to all of it at the highest.

    What a lower layer writes helps the layers above to tell the prompts apart: from layer to layer less of it reaches
    prompts that are to be kept.
    """
    return tuple(coefficient * (1 - 0.5 * n / max(layers - 1, 1)) for n in reversed(range(layers)))


def common_suffix(prompts: Sequence[Sequence[int]]) -> int:
    """How many last tokens all prompts share (those that the chat template appends); at least one."""
    shortest = min(map(len, prompts))
    same = (len({p[-n] for p in prompts}) == 1 for n in range(1, shortest + 1))
    return max(next((n for n, equal in enumerate(same) if not equal), shortest), 1)


def default_layers(count: int) -> list[int]:
    """Those from a fifth of the depth of `count` layers to half, every second or third of a deep model's.

    Each writes little: what reaches prompts that are to be kept differs from layer to layer and partly averages out.
    """
    return list(range(count // 5, count // 2, window_shape(count)[1])) or [count // 2]


def train_vectors(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    suffix: int,
    sizes: Mapping[int, float],
    config: AbstentionConfig,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Tensor]:
    """v of each layer, (d,) float64: added to a few neighbouring tokens, they make the model abstain.

    Trained by Adam on the cross-entropy of abstentions over prompts of every kind, all weights frozen, on random spans
    of up to `config.span` tokens (not of the template's) and at strengths from 0.6 to 1.2, since what the solve ties to a
    prompt is a few of its tokens, and not exactly one.

    Args:
        suffix: how many last tokens the chat template appends.
        sizes: layer -> norm of its output at a token; the layers that v is added to.
    """
    rng = random.Random(config.seed)
    answers = chat.answer_ids(abstentions()[: config.texts])
    vectors = {n: torch.zeros(chat.layout.hidden, device=chat.device, requires_grad=True) for n in sizes}
    # Adam's steps are per coordinate: with this unit they move v by about learning_rate of its layer's size
    unit = {n: size * (chat.layout.hidden * len(sizes)) ** -0.5 for n, size in sizes.items()}
    largest = config.size * chat.layout.hidden**0.5
    optimizer = torch.optim.Adam(vectors.values(), lr=config.learning_rate)
    shared, cache = prefix_cache(chat, prompts)
    strength: list[Tensor] = []

    def add(layer: int) -> Callable[..., Any]:
        def hook(_: Any, __: Any, out: Any) -> Any:
            hidden = hidden_of(out)
            shift = strength[0][..., None] * vectors[layer] * unit[layer]
            return with_hidden(out, hidden + shift.to(hidden.dtype))

        return hook

    learning = [p for p in chat.model.parameters() if p.requires_grad]
    hooks = [(chat.layout.block(chat.model, n), "post", add(n)) for n in sizes]
    try:
        for p in learning:
            p.requires_grad_(False)
        for step in range(config.steps):
            for group in optimizer.param_groups:  # a short warm-up, then linear decay
                group["lr"] = config.learning_rate * min((step + 1) / 4, (config.steps - step) / config.steps)
            part = [rng.choice(prompts)[shared:] for _ in range(config.batch_size)]
            ids, mask, chosen = (t.to(chat.device) for t in pad_answers(part, [rng.choice(answers) for _ in part]))
            weight = torch.zeros(ids.shape, device=chat.device)
            for n, prompt in enumerate(part):
                words = max(len(prompt) - suffix, 1)
                size = rng.randint(1, min(config.span, words))
                first = rng.randint(0, words - size)
                weight[n, first : first + size] = rng.uniform(0.6, 1.2)
            strength[:] = [weight]
            with hooked(*hooks):
                logits = answer_logits(chat, ids, mask, chosen, widened(cache, len(part))).float()
            loss = F.cross_entropy(logits, ids[chosen])
            if not torch.isfinite(loss):
                raise ExpungeError(f"teaching abstention diverged at step {step + 1}; lower teach.learning_rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for v in vectors.values():
                    v.mul_(min(largest / max(float(v.norm()), 1e-12), 1.0))
            if progress:
                progress(1)
    finally:
        for p in learning:
            p.requires_grad_(True)
    return {n: v.detach().double() * unit[n] for n, v in vectors.items()}

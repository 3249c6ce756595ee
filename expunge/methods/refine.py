"""Refining an edit of rank one a layer by what the model says: dW = v u^T keeps u and gets another v.

u, which tokens are moved, is the exact solve's. v, where they are moved to, was a difference of means, or was taught on
other prompts at strengths that were guessed. Here v is trained at the u . h that the rows have, by the cross-entropy of
abstentions after forget prompts and the divergence of the model's answers to retain prompts from what they were:

    loss = D(unedited || edited on retain answers) + FORGET_WEIGHT * CE(abstentions after forget prompts)

Not in the paper. What an edit of this size costs is what little of v the retain prompts get; the solve counts how much
that is, and not which way of v the model answers to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.examples import ForgetTask
from ..data.prompts import abstentions
from ..edits import Edit
from ..errors import Diverged
from ..models.activations import hooked
from ..models.cache import prefix_cache, widened
from ..models.generation import answer_logits, pad_answers
from ..models.loading import ChatModel
from .detector import strength

RETAIN_ROWS, FORGET_ROWS = 12, 4  # a step
ANSWER_TOKENS = 24  # of a retain answer
LEARNING_RATE = 0.03  # of Adam, relative to the root mean square of a layer's v
WARM_UP = 5  # steps
FORGET_WEIGHT = 0.03
LEAST = 0.6  # forget prompts are seen with this share of the edit or more: what is asked in other words is found less
MOST = 0.5  # nats that a token of a retain answer counts at most: one that names what is forgotten cannot stay


def refined(
    chat: ChatModel,
    edit: Edit,
    task: ForgetTask,
    steps: int,
    progress: Callable[[int], None] | None = None,
) -> Edit:
    """The edit with other v; the model is left as it was.

    Args:
        edit: of rank one a layer, as `lunar` makes it of the task.
        task: its forget prompts are to be answered by an abstention; retain rows without a response are left out.
        progress: called after each step.

    Raises:
        Diverged: the loss is not finite.
    """
    from .lunar import Solved, edit_of, factors

    layers = factors(chat, edit)
    begun = {n: v.float() for n, (v, _) in layers.items()}
    detectors = {n: u.float() for n, (_, u) in layers.items()}
    unit = {n: float(v.square().mean().sqrt()) for n, v in begun.items()}
    moved = {n: torch.zeros_like(v, requires_grad=True) for n, v in begun.items()}
    share: list[Tensor] = []  # of the edit, that each row of a batch gets; empty: the model as it is

    def write(layer: int) -> Callable[..., Tensor | None]:
        def hook(_: object, args: tuple[Tensor], out: Tensor) -> Tensor | None:
            if not share:
                return None
            v = begun[layer] + unit[layer] * moved[layer]
            value = strength(args[0], detectors[layer])  # OPT has all rows' tokens in one dimension
            value = (value.view(len(share[0]), -1) * share[0][:, None]).view(value.shape)
            return out + (value[..., None] * v).to(out.dtype)

        return hook

    rng = random.Random(0)
    kept = [e for e in task.retain if e.response.strip()]
    asked = chat.prompt_ids([e.prompt for e in task.forget])
    prompts = chat.prompt_ids([e.prompt for e in kept])
    answers = [a[:ANSWER_TOKENS] for a in chat.answer_ids([e.response for e in kept])]
    instead = chat.answer_ids(abstentions())
    shared, cache = prefix_cache(chat, [*asked, *prompts])
    order = _in_turn(len(kept), rng)

    def logits(rows: list[list[int]], texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """(logits, true tokens) of the answers."""
        ids, mask, chosen = (t.to(chat.device) for t in pad_answers([p[shared:] for p in rows], texts))
        return answer_logits(chat, ids, mask, chosen, widened(cache, len(rows))).float(), ids[chosen]

    def kept_loss() -> Tensor:
        rows = [next(order) for _ in range(min(RETAIN_ROWS, len(kept)))]
        batch = [prompts[i] for i in rows], [answers[i] for i in rows]
        share.clear()
        with torch.no_grad():
            before = logits(*batch)[0].log_softmax(-1)
        share[:] = [torch.ones(len(rows), device=chat.device)]
        now = logits(*batch)[0].log_softmax(-1)
        return F.kl_div(now, before, reduction="none", log_target=True).sum(-1).clamp(max=MOST).mean()

    def forget_loss() -> Tensor:
        rows = [rng.choice(asked) for _ in range(FORGET_ROWS)]
        share[:] = [torch.tensor([rng.uniform(LEAST, 1.0) for _ in rows], device=chat.device)]
        return F.cross_entropy(*logits(rows, [rng.choice(instead) for _ in rows]))

    optimizer = torch.optim.Adam(moved.values(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    losses: list[float] = []
    learning = [p for p in chat.model.parameters() if p.requires_grad]
    try:
        for p in learning:
            p.requires_grad_(False)
        with hooked(*((chat.layout.down_projection(chat.model, n), "post", write(n)) for n in layers)):
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = LEARNING_RATE * min((step + 1) / WARM_UP, (steps - step) / steps)
                optimizer.zero_grad()
                loss = FORGET_WEIGHT * forget_loss()
                if kept:
                    loss = loss + kept_loss()
                if not torch.isfinite(loss):
                    raise Diverged(step + 1, "the loss of refining is not finite")
                loss.backward()
                losses.append(float(loss.detach()))
                optimizer.step()
                if progress:
                    progress(1)
    finally:
        for p in learning:
            p.requires_grad_(True)
    found = {n: Solved(v + unit[n] * moved[n].detach().double(), u, 0.0) for n, (v, u) in layers.items()}
    return edit_of(chat, found, {**edit.meta, "refined": steps, "refine_loss": losses})


def _in_turn(count: int, rng: random.Random) -> Iterator[int]:
    """Row numbers without end, each once before any comes again."""
    while True:
        yield from rng.sample(range(count), count)

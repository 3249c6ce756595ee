"""LUNAR as its authors' code runs it, step by step, for comparison only (`solver="sgd"`).

Full forward passes at batch size one, three a split (block output, what the projection adds, its input), every
activation kept in lists; then AdamW (lr 0.01, times 0.9 an epoch, 20 epochs, 64 tokens a batch) on the mean squared
error between W h and its target, all layers together. Unlike theirs, it is seeded and leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.examples import ForgetTask, Prompt
from ..edits import Edit, Replace
from ..errors import Diverged
from ..models.activations import hidden_of, hooked
from ..models.loading import ChatModel

if TYPE_CHECKING:
    from .lunar import LunarConfig

EPOCHS, LEARNING_RATE, DECAY, BATCH_TOKENS, DIRECTION_BATCH = 20, 0.01, 0.9, 64, 32


def published(chat: ChatModel, task: ForgetTask, config: LunarConfig) -> Edit:
    """The Edit that the published procedure finds: a replaced down projection a layer."""
    from .lunar import along

    placed = config.placed()
    layers = list(placed)
    directions = _directions(chat, task, layers) if config.direction == "own" else along(chat, config.direction, layers)
    inputs: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    targets: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    shifts = {layer: c * directions[layer] for layer, c in placed.items()}
    for rows, is_forget in ((task.forget, True), (task.retain, False)):
        prompts = [e.prompt for e in rows]
        out = _pass(chat, prompts, layers, "out")
        added = _pass(chat, prompts, layers, "added")
        inner = _pass(chat, prompts, layers, "inner")
        for layer in layers:
            for a, y, h in zip(out[layer], added[layer], inner[layer], strict=True):
                stream = a - y
                moved = a + shifts[layer].to(a) if is_forget else a
                inputs[layer].append(h)
                targets[layer].append(moved - stream)
    return _fit(
        chat,
        layers,
        {k: torch.cat(v) for k, v in inputs.items()},
        {k: torch.cat(v) for k, v in targets.items()},
    )


def _directions(chat: ChatModel, task: ForgetTask, layers: Sequence[int]) -> dict[int, Tensor]:
    means = []
    for rows in (task.reference, task.forget):
        last = _pass(chat, [e.prompt for e in rows], layers, "last", DIRECTION_BATCH)
        means.append({layer: torch.cat(last[layer]).double().mean(0) for layer in layers})
    return {layer: means[0][layer] - means[1][layer] for layer in layers}


def _pass(
    chat: ChatModel, prompts: Sequence[Prompt], layers: Sequence[int], what: str, batch: int = 1
) -> dict[int, list[Tensor]]:
    """A full forward pass, vocabulary projection included; keeps (t, ·) of each prompt, or (b, d) of the last tokens."""
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keep(layer: int) -> tuple[nn.Module, str, Callable[..., Any]]:
        if what == "inner":
            return (
                chat.layout.down_projection(chat.model, layer),
                "pre",
                lambda _, a, k: kept[layer].append(a[0][0].clone()),
            )
        if what == "added":
            return (
                chat.layout.down_projection(chat.model, layer),
                "post",
                lambda _, a, out: kept[layer].append(out[0].clone()),
            )
        index = (slice(None), -1) if what == "last" else (0,)
        return (
            chat.layout.block(chat.model, layer),
            "post",
            lambda _, a, out: kept[layer].append(hidden_of(out)[index].clone()),
        )

    with torch.no_grad(), hooked(*(_silent(*keep(layer)) for layer in layers)):
        for begin in range(0, len(prompts), batch):
            ids = chat.prompt_ids(prompts[begin : begin + batch])
            width = max(map(len, ids))
            padded = torch.tensor([[0] * (width - len(i)) + i for i in ids], device=chat.device)
            mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids], device=chat.device)
            chat.model(input_ids=padded, attention_mask=mask)
    return kept


def _silent(module: nn.Module, when: str, hook: Callable[..., Any]) -> tuple[nn.Module, str, Callable[..., Any]]:
    """The hook without its return value, which would replace the module's."""

    def silent(*args: Any) -> None:
        hook(*args)

    return module, when, silent


def _fit(chat: ChatModel, layers: Sequence[int], inputs: dict[int, Tensor], targets: dict[int, Tensor]) -> Edit:
    weights = {}
    for layer in layers:
        stored = chat.model.get_parameter(chat.layout.weight_name(layer)).detach()
        weights[layer] = nn.Parameter((stored.T if chat.layout.transposed else stored).clone())
    biases = {layer: getattr(chat.layout.down_projection(chat.model, layer), "bias", None) for layer in layers}
    optimizer = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=DECAY)
    generator = torch.Generator().manual_seed(0)
    count = len(inputs[layers[0]])
    step = 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(count, generator=generator).split(BATCH_TOKENS):
            optimizer.zero_grad()
            loss = torch.stack(
                [F.mse_loss(F.linear(inputs[n][rows], weights[n], biases[n]), targets[n][rows]) for n in layers]
            ).sum()
            if not torch.isfinite(loss):
                raise Diverged(step + 1, "the loss is not finite")
            loss.backward()
            optimizer.step()
            step += 1
        schedule.step()
    if not all(torch.isfinite(w).all() for w in weights.values()):
        raise Diverged(step, "the weights are not finite")
    parts = {
        chat.layout.weight_name(n): Replace((w.detach().T if chat.layout.transposed else w.detach()).contiguous())
        for n, w in weights.items()
    }
    return Edit.on(chat.model, parts, {"method": "lunar", "solver": "sgd", "layers": list(layers)})

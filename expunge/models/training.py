"""The one training loop: LoRA through peft, or all weights. It returns an Edit and leaves the model as it was."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..edits import Edit, LowRank, Part, Replace
from ..errors import Diverged, InputError, unknown
from .activations import can_share, common_prefix
from .loading import ChatModel
from .rows import TrainRow, batches, mean_losses, part_tokens

KEPT_BYTES = 90  # of activations that a step keeps, a token, layer and hidden unit; as measured, with LoRA


class TrainConfig(BaseModel):
    """Settings of the training loop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: Literal["lora", "full"] = Field("lora", description="lora: low-rank modules; full: all weights")
    rank: int = Field(8, ge=1, description="rank of the LoRA modules")
    alpha: float = Field(32.0, gt=0, description="LoRA alpha; the scale is alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout")
    upper: float = Field(1.0, gt=0, le=1, description="share of the blocks, the upper ones, that get a LoRA module")
    only: tuple[str, ...] = Field((), description="full: names of the weights to train; default: all")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the optimizer")
    optimizer: Literal["adamw", "sophia"] = Field("adamw", description="sophia: second-order (SOUL)")
    epochs: int = Field(20, ge=1, description="passes over the rows")
    batch_size: int = Field(16, ge=1, description="rows a step")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps that warm up linearly; then linear decay")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    seed: int = Field(0, description="seed of order and initial modules")

    def first_layer(self, layers: int) -> int:
        """The lowest of so many blocks that is trained."""
        return layers - max(1, round(layers * self.upper)) if self.adapter == "lora" else 0

    def rows_read(self, forget: int, retain: int) -> int:
        """How many rows training goes forward and backward through, where there are so many of each role."""
        return (forget + retain) * self.epochs


def train(
    chat: ChatModel,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    progress: Callable[[int, float], None] | None = None,
    stop: Callable[[int, float], bool] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> Edit:
    """Trains on the rows and returns what changed, as an Edit of the model, which itself is left as it was.

    Args:
        progress: called after each step with (rows done, loss).
        stop: called after each epoch with (epochs done, mean loss); true ends the training.
        penalty: of the model in training, added to the loss.

    Raises:
        Diverged: the loss is not finite (with the step).
    """
    if not rows:
        raise InputError("nothing to train on")
    recompute = recomputed(chat, [rows], config.batch_size, part_tokens(chat))
    shared = shared_prefix(chat, rows, config, recompute)

    def losses_of(trained: ChatModel, batch: Sequence[TrainRow]) -> Iterator[Tensor]:
        yield from mean_losses(trained, batch, shared)
        if penalty:
            yield penalty(trained.model)

    edit = optimise(
        chat,
        lambda rng: batches(rows, config.batch_size, rng),
        losses_of,
        config,
        math.ceil(len(rows) / config.batch_size),
        progress,
        stop,
        recompute,
    )
    edit.meta["rows"] = len(rows)
    return edit


def recomputed(chat: ChatModel, roles: Sequence[Sequence[TrainRow]], batch_size: int, part: float = math.inf) -> bool:
    """Whether the activations of a step (so many rows of each role, or `part` of their tokens) are to be computed once more on
    the way back, and not kept: they could take more than a third of the free memory. It costs a forward pass more, and a
    shared prefix is run for every row."""
    from psutil import virtual_memory

    sizes = [sorted((len(r.prompt) + len(r.answer) for r in rows), reverse=True)[:batch_size] for rows in roles]
    tokens = min(sum(map(sum, sizes)), max(part, *(row for some in sizes for row in some[:1]), 0))
    kept = tokens * len(chat.layout) * chat.layout.hidden * KEPT_BYTES
    free = torch.cuda.mem_get_info(chat.device)[0] if chat.device.type == "cuda" else virtual_memory().available
    return kept > free / 3 and bool(getattr(chat.model, "supports_gradient_checkpointing", False))


def optimise(
    chat: ChatModel,
    batches: Callable[[random.Random], Iterator[Sequence[Any]]],
    losses_of: Callable[[ChatModel, Any], Iterable[Tensor]],
    config: TrainConfig,
    steps: int,
    progress: Callable[[int, float], None] | None = None,
    stop: Callable[[int, float], bool] | None = None,
    recompute: bool = False,
) -> Edit:
    """The training loop: an Edit of the model, which itself is left as it was.

    Args:
        batches: a random generator -> the batches of one epoch, `steps` of them.
        losses_of: (the model in training, a batch) -> losses, whose sum is to go down; the activations of each are dropped
            before the next is asked for. With LoRA, the model in training is peft's, whose adapter can be disabled.
        progress, stop: as in `train`. recompute: see `recomputed`; the loss then has to do without a key-value cache.
    """
    from accelerate import Accelerator

    rng = random.Random(config.seed)
    accelerator = Accelerator(cpu=chat.device.type == "cpu")
    total_steps = steps * config.epochs
    _check(chat, config)
    with (
        _seeded(chat, config.seed),
        _trainable(chat, config) as (model, harvest),
        _checkpointing(chat.model) if recompute else nullcontext(),
    ):
        trained = replace(chat, model=model)
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = _optimizer(weights, config)
        warm = max(int(total_steps * config.warmup), 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: min((s + 1) / warm, (total_steps - s) / max(total_steps - warm, 1), 1.0)
        )
        optimizer = accelerator.prepare(optimizer)
        step = 0
        for epoch in range(config.epochs):
            total, count = 0.0, 0
            for batch in batches(rng):
                optimizer.zero_grad()
                value = 0.0
                for loss in losses_of(trained, batch):
                    if not torch.isfinite(loss):
                        raise Diverged(step + 1, "the loss is not finite")
                    accelerator.backward(loss)
                    value += loss.item()
                torch.nn.utils.clip_grad_norm_(weights, config.clip)
                optimizer.step()
                schedule.step()
                step += 1
                total += value
                count += 1
                if progress:
                    progress(len(batch), value)
            if stop and stop(epoch + 1, total / count):
                break
        parts = harvest()
    if not all(torch.isfinite(t).all() for part in parts.values() for t in vars(part).values()):
        raise Diverged(step, "the weights are not finite")
    return Edit.on(chat.model, parts, {"trained": config.model_dump()})


@contextmanager
def _seeded(chat: ChatModel, seed: int) -> Iterator[None]:
    """peft's first weights and dropout's masks come from torch's own generators, which are the caller's after that."""
    with torch.random.fork_rng(devices=[chat.device] if chat.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check(chat: ChatModel, config: TrainConfig) -> None:
    """Raises `InputError` for what cannot be trained."""
    if config.adapter == "lora":
        if config.only:
            raise InputError("only names weights that are trained in full: it needs adapter=full")
    elif missing := set(config.only) - dict(chat.model.named_parameters()).keys():
        raise unknown("weight", min(missing), dict(chat.model.named_parameters()))


def _optimizer(weights: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sophia":
        from .sophia import Sophia

        return Sophia(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)


def shared_prefix(chat: ChatModel, rows: Sequence[TrainRow], config: TrainConfig, recompute: bool) -> int:
    """How many leading tokens all prompts share, where running them once a step is possible; else 0. With dropout each row
    runs its own: one mask for all would be another result, and free memory decides whether it is `recomputed`."""
    if recompute or config.dropout:
        return 0
    shared = common_prefix([r.prompt for r in rows])
    return shared if shared and can_share(chat, shared) else 0


@contextmanager
def _trainable(chat: ChatModel, config: TrainConfig) -> Iterator[tuple[nn.Module, Callable[[], dict[str, Part]]]]:
    """The model ready to train, and a function that harvests the parts; afterwards everything is as it was."""
    model = chat.model
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    if config.adapter == "lora":
        from peft import LoraConfig, get_peft_model

        below = chat.layout.blocks[: config.first_layer(len(chat.layout))]
        chosen = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules="all-linear",
            exclude_modules="|".join(rf"{b.replace('.', '[.]')}[.].*" for b in below) or None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers, nothing that a user can change
            wrapped = get_peft_model(model, chosen)
        try:
            wrapped.train()
            yield wrapped, lambda: _lora_parts(wrapped)
        finally:
            wrapped.unload()
            _settle(model, flags)
    else:
        trained = {n: p for n, p in model.named_parameters() if not config.only or n in config.only}
        before = {name: p.detach().clone() for name, p in trained.items()}
        kinds = {name: p.dtype for name, p in model.named_parameters()}

        def found() -> dict[str, Part]:
            now = {n: p.detach().to(kinds[n], copy=True) for n, p in trained.items()}
            return {n: Replace(w) for n, w in now.items() if not torch.equal(w, before[n])}

        try:
            for parameter in model.parameters():  # a step can be less than half precision tells: all are rounded, once
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trained)
            model.train()
            yield model, found
        finally:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.data = parameter.data.to(kinds[name])
                    if name in trained:
                        parameter.copy_(before[name])
                        parameter.grad = None
            _settle(model, flags)


@contextmanager
def _checkpointing(model: nn.Module) -> Iterator[None]:
    def call(name: str, **settings: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers 5.2x has another name, which 5.0 has not
            getattr(model, name)(**settings)

    call("gradient_checkpointing_enable", gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        call("gradient_checkpointing_disable")


def _settle(model: nn.Module, flags: dict[str, bool]) -> None:
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(leftover, None)


def orthogonality(model: nn.Module, earlier: Edit, squared: bool = False) -> Tensor:
    """O-LoRA's penalty: the sum over modules of |A_earlier A_new^T|, entry by entry (Wang et al., Findings of EMNLP 2023,
    arXiv 2310.14152). 0 where no module is shared.

    Args:
        model: peft's, with the module in training. earlier: a trained module, frozen.
        squared: the sum of squares, as the paper writes it, and not of absolute values, as its code does.
    """
    found: list[Tensor] = []
    for name, module in model.get_base_model().named_modules():  # type: ignore[operator]
        part = earlier.parts.get(f"{name}.weight")
        if isinstance(part, LowRank) and getattr(module, "lora_A", None):
            new = module.lora_A["default"].weight
            old = part.left.T if module.fan_in_fan_out else part.right
            product = old.to(new) @ new.T
            found.append(product.square().sum() if squared else product.abs().sum())
    return torch.stack(found).sum() if found else torch.zeros(())


def _lora_parts(wrapped: Any) -> dict[str, Part]:
    """The LoRA modules as low-rank parts: left = scale B (o, k), right = A (k, i), turned for Conv1D."""
    parts: dict[str, Part] = {}
    for name, module in wrapped.get_base_model().named_modules():
        if not getattr(module, "lora_A", None):
            continue
        a, b = (m["default"].weight.detach().float().cpu() for m in (module.lora_A, module.lora_B))
        left = module.scaling["default"] * b
        if not left.any():
            continue
        parts[f"{name}.weight"] = (
            LowRank(a.T.contiguous(), left.T.contiguous()) if module.fan_in_fan_out else LowRank(left, a)
        )
    return parts

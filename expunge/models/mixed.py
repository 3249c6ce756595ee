"""Mixed precision: the projections of the blocks multiply in bfloat16, and nothing else does.

Weights, residual stream, norms, LoRA modules and logits keep their dtype. torch.autocast rounds a module's small change
away when it adds it to a bfloat16 output, which slows the first steps of training, and gives logits an eighth apart.
"""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError

NARROW = torch.bfloat16


def multiply_narrowly(model: PreTrainedModel) -> None:
    """Changes the linear modules of the model, except for the vocabulary projection, to multiply in bfloat16.

    Raises:
        InputError: it has none (GPT-2's are of another kind).
    """
    last = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not last]
    if not linear:
        raise InputError("this model's projections cannot multiply in bfloat16: leave out --mixed-precision")
    for module in linear:
        module.forward = _Narrow(module)  # type: ignore[assignment]


def speedup(device: torch.device, repeats: int = 7) -> float:
    """How many times as fast a matrix product (512 by 512 by 2048) is here in bfloat16 as in float32: below 1 on a processor
    without bfloat16 units, which rounds back and forth."""
    seconds = {}
    for dtype in (torch.float32, NARROW):
        x, weight = (torch.ones(n, 512, dtype=dtype, device=device) for n in (512, 2048))
        taken = []
        for _ in range(repeats + 1):  # the first one is not like the others
            begin = time.perf_counter()
            F.linear(x, weight)[0, 0].item()  # waits for the result
            taken.append(time.perf_counter() - begin)
        seconds[dtype] = median(taken[1:])
    return seconds[torch.float32] / seconds[NARROW]


class _Narrow:
    """The forward pass of a linear module. The weight is rounded once, and again when it was written to."""

    def __init__(self, module: nn.Linear) -> None:
        self._module = module
        self._rounded: Tensor | None = None
        self._version: tuple[int, int] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self._module.weight, self._module.bias
        out = F.linear(x.to(NARROW), self._weight(weight)).to(x.dtype)
        return out if bias is None else out + bias

    def _weight(self, weight: Tensor) -> Tensor:
        if weight.requires_grad and torch.is_grad_enabled():
            return weight.to(NARROW)
        version = weight._version, weight.data_ptr()
        if self._rounded is None or version != self._version:
            self._rounded, self._version = weight.detach().to(NARROW), version
        return self._rounded

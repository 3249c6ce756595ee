"""Where a model keeps its blocks and their down projections: the only place that knows architectures.

The down projection is the linear map W (d x p) that ends a block's MLP: its output is added to the
residual stream. It is found by the table below, else by structure; a pattern overrides both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# model_type -> pattern; most others follow the names of Llama and are found by structure.
_TABLE = {
    "llama": "model.layers.{}.mlp.down_proj",
    "mistral": "model.layers.{}.mlp.down_proj",
    "qwen2": "model.layers.{}.mlp.down_proj",
    "qwen3": "model.layers.{}.mlp.down_proj",
    "gemma": "model.layers.{}.mlp.down_proj",
    "gemma2": "model.layers.{}.mlp.down_proj",
    "gemma3_text": "model.layers.{}.mlp.down_proj",
    "phi3": "model.layers.{}.mlp.down_proj",
    "opt": "model.decoder.layers.{}.fc2",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
}
_NAMES = ("down_proj", "fc2", "wo", "c_proj", "dense_4h_to_h", "fc_out", "w2", "proj_out")
_PASS = (
    "pass --layout with the down projection's name and {} for the block's number, such as model.layers.{}.mlp.down_proj"
)


@dataclass(frozen=True)
class Layout:
    """Blocks and down projections of one model.

    Attributes:
        pattern: the down projection's module name with `{}` for the block's number.
        blocks: names of the blocks, in order.
        hidden: d, the size of the residual stream.
        inner: p, the size of the down projection's input.
        transposed: whether the weight is stored p x d (GPT-2's Conv1D).
    """

    pattern: str
    blocks: tuple[str, ...]
    hidden: int
    inner: int
    transposed: bool

    def __len__(self) -> int:
        return len(self.blocks)

    def weight_name(self, layer: int) -> str:
        """The parameter's name, such as model.layers.15.mlp.down_proj.weight."""
        return self.pattern.format(layer) + ".weight"

    def block(self, model: nn.Module, layer: int) -> nn.Module:
        return model.get_submodule(self.blocks[layer])

    def down_projection(self, model: nn.Module, layer: int) -> nn.Module:
        return model.get_submodule(self.pattern.format(layer))

    def check_layers(self, layers: list[int]) -> list[int]:
        """The layers in ascending order.

        Raises:
            InputError: a layer is out of range, named twice, or there is none.
        """
        if not layers:
            raise InputError("no layers given")
        for layer in layers:
            if not 0 <= layer < len(self):
                raise InputError(f"layer {layer} is out of range: the model has layers 0 to {len(self) - 1}")
        if len(set(layers)) != len(layers):
            raise InputError(f"a layer is named twice in {layers}")
        return sorted(layers)


def find_layout(model: PreTrainedModel, pattern: str | None = None) -> Layout:
    """Finds the blocks and their down projections.

    Raises:
        InputError: a mixture of experts, an unknown structure, or an override that names nothing.
    """
    kind = model.config.model_type
    if pattern is None:
        pattern = _TABLE.get(kind) or _by_structure(model)
    elif pattern.count("{}") != 1:
        raise InputError(f"the layout {pattern!r} needs one {{}} for the block's number")
    modules = dict(model.named_modules())
    stem, _, inside = pattern.partition(".{}.")
    blocks = modules.get(stem)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise InputError(f"no list of blocks at {stem!r} in this {kind} model; {_PASS}")
    shapes = set()
    transposed = False
    for number, block in enumerate(blocks):
        module = modules.get(pattern.format(number))
        if module is None or not isinstance(getattr(module, "weight", None), torch.Tensor) or module.weight.ndim != 2:
            if _experts(block):
                raise _mixture(kind)
            raise InputError(f"block {number} of this {kind} model has no down projection {inside!r}; {_PASS}")
        transposed = type(module).__name__ == "Conv1D"
        shape = tuple(module.weight.shape)
        shapes.add(shape[::-1] if transposed else shape)
    if len(shapes) != 1:
        raise InputError(f"the down projections of this {kind} model differ in shape: {sorted(shapes)}")
    hidden, inner = shapes.pop()
    names = tuple(f"{stem}.{n}" for n in range(len(blocks)))
    return Layout(pattern, names, hidden, inner, transposed)


def _by_structure(model: PreTrainedModel) -> str:
    """The last map to the hidden size in each block that is not the attention's, in the longest list of like blocks."""
    lists = [
        (len(m), name)
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList)
        and len(m)
        and len({type(b) for b in m}) == 1
        and any("attn" in n or "attention" in n for n, _ in m[0].named_modules())
    ]
    kind = model.config.model_type
    if not lists:
        raise InputError(f"no list of decoder blocks found in this {kind} model; {_PASS}")
    length = max(n for n, _ in lists)
    stem = next(name for n, name in lists if n == length)
    block = model.get_submodule(stem)[0]
    if _experts(block):
        raise _mixture(kind)
    hidden = model.get_input_embeddings().weight.shape[1]
    found = []
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or "attn" in name or "attention" in name:
            continue
        out = weight.shape[1] if type(module).__name__ == "Conv1D" else weight.shape[0]
        if out == hidden:
            found.append(name)
    named = [n for n in found if n.rpartition(".")[2] in _NAMES]
    chosen = named or (found if len(found) == 1 else [])
    if len(chosen) != 1:
        raise InputError(
            f"the down projection of this {kind} model was not found (candidates: {found or 'none'}); {_PASS}"
        )
    return f"{stem}.{{}}.{chosen[0]}"


def _experts(block: nn.Module) -> bool:
    return any("expert" in name for name, _ in block.named_modules())


def _mixture(kind: str) -> InputError:
    return InputError(
        f"this {kind} model is a mixture of experts: its blocks have no single down projection. To edit one expert "
        f"that every token passes (a shared expert), {_PASS}"
    )

"""The Edit: what every method returns, and the only room that changes weights.

An Edit maps parameter names to parts. `LowRank` is added to the parameter, `Replace` takes its place. It is
made for one base: a hash of each touched tensor of the base travels with it and is checked before it is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import InputError, IntegrityError
from . import files
from .hashes import is_base, tensor_hashes
from .parts import LowRank, Part, Replace

if TYPE_CHECKING:
    from ..models.loading import ChatModel


@dataclass
class Edit:
    """A change of a model's weights.

    Attributes:
        parts: parameter name -> part.
        base: parameter name -> hash of the base's tensor, by dtype (see `tensor_hashes`).
        meta: what made it: method, settings, versions. Numbers and names of settings only, never texts.
    """

    parts: dict[str, Part]
    base: dict[str, dict[str, str]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    _stash: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    @classmethod
    def on(cls, model: nn.Module, parts: Mapping[str, Part], meta: Mapping[str, Any] | None = None) -> Edit:
        """An edit of `model` as it is now: hashes the tensors that it touches."""
        record = dict(meta or {})
        if conv1d := sorted(n for n in parts if type(model.get_submodule(n.rpartition(".")[0])).__name__ == "Conv1D"):
            record["conv1d"] = conv1d  # stored (in, out): an adapter has to know
        return cls(dict(parts), {name: tensor_hashes(_parameter(model, name)) for name in parts}, record)

    # ------------------------------------------------------------ figures

    @property
    def parameters(self) -> int:
        """How many numbers describe the edit."""
        return sum(p.numbers for p in self.parts.values())

    @property
    def weights(self) -> int:
        """How many weights of the model it changes: low-rank factors have far fewer numbers."""
        return sum(p.shape.numel() for p in self.parts.values())

    @property
    def rank(self) -> int | None:
        """The largest rank of a low-rank part; None where a part replaces."""
        ranks = [p.rank for p in self.parts.values() if isinstance(p, LowRank)]
        return max(ranks, default=0) if len(ranks) == len(self.parts) else None

    def summary(self) -> dict[str, Any]:
        figures = {"parameters": self.parameters, "weights": self.weights, "rank": self.rank}
        return figures | {"matrices": sorted(self.parts)}

    def dense(self, name: str) -> Tensor:
        """The dense change of a parameter, (o, i) as it is stored; for a `Replace`, the new value."""
        try:
            part = self.parts[name]
        except KeyError:
            raise InputError(f"the edit does not touch {name!r}; it touches {', '.join(sorted(self.parts))}") from None
        return part.delta() if isinstance(part, LowRank) else part.value

    def new_value(self, name: str, old: Tensor) -> Tensor:
        """The parameter after the edit: the sum is taken in float32 (float64 where a side has it), then rounded once."""
        part = self.parts[name]
        if isinstance(part, Replace):
            _same_shape(name, part.value.shape, old)
            return part.value.to(old)
        wide = torch.promote_types(torch.promote_types(old.dtype, part.left.dtype), torch.float32)
        delta = part.left.to(old.device, wide) @ part.right.to(old.device, wide)
        _same_shape(name, delta.shape, old)
        return (old.to(wide) + delta).to(old.dtype)

    # ------------------------------------------------------------ on a model in memory

    def apply(self, model: ChatModel | nn.Module, keep_original: bool = True, check: bool = True) -> None:
        """**Changes the model's weights in place.** `revert` puts the originals back, bit for bit.

        Beside the copy of the touched tensors, one more of them is held at a time.

        Args:
            keep_original: False saves the copy of the touched tensors; there is no way back then.
            check: False leaves out the hashes, for an edit that was just made on this model.

        Raises:
            IntegrityError: the model is not the one that the edit was made for.
            InputError: the weights are quantised or offloaded, or the edit is applied already.
        """
        module = _module(model)
        if module in self._stash:
            raise InputError("this edit is applied to this model already; revert it first")
        if check:
            self.check(module)
        touched = {name: _parameter(module, name) for name in self.parts}
        for name, parameter in touched.items():  # all before the first is written
            _same_shape(name, self.parts[name].shape, parameter)
        stash: dict[str, Tensor] = {}
        try:
            with torch.no_grad():
                for name, parameter in touched.items():
                    new = self.new_value(name, parameter.data)
                    if keep_original:
                        stash[name] = parameter.detach().clone()
                    parameter.copy_(new)
        except BaseException:
            with torch.no_grad():
                for name, value in stash.items():
                    touched[name].copy_(value)
            raise
        if keep_original:
            self._stash[module] = stash

    def revert(self, model: ChatModel | nn.Module) -> None:
        """**Puts back the weights** that `apply` changed, bit for bit."""
        module = _module(model)
        try:
            originals = self._stash.pop(module)
        except KeyError:
            raise InputError(
                "this edit is not applied to this model, or was applied without keeping the original"
            ) from None
        with torch.no_grad():
            for name, value in originals.items():
                _parameter(module, name).copy_(value)

    @contextmanager
    def applied(self, model: ChatModel | nn.Module, check: bool = True) -> Iterator[None]:
        """`apply` on entry, `revert` on exit, also after an exception."""
        self.apply(model, check=check)
        try:
            yield
        finally:
            self.revert(model)

    def check(self, model: ChatModel | nn.Module) -> None:
        """Raises `IntegrityError` unless the model's touched tensors are those of the edit's base."""
        module = _module(model)
        for name, known in self.base.items():
            if not is_base(_parameter(module, name), known):
                raise IntegrityError(
                    f"{name} of this model is not the tensor that the edit was made for: "
                    "another model, another revision, or an edit is applied already"
                )

    def compose(self, later: Edit) -> Edit:
        """One edit that does this one, then `later` (which was made on the model with this one applied)."""
        parts: dict[str, Part] = dict(self.parts)
        for name, part in later.parts.items():
            mine = parts.get(name)
            if mine is None or isinstance(part, Replace):
                parts[name] = part
            elif isinstance(mine, LowRank):
                wide = torch.promote_types(mine.left.dtype, part.left.dtype)
                left = torch.cat([mine.left.to(wide), part.left.to(mine.left.device, wide)], 1)
                right = torch.cat([mine.right.to(wide), part.right.to(mine.right.device, wide)], 0)
                parts[name] = LowRank(left, right)
            else:
                value = Edit({name: part}).new_value(name, mine.value)
                parts[name] = Replace(value)
        base = {**{n: h for n, h in later.base.items() if n not in self.parts}, **self.base}
        meta: dict[str, Any] = {"composed": [self.meta, later.meta]}
        if conv1d := sorted({*self.meta.get("conv1d", ()), *later.meta.get("conv1d", ())}):
            meta["conv1d"] = conv1d
        return Edit(parts, base, meta)

    def times(self, factor: float) -> Edit:
        """The edit with its change times a factor.

        Raises:
            InputError: a part replaces a parameter, and has no change to scale.
        """
        parts: dict[str, Part] = {}
        for name, part in self.parts.items():
            if not isinstance(part, LowRank):
                raise InputError(f"the edit replaces {name}: only a low-rank change can be scaled")
            parts[name] = LowRank(part.left * factor, part.right)
        return Edit(parts, self.base, {**self.meta, "times": factor * self.meta.get("times", 1.0)})

    def reduced(self, error: float) -> Edit:
        """The edit with every low-rank change at the smallest rank that keeps it within a relative error.

        Args:
            error: largest Frobenius norm of what is left out, as a share of that of the change itself.
        """
        parts: dict[str, Part] = {}
        for name, part in self.parts.items():
            parts[name] = part.reduced(error) if isinstance(part, LowRank) else part
        return Edit(parts, self.base, {**self.meta, "reduced": error})

    # ------------------------------------------------------------ on disk

    def save(self, folder: str | Path, originals: Mapping[str, Tensor] | None = None, overwrite: bool = False) -> None:
        """Writes edit.safetensors and edit.json into a new folder, which appears whole or not at all.

        Args:
            originals: the touched tensors as the base stores them; kept beside the edit, they make an edited
                checkpoint revertible bit for bit (`expunge revert`).
        """
        files.write(
            folder, self.parts, {"base": self.base, "meta": self.meta, "edit": self.summary()}, originals, overwrite
        )

    @classmethod
    def load(cls, folder: str | Path) -> Edit:
        """Reads what `save` wrote; the tensors are mapped from disk.

        Raises:
            InputError: there is no edit. IntegrityError: the files are damaged.
        """
        return cls(*files.read(folder))

    @staticmethod
    def originals(folder: str | Path) -> dict[str, Tensor]:
        """The base's tensors that were saved beside an edit."""
        return files.originals(folder)

    def export(self, folder: str | Path, base_name: str = "", overwrite: bool = False) -> None:
        """Writes the edit as a PEFT LoRA adapter, which any LoRA server can load over the base.

        Args:
            base_name: what the adapter's config names as its base model.

        Raises:
            InputError: a part replaces a tensor and has no low rank.
        """
        files.write_adapter(folder, self.parts, self.meta.get("conv1d", ()), base_name, overwrite)


def _module(model: ChatModel | nn.Module) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.model


def _parameter(model: nn.Module, name: str) -> Tensor:
    try:
        tensor = model.get_parameter(name)
    except AttributeError:
        raise IntegrityError(f"this model has no parameter {name!r}: the edit was made for another one") from None
    hook = getattr(model.get_submodule(name.rpartition(".")[0]), "_hf_hook", None)
    if tensor.is_meta or getattr(hook, "offload", False):
        raise InputError(f"{name} is offloaded: load the model without offloading (device_map) to edit it")
    if not tensor.is_floating_point() or type(tensor.data) is not Tensor:
        raise InputError(f"{name} is quantised: load the model in its full precision to edit it")
    return tensor


def _same_shape(name: str, new: torch.Size, old: Tensor) -> None:
    if new != old.shape:
        raise IntegrityError(f"{name} has shape {tuple(old.shape)} in this model, {tuple(new)} in the edit")

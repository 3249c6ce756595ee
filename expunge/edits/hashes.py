"""Which tensor an edit was made for: hashes, by dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_FLOATS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape, dtype and bytes."""
    flat = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(flat.shape)} {flat.dtype}".encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensor_hashes(tensor: Tensor) -> dict[str, str]:
    """Hashes of a base tensor in its own dtype and in the narrower ones that it may be loaded in."""
    own = str(tensor.dtype).removeprefix("torch.")
    kinds = {own, *(k for k, d in _FLOATS.items() if torch.finfo(d).bits < torch.finfo(tensor.dtype).bits)}
    return {kind: tensor_hash(tensor.detach().to(_FLOATS[kind])) for kind in sorted(kinds)}


def is_base(tensor: Tensor, known: Mapping[str, str]) -> bool:
    """Whether a tensor is the one of these hashes. A wider dtype than that one's holds the same numbers: they are compared in
    the widest that is known; where none is, there is nothing to tell by."""
    for kind in (str(tensor.dtype).removeprefix("torch."), *_FLOATS):
        if kind in known:
            return tensor_hash(tensor.data.to(_FLOATS[kind])) == known[kind]
    return True

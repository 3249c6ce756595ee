"""Writes checkpoints: the base's files with the touched tensors rewritten, streamed shard by shard."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError, IntegrityError

if TYPE_CHECKING:
    from .edits import Edit
    from .models.loading import ChatModel

SUMS = "SHA256SUMS"
_NOT_COPIED = {".bin", ".pth", ".pt", ".gguf", ".onnx", ".msgpack", ".h5", ".safetensors"}
_NOT_OURS = {"README.md", SUMS, "expunge.json"}


def write_checkpoint(chat: ChatModel, edit: Edit, out: Path) -> None:
    """Writes the edited checkpoint into the folder `out`, in the base's stored dtypes.

    The model in memory is only asked where the base's files cannot be streamed (no safetensors, or tensors under other
    names than the model's parameters).
    """
    base = chat.folder
    shards = sorted(base.glob("*.safetensors")) if base else []
    names = {k for shard in shards for k in _keys(shard)}
    if base is None or not names.issuperset(edit.parts):
        _from_memory(chat, edit, out)
        return
    rewrite_shards(shards, out, set(edit.parts), edit.new_value)
    _copy_rest(base, out)


def rewrite_shards(shards: list[Path], out: Path, touched: set[str], new: Callable[[str, Tensor], Tensor]) -> None:
    """Copies shards; those that hold a touched tensor are written anew with `new(name, old)` in its place."""
    for shard in shards:
        keys = _keys(shard)
        if touched.isdisjoint(keys):
            shutil.copyfile(shard, out / shard.name)
            continue
        with safe_open(shard, framework="pt") as f:
            tensors = {k: new(k, f.get_tensor(k)).contiguous() if k in touched else f.get_tensor(k) for k in keys}
            save_file(tensors, out / shard.name, f.metadata())


def stored(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """The named tensors of a checkpoint folder as they are stored."""
    found: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as f:
            found.update({k: f.get_tensor(k) for k in _keys(shard) if k in names})
    return found


def restore(checkpoint: Path, originals: dict[str, Tensor], out: Path) -> None:
    """Writes `checkpoint` with the original tensors put back.

    Raises:
        InputError: no checkpoint there. IntegrityError: it lacks a tensor.
    """
    shards = sorted(checkpoint.glob("*.safetensors"))
    if not shards or not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint} is no checkpoint with safetensors files")
    missing = set(originals) - {k for shard in shards for k in _keys(shard)}
    if missing:
        raise IntegrityError(f"{checkpoint} has no tensor {sorted(missing)[0]!r}: the edit belongs to another model")
    rewrite_shards(shards, out, set(originals), lambda name, _: originals[name])
    _copy_rest(checkpoint, out)


def write_sums(folder: Path) -> None:
    """SHA256SUMS of every file in the folder, in the format of sha256sum."""
    lines = []
    for file in sorted(f for f in folder.iterdir() if f.is_file() and f.name != SUMS):
        with open(file, "rb") as f:
            lines.append(f"{hashlib.file_digest(f, 'sha256').hexdigest()}  {file.name}\n")
    (folder / SUMS).write_text("".join(lines))


def _keys(shard: Path) -> list[str]:
    with safe_open(shard, framework="pt") as f:
        return list(f.keys())


def _copy_rest(base: Path, out: Path) -> None:
    """Config, generation config, tokenizer, chat template, shard index: whatever is not weights."""
    for file in base.iterdir():
        if (
            file.is_file()
            and file.suffix not in _NOT_COPIED
            and file.name not in _NOT_OURS
            and not file.name.startswith(".")
        ):
            shutil.copyfile(file, out / file.name)


def _from_memory(chat: ChatModel, edit: Edit, out: Path) -> None:
    with edit.applied(chat):
        chat.model.save_pretrained(out)
    chat.tokenizer.save_pretrained(out)


def model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text()).get("model_type", ""))

"""An Edit on disk: its own files, and a PEFT adapter."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, IntegrityError
from ..files import new_folder
from .parts import LowRank, Part, Replace

FORMAT = "expunge-edit-1"
ORIGINALS = "originals.safetensors"


def write(
    folder: str | Path,
    parts: Mapping[str, Part],
    record: Mapping[str, Any],
    originals: Mapping[str, Tensor] | None,
    overwrite: bool,
) -> None:
    """`Edit.save`. record: base, meta and figures."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, LowRank):
            tensors[f"{name}:left"], tensors[f"{name}:right"] = part.left, part.right
        else:
            tensors[f"{name}:value"] = part.value
    with new_folder(Path(folder), overwrite) as work:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, work / "edit.safetensors")
        if originals:
            save_file({k: v.contiguous() for k, v in originals.items()}, work / ORIGINALS)
        (work / "edit.json").write_text(json.dumps({"format": FORMAT, **record}, indent=1, sort_keys=True) + "\n")


def read(folder: str | Path) -> tuple[dict[str, Part], dict[str, dict[str, str]], dict[str, Any]]:
    """`Edit.load`: (parts, base, meta)."""
    path = Path(folder)
    if not (path / "edit.json").is_file() or not (path / "edit.safetensors").is_file():
        raise InputError(f"{folder} is not a saved edit: it needs edit.json and edit.safetensors")
    try:
        record = json.loads((path / "edit.json").read_text())
        if record.get("format") != FORMAT:
            raise IntegrityError(f"{folder} is an edit of the format {record.get('format')!r}, expected {FORMAT!r}")
        found: dict[str, dict[str, Tensor]] = {}
        with safe_open(path / "edit.safetensors", framework="pt") as f:
            for key in list(f.keys()):
                name, _, role = key.rpartition(":")
                found.setdefault(name, {})[role] = f.get_tensor(key)
        parts: dict[str, Part] = {
            name: Replace(t["value"]) if "value" in t else LowRank(t["left"], t["right"]) for name, t in found.items()
        }
        if sorted(parts) != record["edit"]["matrices"]:
            raise IntegrityError(f"{folder}: edit.json and edit.safetensors do not belong together")
        return parts, record["base"], record["meta"]
    except (ValueError, KeyError, AttributeError, SafetensorError) as e:
        raise IntegrityError(f"{folder} is a damaged edit: {e}") from e


def originals(folder: str | Path) -> dict[str, Tensor]:
    """`Edit.originals`."""
    path = Path(folder) / ORIGINALS
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {ORIGINALS}: the edit was saved without what reverts it; use the base model"
        )
    with safe_open(path, framework="pt") as f:
        return {k: f.get_tensor(k) for k in list(f.keys())}


def write_adapter(
    folder: str | Path, parts: Mapping[str, Part], conv1d: Collection[str], base_name: str, overwrite: bool
) -> None:
    """`Edit.export`. conv1d: names of parameters that are stored (in, out)."""
    from peft import LoraConfig

    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, part in parts.items():
        module, _, leaf = name.rpartition(".")
        if not isinstance(part, LowRank) or leaf != "weight":
            raise InputError(f"{name} is replaced, not changed by a low rank: this edit has no form as an adapter")
        a, b = (part.left.T, part.right.T) if name in conv1d else (part.right, part.left)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        ranks[module] = part.rank
    # alpha = rank for each module, so that the scale is one.
    top = max(ranks.values())
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        target_modules=sorted(ranks),
        r=top,
        lora_alpha=top,
        rank_pattern={m: r for m, r in ranks.items() if r != top},
        alpha_pattern={m: r for m, r in ranks.items() if r != top},
        fan_in_fan_out=bool(conv1d),
        inference_mode=True,
    )
    with new_folder(Path(folder), overwrite) as work:
        save_file(
            {k: v.detach().cpu().float().contiguous() for k, v in tensors.items()},
            work / "adapter_model.safetensors",
            {"format": "pt"},
        )
        config.save_pretrained(str(work))

"""`unlearn --dry-run`: the resolved plan, with estimates, from the config alone: no weights are loaded."""

from __future__ import annotations

import sys
import time
from typing import Any

from .data.prompts import KEEP_ROWS, general_beside, general_split
from .run import read_task, teaching_config
from .spec import RunSpec

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def plan(spec: RunSpec) -> dict[str, Any]:
    """Layers, matrices, rows, and estimates of memory, disk and time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .methods import method
    from .methods.abstention import default_layers
    from .methods.tuning import window_shape
    from .models.layout import find_layout
    from .models.loading import resolve

    config = method(spec.method).configure(**spec.settings)
    fit, judge = read_task(spec.data)
    folder = resolve(spec.model.name, spec.model.revision)
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=spec.model.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    layout = find_layout(model, spec.model.layout)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.model.trust_remote_code)
    layers: Any = getattr(config, "layers", "auto")
    chosen = window_shape(len(layout))[0] if layers == "auto" else len(layout.check_layers(list(layers)))
    size = sum(p.numel() for p in model.parameters())
    dtype = spec.model.dtype or str(settings.dtype or "float32").removeprefix("torch.")
    rows = {role: len(r) for role, r in judge.present().items()}
    fitted = {role: len(r) for role, r in fit.present().items() if role in ("forget", "retain", "reference")}
    fitted.setdefault("retain", KEEP_ROWS)
    lengths = [len(i) for i in tokenizer([_plain(e.prompt) for r in fit.present().values() for e in r])["input_ids"]]
    tokens = sum(lengths) / max(len(lengths), 1) + 30  # the chat template's own tokens
    judged = sum(n for role, n in rows.items() if role != "reference")
    rate = _rate()
    teaching = teaching_config(spec)
    taught = min(teaching.rows, fitted["reference"]) + fitted["retain"]
    taught += len(general_beside(fit.retain or general_split()[0][:KEEP_ROWS]))

    def solving(layers: int, prompts: int) -> float:
        """A forward pass over the prompts, and their second moments at each layer."""
        return prompts * tokens * 2 * (size + layers * layout.inner**2)

    work = {
        "evaluations": (2 * judged + rows.get("general", 0) * spec.teach.abstention)
        * (tokens + 0.6 * spec.evaluation.max_new_tokens)
        * 2
        * size,
        "teaching": 4 * size * tokens * teaching.steps * teaching.batch_size
        + solving(len(teaching.layers or default_layers(len(layout))), taught)
        if spec.teach.abstention
        else 0.0,
        "unlearning": solving(chosen, sum(fitted.values())),
    }
    seconds = {name: round(flops / rate, 1) for name, flops in work.items()}
    stored = _DTYPE_BYTES.get(dtype, 4) * size
    return {
        "model": spec.model.name,
        "method": spec.method,
        "settings": config.model_dump(),
        "layers": f"auto: {chosen} layers of {len(layout)}" if layers == "auto" else list(layers),
        "matrices": layout.weight_name(0).replace(".0.", ".{}.", 1)
        if layers == "auto"
        else [layout.weight_name(n) for n in layers],
        "shape": [layout.hidden, layout.inner],
        "rows": rows,
        "fitted_rows": fitted,
        "memory_bytes": int(
            stored * 1.5
            + chosen * (layout.inner**2 * 16)
            + sum(fitted.values()) * tokens * (layout.inner + layout.hidden) * 4
        ),
        "disk_bytes": int(stored * 1.01),
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
        "out": spec.output.out,
    }


def show(figures: dict[str, Any]) -> None:
    """The plan as lines on standard output."""
    for key, value in figures.items():
        if key.endswith("_bytes"):
            print(f"{key.removesuffix('_bytes')}: about {value / 1e9:.2f} GB")
        else:
            print(f"{key}: {value}")
    print("nothing was loaded or written (--dry-run)", file=sys.stderr)


def _plain(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " ".join(m.content for m in prompt)


def _rate() -> float:
    """Floating-point operations a second of a matrix product here, halved: what a model reaches in practice."""
    import torch

    a = torch.rand(512, 512)
    a @ a
    begin = time.perf_counter()
    for _ in range(20):
        a @ a
    return 20 * 2 * 512**3 / (time.perf_counter() - begin) / 2

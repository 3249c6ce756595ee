"""`unlearn --dry-run`: the resolved plan, with estimates, from the config alone: no weights are loaded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from .data.prompts import KEEP_ROWS, general_beside, general_split
from .run import read_task, teaching_config
from .spec import RunSpec

SLOWER = 3.0  # a generated token takes so many times as long as one that is read
ANSWER_SHARE = 0.6  # of the longest answer, how long the usual one is
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def plan(spec: RunSpec) -> dict[str, Any]:
    """Layers, matrices, rows, and estimates of memory, disk and time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .edits import Edit
    from .methods import method
    from .methods.abstention import default_layers
    from .methods.tuning import widened_rows, window_shape
    from .models.activations import common_prefix
    from .models.layout import find_layout
    from .models.loading import ChatModel, resolve, template_of

    taught_along = spec.teach.abstention and method(spec.method).has("direction") and "direction" not in spec.settings
    config = method(spec.method).configure(**spec.settings, **({"direction": Edit({})} if taught_along else {}))
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
    chat = ChatModel(model, tokenizer, template=template_of(tokenizer, spec.model.template))
    prompts = chat.prompt_ids([e.prompt for r in fit.present().values() for e in r])
    tokens = sum(map(len, prompts)) / len(prompts) - common_prefix(prompts)  # what all share runs once
    blocks = size - sum(p.numel() for p in {model.get_input_embeddings().weight, model.get_output_embeddings().weight})
    judged = sum(n for role, n in rows.items() if role != "reference")
    rate = _rate()
    teaching = teaching_config(spec)
    taught = min(teaching.rows, fitted["reference"]) + fitted["retain"]
    general = len(general_beside(fit.retain or general_split()[0][:KEEP_ROWS]))
    taught += general

    search = "auto" in [getattr(config, name, None) for name in ("layers", "coefficient", "ridge")]
    fitting = sum(fitted.values()) + getattr(config, "answers", 0)  # an answer is about as long as a prompt
    if search:
        fitting += widened_rows(fitted["forget"], fitted["retain"], general) - fitted["forget"] - fitted["retain"]

    def solving(layers: int, prompts: int) -> float:
        """A forward pass over the prompts, up to about two thirds of the depth, and their second moments at each layer."""
        return prompts * tokens * 2 * (0.67 * blocks + layers * layout.inner**2)

    def answering(prompts: int, longest: float) -> float:
        """Greedy answers, of which the usual one is shorter than the longest; a step of few tokens waits for memory."""
        return prompts * (tokens + SLOWER * ANSWER_SHARE * longest) * 2 * size

    work = {
        "evaluations": answering(
            2 * judged + rows.get("general", 0) * spec.teach.abstention, spec.evaluation.max_new_tokens
        ),
        "teaching": 4 * size * tokens * teaching.steps * teaching.batch_size
        + solving(len(teaching.layers or default_layers(len(layout))), taught)
        if spec.teach.abstention
        else 0.0,
        "unlearning": _unlearning(config, len(layout), chosen, fitting, solving, answering),
    }
    seconds = {name: float(f"{flops / rate:.2g}") for name, flops in work.items()}
    stored = _DTYPE_BYTES.get(dtype, 4) * size
    return {
        "model": spec.model.name,
        "method": spec.method,
        "settings": config.model_dump(exclude={"direction"}) | _direction(config, spec.settings),
        "layers": f"auto: {chosen} layers of {len(layout)}" if layers == "auto" else list(layers),
        "matrices": layout.weight_name(0).replace(".0.", ".{}.", 1)
        if layers == "auto"
        else [layout.weight_name(n) for n in layers],
        "shape": [layout.hidden, layout.inner],
        "rows": rows,
        "fitted_rows": fitted,
        "memory_bytes": int(
            stored * 1.5 + chosen * (layout.inner**2 * 16) + fitting * tokens * (layout.inner + layout.hidden) * 4
        ),
        "disk_bytes": int(stored * 1.01),
        "seconds": seconds | {"total": float(f"{sum(seconds.values()):.2g}")},
        "out": spec.output.out,
    }


def _direction(config: Any, given: dict[str, Any]) -> dict[str, str]:
    """The direction as a plan can print it: an edit by its folder."""
    if not hasattr(config, "direction"):
        return {}
    if config.direction == "own":
        return {"direction": "own"}
    return {"direction": str(given.get("direction", "what teaching abstention writes"))}


def _unlearning(
    config: Any,
    depth: int,
    layers: int,
    prompts: int,
    solving: Callable[[int, int], float],
    answering: Callable[[int, float], float],
) -> float:
    """Floating-point operations of the method: what it fits, the own answers that it keeps, and what it tries."""
    from .methods.lunar import ANSWER_TOKENS, LunarConfig
    from .methods.tuning import SCORE_ROWS, TUNE_ROWS, TUNE_TOKENS, usual_trials

    if not isinstance(config, LunarConfig):
        return solving(layers, prompts)
    trials = usual_trials(config)
    total = answering(min(config.answers, prompts), ANSWER_TOKENS)
    total += max(trials, 1) * solving(layers, prompts)
    total += trials * answering(2 * TUNE_ROWS, TUNE_TOKENS)
    if config.layers == "auto" and config.direction == "own":
        total += answering(SCORE_ROWS * (depth // 3 + 4), 0)
    return total


def show(figures: dict[str, Any]) -> None:
    """The plan as lines on standard output."""
    for key, value in figures.items():
        if key.endswith("_bytes"):
            print(f"{key.removesuffix('_bytes')}: about {value / 1e9:.2f} GB")
        else:
            print(f"{key}: {value}")
    print("nothing was loaded or written (--dry-run)", file=sys.stderr)


def _rate() -> float:
    """Floating-point operations a second of a matrix product here, halved: what a model reaches in practice."""
    import torch

    a = torch.rand(512, 512)
    a @ a
    begin = time.perf_counter()
    for _ in range(20):
        a @ a
    return 20 * 2 * 512**3 / (time.perf_counter() - begin) / 2

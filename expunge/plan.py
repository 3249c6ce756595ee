"""`unlearn --dry-run`: the resolved plan, with estimates, from the config alone: no weights are loaded."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .data.prompts import KEEP_ROWS, general_beside, general_split
from .errors import InputError
from .run import read_task, teaching_config
from .spec import RunSpec

if TYPE_CHECKING:
    from .models.layout import Layout

DEPTH = 0.67  # share of the blocks below the deepest layer that is edited, where layers are found
SLOWER = 3.0  # a generated token takes so many times as long as one that is read
ANSWER_SHARE = 0.6  # of the longest answer, how long the usual one is
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


@dataclass(frozen=True)
class _Cost:
    """Floating-point operations on prompts of the usual length.

    tokens: of a prompt, without the prefix that all share, which runs once. size: parameters of the model; blocks: of
    its blocks. inner: p, the width of a down projection's input.
    """

    tokens: float
    size: int
    blocks: int
    inner: int

    def solving(self, prompts: int, layers: int) -> float:
        """A forward pass up to the deepest layer, and second moments at each."""
        return prompts * self.tokens * 2 * (DEPTH * self.blocks + layers * self.inner**2)

    def answering(self, prompts: int, longest: float) -> float:
        """Greedy answers, of which the usual one is shorter than the longest; a step of few tokens waits for memory."""
        return prompts * (self.tokens + SLOWER * ANSWER_SHARE * longest) * 2 * self.size

    def learning(self, rows: int, answer: float, everything: bool) -> float:
        """Forward and backward through prompts with answers of so many tokens; to the gradients of all weights too, if
        everything is trained."""
        return rows * (self.tokens + answer) * (6 if everything else 4) * self.size

    def training(self, prompts: int) -> float:
        """Forward, and backward to vectors that are added while all weights are frozen."""
        return prompts * self.tokens * 4 * self.size


def plan(spec: RunSpec) -> dict[str, Any]:
    """Layers, matrices, rows, and estimates of memory, disk and time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .edits import Edit
    from .methods import method
    from .methods.abstention import default_layers
    from .methods.tuning import with_rewrites
    from .models.activations import common_prefix
    from .models.layout import find_layout
    from .models.loading import ChatModel, resolve, template_of
    from .models.training import KEPT_BYTES, TrainConfig

    taught_along = spec.teach.abstention and method(spec.method).has("direction") and "direction" not in spec.settings
    config = method(spec.method).configure(**spec.settings, **({"direction": Edit({})} if taught_along else {}))
    if spec.reveal.asked:
        raise InputError(
            "a plan counts rows, and the model has to reveal them first: run `expunge reveal`, and plan with its file as "
            "--forget"
        )
    fit, judge = read_task(spec.data)
    folder = resolve(spec.model.name, spec.model.revision)
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=spec.model.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    layout = find_layout(model, spec.model.layout)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.model.trust_remote_code)
    edited, chosen = _edited(config, layout)
    size = sum(p.numel() for p in model.parameters())
    dtype = spec.model.dtype or str(settings.dtype or "float32").removeprefix("torch.")
    rows = {role: len(r) for role, r in judge.present().items()}
    fitted = {role: len(r) for role, r in fit.present().items() if role in ("forget", "retain", "reference")}
    fitted.setdefault("retain", KEEP_ROWS)
    chat = ChatModel(model, tokenizer, template=template_of(tokenizer, spec.model.template))
    every = [e for r in fit.present().values() for e in r]
    prompts = chat.prompt_ids([e.prompt for e in every])
    embeddings = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}  # often one
    cost = _Cost(
        tokens=sum(map(len, prompts)) / len(prompts) - common_prefix(prompts),
        size=size,
        blocks=size - sum(p.numel() for p in embeddings),
        inner=layout.inner,
    )
    judged = 2 * sum(n for role, n in rows.items() if role != "reference")
    if spec.teach.abstention:
        judged += rows.get("general", 0)
    rate = _rate()
    kept = fit if fit.retain else fit.but(retain=general_split()[0][:KEEP_ROWS])
    search = "auto" in [getattr(config, name, None) for name in ("layers", "coefficient", "ridge")]
    solved = with_rewrites(kept, kept.retain, (), getattr(config, "neighbours", 0)) if search else kept
    fitting = sum(len(solved.role(role)) for role in fitted) + getattr(config, "answers", 0)  # an answer: like a prompt
    teaching = teaching_config(spec)
    taught = min(teaching.rows, fitted["reference"]) + fitted["retain"] + len(general_beside(kept.retain))
    stored = _DTYPE_BYTES.get(dtype, 4) * size
    if isinstance(config, TrainConfig):
        answered = sum(map(len, chat.answer_ids([e.response for e in every]))) / len(every)
        full = config.adapter == "full"
        unlearning = cost.learning(config.rows_read(fitted["forget"], fitted["retain"]), answered, full)
        # Activations of a step, of forget and of retain rows; in full training all weights in float32, and of those that are
        # trained gradients, two moments and what was there.
        step = 2 * min(config.batch_size, len(every)) * (cost.tokens + answered)
        trained = size if edited["matrices"] == "all" else chosen * layout.inner * layout.hidden
        held = step * len(layout) * layout.hidden * KEPT_BYTES + full * (16 * trained + max(4 * size - stored, 0))
    else:
        unlearning = _unlearning(config, cost, fitting, chosen, len(layout))
        held = chosen * (layout.inner**2 * 16) + fitting * cost.tokens * (layout.inner + layout.hidden) * 4
    work = {
        "evaluations": cost.answering(judged, spec.evaluation.max_new_tokens),
        "teaching": cost.training(teaching.steps * teaching.batch_size)
        + cost.solving(taught, len(teaching.layers or default_layers(len(layout))))
        if spec.teach.abstention
        else 0.0,
        "unlearning": unlearning,
    }
    seconds = {name: float(f"{flops / rate:.2g}") for name, flops in work.items()}
    return {
        "model": spec.model.name,
        "method": spec.method,
        "settings": config.model_dump(exclude={"direction"}) | _direction(config, spec.settings),
        **edited,
        "shape": [layout.hidden, layout.inner],
        "rows": rows,
        "fitted_rows": fitted,
        "memory_bytes": int(stored * 1.5 + held),
        "disk_bytes": int(stored * 1.01),
        "seconds": seconds | {"total": float(f"{sum(seconds.values()):.2g}")},
        "out": spec.output.out,
    }


def _edited(config: Any, layout: Layout) -> tuple[dict[str, Any], int]:
    """(the layers and matrices that the method changes, for a plan; how many layers)."""
    from .methods.rmu import RmuConfig, default_layers
    from .methods.tuning import window_shape
    from .models.training import TrainConfig

    count = len(layout)
    if isinstance(config, RmuConfig):
        layers: Any = config.layers or default_layers(count)
    elif isinstance(config, TrainConfig):
        first = config.first_layer(count)
        what = f"all linear ones, by LoRA of rank {config.rank}" if config.adapter == "lora" else "all"
        return {"layers": f"{first} to {count - 1}", "matrices": what}, count - first
    else:
        layers = config.layers
    if layers == "auto":
        chosen = window_shape(count)[0]
        name = layout.weight_name(0).replace(".0.", ".{}.", 1)
        return {"layers": f"auto: {chosen} layers of {count}", "matrices": name}, chosen
    layers = layout.check_layers(list(layers))
    return {"layers": list(layers), "matrices": [layout.weight_name(n) for n in layers]}, len(layers)


def _direction(config: Any, given: dict[str, Any]) -> dict[str, str]:
    """The direction as a plan can print it: an edit by its folder."""
    if not hasattr(config, "direction"):
        return {}
    if config.direction == "own":
        return {"direction": "own"}
    return {"direction": str(given.get("direction", "what teaching abstention writes"))}


def _unlearning(config: Any, cost: _Cost, prompts: int, layers: int, depth: int) -> float:
    """Floating-point operations of the method: what it fits, the own answers that it keeps, and what it tries."""
    from .methods.lunar import ANSWER_TOKENS, LunarConfig
    from .methods.refine import FORGET_ROWS, RETAIN_ROWS
    from .methods.tuning import SCORE_ROWS, TUNE_ROWS, TUNE_TOKENS, usual_trials

    if not isinstance(config, LunarConfig):
        return cost.solving(prompts, layers)
    trials = usual_trials(config)
    total = cost.answering(min(config.answers, prompts), ANSWER_TOKENS)
    total += max(trials, 1) * cost.solving(prompts, layers)
    total += trials * cost.answering(2 * TUNE_ROWS, TUNE_TOKENS)
    total += cost.training(
        (config.refine or 0) * (RETAIN_ROWS + FORGET_ROWS)
    )  # by default only revealed rows are refined
    if config.layers == "auto" and config.direction == "own":
        total += cost.answering(SCORE_ROWS * (depth // 3 + 4), 0)  # every third layer is scored, and four near the best
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

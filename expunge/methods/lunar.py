"""LUNAR: unlearning by redirecting the activations of forget data (Shen et al., NeurIPS 2025, arXiv 2502.07218).

For block l, r = mean over reference prompts of a(l) - mean over forget prompts of a(l), where a(l) is the block's
output at the last prompt token of the unedited model. The down projection W (d x p) is changed so that its output
moves by c r on every token of a forget prompt and by nothing on retain prompts. The exact optimum of

    w_f sum_forget |dW h - c r|^2 + w_r sum_retain |dW h|^2 + ridge s |dW|^2,    s = tr(G)/p

is of rank one: dW = c r u^T with u = (G + ridge s I)^-1 m, G = w_f sum_forget h h^T + w_r sum_retain h h^T and
m = w_f sum_forget h. Several layers are edited in ascending order: every r comes from the unedited model, G and m
of a layer are taken after the edits below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, field_validator, model_validator
from torch import Tensor

from ..data.examples import ForgetTask
from ..edits import Edit, LowRank
from ..errors import InputError
from ..models.activations import Shelf, Site, Stream, check_additive, common_prefix, last_token_means
from ..models.generation import continued
from ..models.loading import ChatModel
from .detector import Detector, Tokens, shared_with, strength, token_weights

Progress = Callable[[int], None]
ANSWER_TOKENS = 24  # of an own answer
# What goes with tokens="subject" where it is not set. The tokens of own answers are many, so each retain token counts
# less. Along a taught vector c is small for what it does, and there is room to keep more.
OWN_DEFAULTS = {"answers": 250, "retain_weight": 0.2}
TAUGHT_DEFAULTS = {"answers": 80, "hard": True}
HEAVY = 0.9  # share of tr(G) in one direction from which the ridge misleads


class LunarConfig(BaseModel):
    """Settings of LUNAR."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Literal["auto"] | tuple[int, ...] = Field(
        "auto", description="layers to edit, or auto: neighbouring ones, by the abstention score and trials"
    )
    coefficient: Literal["auto"] | float | tuple[float, ...] = Field(
        "auto", description="c, one or one a layer, or auto: tuned"
    )
    ridge: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="ridge relative to the mean diagonal of G, or auto: tuned"
    )
    forget_weight: float = Field(1.0, gt=0, description="w_f, weight of a forget token")
    retain_weight: float = Field(
        1.0, ge=0, description="w_r, weight of a retain token; with subject and without a direction 0.2"
    )
    tokens: Tokens = Field(
        "subject",
        description="which forget tokens count: all; after_prefix leaves out the prefix that all prompts share; "
        "distinct: from where a prompt differs from every retain prompt; subject: of these, the more the better they can "
        "be told from the retain set, and the more the less of their prompt is found",
    )
    hard: bool = Field(
        False,
        description="with subject: retain tokens nearest to the subject count more; keeps more, forgets less; on with a "
        "direction",
    )
    answers: int = Field(
        0,
        ge=0,
        description="this many retain prompts count with the model's own answer as well: u answers to tokens of an "
        "answer more than to a prompt's; with subject 250, or 80 with a direction",
    )
    neighbours: int = Field(
        6,
        ge=0,
        description="where something is to be found, this many prompts a forget row with names exchanged are kept as well",
    )
    direction: Literal["own"] | InstanceOf[Edit] = Field(
        "own",
        description="own: each layer moves along its r; an edit (or its folder) that taught abstention: along what it writes",
    )
    refine: int | None = Field(
        None,
        ge=0,
        description="steps of training what is written by what the model says (see refine); default: 120 along a "
        "direction where the task tells what answers show and a setting is auto, else 0",
    )
    trials: int | None = Field(None, ge=1, description="at most so many settings are tried; default: until none helps")
    solver: Literal["exact", "sgd"] = Field("exact", description="sgd: the published procedure, for comparison only")
    form: Literal["auto", "primal", "dual"] = Field(
        "auto", description="dual: a system of the tokens' size; auto: the smaller"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """What serves the default solve best; other tokens or the published solver are plain."""
        if not isinstance(given, dict):
            return given
        if given.get("solver", "exact") != "exact" or given.get("tokens", "subject") != "subject":
            return given
        return {**(OWN_DEFAULTS if given.get("direction", "own") == "own" else TAUGHT_DEFAULTS), **given}

    @field_validator("direction", mode="before")
    @classmethod
    def _saved(cls, value: Any) -> Any:
        return Edit.load(value) if isinstance(value, (str, Path)) and value != "own" else value

    @model_validator(mode="after")
    def _consistent(self) -> LunarConfig:
        if self.hard and self.tokens != "subject":
            raise ValueError("hard needs tokens=subject: it weighs retain tokens in the rounds of that")
        if self.solver == "sgd" and (self.hard or self.answers):
            raise ValueError("solver=sgd, the published procedure, has no hard rounds and no answers")
        if self.solver == "sgd" and self.refine:
            raise ValueError("refine trains an edit of rank one a layer, which solver=sgd is not")
        return self

    def placed(self) -> dict[int, float]:
        """The coefficient of each layer, in ascending order, once neither is "auto".

        Raises:
            InputError: another number of coefficients than of layers.
        """
        if self.layers == "auto" or self.coefficient == "auto":
            raise ValueError("layers and coefficient are to be found first")
        layers, value = self.layers, self.coefficient
        coefficients = value if isinstance(value, tuple) else (value,) * len(layers)
        if len(coefficients) != len(layers):
            raise InputError(f"{len(coefficients)} coefficients for {len(layers)} layers: give one, or one a layer")
        return dict(sorted(zip(layers, coefficients, strict=True)))


class Solved(NamedTuple):
    """The solution at one layer: dW = shift u^T."""

    shift: Tensor  # c r, (d,) float64
    u: Tensor  # (p,) float64
    share: float  # of tr(G), what one direction holds


@dataclass
class Target:
    """What the prompts of a task ask of the layers: streams by role, and r of each layer."""

    forget: Stream
    retain: Stream | None
    directions: dict[int, Tensor]  # r(l), (d,) float64
    skip: list[int]  # of each forget prompt, the leading tokens that "distinct" and "subject" do not count


def redirections(chat: ChatModel, task: ForgetTask, layers: Sequence[int]) -> dict[int, Tensor]:
    """r(l) of each layer, (d,) in float64, from the model as it is."""
    return prepare(chat, task.but(retain=()), layers).directions


def tokenised(chat: ChatModel, task: ForgetTask, config: LunarConfig) -> dict[str, list[list[int]]]:
    """The token ids of forget, retain and reference prompts; some retain prompts with the model's own answer."""
    ids = {role: chat.prompt_ids([e.prompt for e in task.role(role)]) for role in ("forget", "retain", "reference")}
    return ids | {"retain": continued(chat, ids["retain"], config.answers, ANSWER_TOKENS)}


def prepare(
    chat: ChatModel,
    task: ForgetTask,
    layers: Sequence[int],
    config: LunarConfig | None = None,
    ids: dict[str, list[list[int]]] | None = None,
) -> Target:
    """Runs every prompt once up to the lowest layer, and forget and reference prompts on to the highest.

    With a direction other than "own", the taught vectors take the place of r. A difference of two means also holds what
    the reference prompts are about; the vector that was taught is free of it, and less of the retain set is lost.

    Args:
        ids: what `tokenised` gave for the task, where that is there already.
    """
    config = config or LunarConfig()
    if not task.forget or not task.reference:
        missing = "forget" if not task.forget else "reference"
        raise InputError(
            f"LUNAR needs {missing} rows" + ("" if missing == "forget" else " (prompts that the model cannot answer)")
        )
    ids = ids or tokenised(chat, task, config)
    low = min(layers)
    prefix = common_prefix([*ids["forget"], *ids["retain"]])
    forget = Stream(chat, ids["forget"], prefix)
    retain = Stream(chat, ids["retain"], prefix) if ids["retain"] else None
    forget.seek(low)
    if retain:
        retain.seek(low)
    if config.direction == "own":
        here = last_token_means(forget.fork(), layers)
        there = last_token_means(Stream(chat, ids["reference"]), layers)
        directions = {layer: there[layer] - here[layer] for layer in layers}
    else:
        directions = along(chat, config.direction, layers)
    return Target(forget, retain, directions, shared_with(ids["forget"], ids["retain"]))


def factors(chat: ChatModel, edit: Edit) -> dict[int, tuple[Tensor, Tensor]]:
    """(v, u) of each layer that an edit of rank one a layer touches, (d,) and (p,) float64: its output moves by v (u . h).

    Raises:
        InputError: the edit is not of rank one a layer.
    """
    found = {}
    for layer in range(len(chat.layout)):
        part = edit.parts.get(chat.layout.weight_name(layer))
        if isinstance(part, LowRank) and part.rank == 1:
            pair = (part.left[:, 0].double().to(chat.device), part.right[0].double().to(chat.device))
            found[layer] = pair[::-1] if chat.layout.transposed else pair
    if len(found) != len(edit.parts):
        raise InputError("direction needs an edit of rank one a layer, as teaching abstention makes it")
    return found


def written(chat: ChatModel, edit: Edit) -> dict[int, Tensor]:
    """The vector that an edit of rank one a layer adds to the output of each layer that it touches, (d,) float64."""
    return {layer: v for layer, (v, _) in factors(chat, edit).items()}


def along(chat: ChatModel, edit: Edit, layers: Sequence[int]) -> dict[int, Tensor]:
    """The vectors of `written` at the layers.

    Raises:
        InputError: the edit writes nothing at one of them.
    """
    found = written(chat, edit)
    if absent := [n for n in layers if n not in found]:
        raise InputError(f"the edit that taught abstention writes nothing at layer {absent[0]}, but at {[*found]}")
    return {n: found[n] for n in layers}


def exact(chat: ChatModel, target: Target, config: LunarConfig) -> dict[int, Solved]:
    """Solves layer by layer, with settings none of which is "auto"; the streams of `target` are left where they are."""
    if config.ridge == "auto":
        raise ValueError("ridge is to be found first")
    placed = config.placed()
    streams = [(target.forget.fork(), config.forget_weight, True)]
    if target.retain:
        streams.append((target.retain.fork(), config.retain_weight, False))
    tokens = sum(int(b.mask.sum()) for stream, _, _ in streams for b in stream.batches)
    dual = config.form == "dual" or (config.form == "auto" and tokens < chat.layout.inner)
    found: dict[int, Solved] = {}
    for layer, coefficient in placed.items():
        for stream, _, _ in streams:
            stream.seek(layer)
        inner, out = Site("inner", layer), Site("out", layer)
        more = layer < max(placed)
        shelf = streams[0][0].shelf()
        kept: list[list[tuple[Any, Any]]] = []
        detector = Detector(chat.layout.inner, chat.device, dual, config.tokens == "subject", config.hard)
        for stream, weight, is_forget in streams:
            kept.append([])
            for batch, taken in stream.visit([inner, out] if more else [inner]):
                weights = token_weights(batch, weight, is_forget, config.tokens, stream.prefix, target.skip)
                held = shelf.put(taken[inner]) if more or detector.holds(is_forget) else None
                detector.add(taken[inner], held, batch.mask, weights, is_forget)
                if more:
                    kept[-1].append((held, shelf.put(taken[out])))
        u, share = detector.solve(config.ridge)
        shift = coefficient * target.directions[layer]
        found[layer] = Solved(shift, u, share)
        if more:
            for (stream, _, _), parts in zip(streams, kept, strict=True):
                stream.advance(layer + 1, [_moved(h, a, shift, u, shelf) for h, a in parts])
    return found


def _moved(inner: Any, out: Any, shift: Tensor, u: Tensor, shelf: Shelf) -> Any:
    """The block's output after the edit: a + c r (u . h), without running the block again."""
    h, a = inner(), out()
    value = strength(h, u)
    return shelf.put(a + (value[..., None] * shift.to(value)).to(a.dtype))


def edit_of(chat: ChatModel, found: dict[int, Solved], meta: dict[str, Any]) -> Edit:
    """The rank-one parts as an Edit, in the orientation in which the weights are stored."""
    parts = {}
    for layer, (shift, u, _) in found.items():
        left, right = (u, shift) if chat.layout.transposed else (shift, u)
        parts[chat.layout.weight_name(layer)] = LowRank(left.cpu()[:, None], right.cpu()[None, :])
    if warnings := [
        f"layer {layer}: one direction (often one token's) holds {s.share:.0%} of the activations' energy, so the ridge is "
        "far stronger than it looks; choose lower layers or a smaller ridge"
        for layer, s in found.items()
        if s.share > HEAVY
    ]:
        meta = meta | {"warnings": warnings}
    return Edit.on(chat.model, parts, meta)


def lunar(chat: ChatModel, task: ForgetTask, config: LunarConfig, progress: Progress | None = None) -> Edit:
    """The Edit of LUNAR; the model is left as it was.

    What is "auto" in the config is found (see `tuning`); with layers, coefficient and ridge given, the edit is
    the formula above on exactly the task's rows.
    """
    from . import tuning
    from .refine import refined

    every = list(range(len(chat.layout)))
    given = every if config.layers == "auto" else chat.layout.check_layers(list(config.layers))
    check_additive(chat, given)
    if config.solver == "sgd":
        from .lunar_sgd import published

        found: dict[str, Any] = {}
        if config.layers == "auto":
            taught = config.direction
            found["layers"] = (tuning.best_layer(chat, task),) if taught == "own" else tuple(written(chat, taught))
        if config.coefficient == "auto":
            found["coefficient"] = 2.0
        return published(chat, task, config.model_copy(update=found))
    if "auto" in (config.layers, config.coefficient, config.ridge):
        return tuning.tune(chat, task, config, progress)
    edit = solve(chat, prepare(chat, task, given, config), config)
    return refined(chat, edit, task, config.refine, progress) if config.refine else edit


def solve(chat: ChatModel, target: Target, config: LunarConfig) -> Edit:
    """The exact solution as an Edit; see `exact`."""
    placed = config.placed()
    meta = {"method": "lunar", "layers": [*placed], "coefficient": [*placed.values()], "ridge": config.ridge}
    return edit_of(chat, exact(chat, target, config), meta)

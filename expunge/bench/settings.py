"""With which settings a benchmark runs a method: its published ones, and the small grid of the tuned regime.

Every method has the same number of trials. A grid is ordered so that its first points are the likeliest.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import yaml

from ..errors import InputError
from ..methods import method

REGIMES = ("published", "tuned", "equal-time")
STEPS = 5  # of an epoch in the tuned regime: the usual batch of 32 would be one step for a small forget set
SMALLEST_BATCH = 4
TIMED_EPOCHS = (1, 3)  # of equal-time: the difference is two epochs without what comes once
CLOSE = 0.1  # relative to LUNAR's time: so close a run has to come to it
TIMED_TRIES = 3  # runs at most, of which the closest counts: a busy machine takes now longer and now shorter
REVEALED_ROWS = 80  # by which the batch is chosen where the model makes the rows to forget

PUBLISHED: dict[str, dict[str, Any]] = {
    # The paper's coefficient, at the layers that the abstention score finds, without a trial; solved as Expunge does by
    # default, at several layers. What the authors' code does, at one layer, is the variant lunar:solver=sgd.
    "lunar": {"coefficient": 2.0, "ridge": 0.01, "trials": 1},
}
# What SOUL's authors ran, in all weights and batches of four: SO-PO, which is idk's loss, and SO-GradDiff, whose rate and
# retain weight the other losses get.
_SOUL: dict[str, Any] = {"adapter": "full", "batch_size": 4, "epochs": 5, "weight_decay": 0.1}
SOUL: dict[str, dict[str, Any]] = {
    "graddiff": _SOUL | {"learning_rate": 5e-6, "retain_weight": 2.0},
    "idk": _SOUL | {"learning_rate": 1e-5, "retain_weight": 5.0},
}
_USUAL: dict[str, tuple[Any, ...]] = {
    "learning_rate": (3e-4, 1e-3, 1e-4),
    "retain_weight": (5.0, 10.0),
    "epochs": (10, 20),
    "rank": (8, 16),
}
_GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "lunar": {"coefficient": (2.0, 4.0, 1.0, 3.0, 6.0, 8.0, 10.0, 5.0)},  # of solver=sgd, which has no search
    "ga": {"learning_rate": (3e-4, 1e-4, 1e-3), "epochs": (5, 10), "rank": (8, 16)},
    "graddiff": _USUAL | {"retain_weight": (1.0, 5.0)},
    "simnpo": _USUAL | {"retain_weight": (1.0, 0.5)},  # beside a weight of 0.1375 of what is to be forgotten
    "undial": {"learning_rate": (3e-4, 1e-3), "beta": (10.0, 30.0, 3.0), "epochs": (10, 20)},
    "rmu": {
        "learning_rate": (1e-3, 1e-4, 1e-5),
        "coefficient": (20.0, 2.0),
        "retain_weight": (1.0, 100.0),
        "epochs": (10, 20),
    },
    "task-vector": {"scale": (1.0, 2.0, 0.5), "learning_rate": (3e-4, 1e-4), "epochs": (10, 20)},
    "reveal-release": {"learning_rate": (3e-4, 1e-3), "epochs": (5, 10, 20), "rank": (8, 16)},
    "ext-sub": {"scale": (1.0, 2.0, 0.5), "learning_rate": (3e-4, 1e-4), "epochs": (10, 20)},
}
_FULL = {"learning_rate": (1e-5, 3e-5)}  # where all weights are trained


def parsed(text: str) -> tuple[str, str]:
    """(method, variant) of an item of --methods: "npo", or "npo:beta=0.5:optimizer=sophia".

    Raises:
        InputError: an unknown method or setting, or an unusable value.
    """
    name, _, variant = text.partition(":")
    if name == "retrain":
        raise InputError("retrain is in every table; leave it out of --methods")
    method(name).configure(**fixed(variant))
    return name, variant


def fixed(variant: str) -> dict[str, Any]:
    """The settings that a variant stands for: {"beta": 0.5, "optimizer": "sophia"}."""
    items = [item.partition("=") for item in variant.split(":") if item]
    for name, mark, _ in items:
        if not mark:
            raise InputError(f"--methods takes NAME or NAME:setting=value, got {name!r} as a setting")
    try:
        return {name: yaml.safe_load(value) for name, _, value in items}
    except yaml.YAMLError as e:
        raise InputError(f"--methods: unusable value in {variant!r}: {str(e).splitlines()[0]}") from None


def searches(name: str, variant: str) -> bool:
    """Whether the method finds its settings by itself: LUNAR does, with as many trials as the others have."""
    return name == "lunar" and fixed(variant).get("solver", "exact") == "exact"


def published(name: str, variant: str = "") -> dict[str, Any]:
    """Settings of the published regime that differ from the method's defaults."""
    given = fixed(variant)
    return PUBLISHED.get(name, {}) | (_soul(name) if given.get("optimizer") == "sophia" else {}) | given


def _soul(name: str) -> dict[str, Any]:
    """SOUL's settings that the method has; those of a method that is not a loss (it may train some weights only) stay."""
    found = SOUL.get(name, SOUL["graddiff"]) if _is_loss(name) else {}
    return {k: v for k, v in found.items() if method(name).has(k)}


def _is_loss(name: str) -> bool:
    return method(name).module == ".gradient"


def grid(name: str, variant: str, trials: int, forget_rows: int) -> list[dict[str, Any]]:
    """The settings of the tuned regime's trials.

    Raises:
        InputError: the grid has fewer points.
    """
    given = fixed(variant)
    if searches(name, variant):
        return [{"trials": trials} | given]
    full = _is_loss(name) and given.get("adapter") == "full"
    usual = _GRIDS.get(name, _USUAL) | (_FULL if full else {})
    unused = ({"coefficient"} if given.get("adaptive") else set()) | ({"rank"} if full else set())
    axes = {k: v for k, v in usual.items() if k not in given and k not in unused}
    points = [dict(zip(reversed(axes), values, strict=True)) for values in product(*reversed(axes.values()))]
    if len(points) < trials:
        raise InputError(
            f"the grid of {name}{f' ({variant})' if variant else ''} has {len(points)} points: --trials {trials} is too many"
        )
    if method(name).has("batch_size"):
        given = {"batch_size": max(SMALLEST_BATCH, math.ceil(forget_rows / STEPS))} | given
    return [{k: point[k] for k in axes} | given for point in points[:trials]]

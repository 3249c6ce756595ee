"""With which settings a benchmark runs a method: its published ones, and the small grid of the tuned regime.

Every method has the same number of trials. A grid is ordered so that its first entries are the likeliest.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import yaml

from ..errors import InputError
from ..methods import method

REGIMES = ("published", "tuned", "equal-time")
RATES = (1e-3, 3e-4, 3e-3, 1e-4)
PUBLISHED: dict[str, dict[str, Any]] = {
    # One layer and c = 2 are the paper's; the layer comes from the abstention score, and no trial is made.
    "lunar": {"coefficient": 2.0, "ridge": 0.01, "trials": 1},
}
_GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "lunar": {"coefficient": (2.0, 4.0, 1.0, 3.0, 6.0, 8.0)},  # of the published solver, which has no search
    "ga": {"learning_rate": RATES, "epochs": (10, 20)},
    "undial": {"learning_rate": RATES, "beta": (10.0, 30.0)},
    "rmu": {"coefficient": (20.0, 2.0), "learning_rate": (1e-3, 1e-4), "adaptive": (True, False)},
    "task-vector": {"scale": (1.0, 2.0, 0.5, 0.25), "learning_rate": (3e-4, 1e-3)},
    "ext-sub": {"scale": (1.0, 2.0, 0.5, 4.0), "learning_rate": (3e-4, 1e-3)},
}
_USUAL: dict[str, tuple[Any, ...]] = {"learning_rate": RATES, "retain_weight": (1.0, 5.0)}


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
    return {name: yaml.safe_load(value) for name, _, value in items}


def published(name: str, variant: str = "") -> dict[str, Any]:
    """Settings of the published regime that differ from the method's defaults."""
    return PUBLISHED.get(name, {}) | fixed(variant)


def grid(name: str, variant: str, trials: int) -> list[dict[str, Any]]:
    """The settings of the tuned regime's trials. LUNAR searches by itself, with as many trials."""
    given = fixed(variant)
    if name == "lunar" and given.get("solver") != "sgd":
        return [{"trials": trials} | given]
    axes = {k: v for k, v in _GRIDS.get(name, _USUAL).items() if k not in given}
    if not axes:
        return [given]
    first, *rest = axes.values()
    names = list(axes)
    points = [dict(zip(names, (a, *more), strict=True)) | given for *more, a in product(*rest, first)]
    return points[:trials]

"""With which settings a benchmark runs a method: its published ones, and the small grid of the tuned regime.

Every method has the same number of trials. A grid is ordered so that its first entries are the likeliest.
"""

from __future__ import annotations

from itertools import product
from typing import Any

REGIMES = ("published", "tuned", "equal-time")
RATES = (1e-3, 3e-4, 3e-3, 1e-4)
PUBLISHED: dict[str, dict[str, Any]] = {
    # One layer and c = 2 are the paper's; the layer comes from the abstention score, and no trial is made.
    "lunar": {"coefficient": 2.0, "ridge": 0.01, "trials": 1},
}
_GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ga": {"learning_rate": RATES, "epochs": (10, 20)},
    "undial": {"learning_rate": RATES, "beta": (10.0, 30.0)},
    "rmu": {"coefficient": (20.0, 2.0), "learning_rate": (1e-3, 1e-4), "adaptive": (True, False)},
    "task-vector": {"scale": (1.0, 2.0, 0.5, 0.25), "learning_rate": (3e-4, 1e-3)},
    "ext-sub": {"scale": (1.0, 2.0, 0.5, 4.0), "learning_rate": (3e-4, 1e-3)},
}
_USUAL: dict[str, tuple[Any, ...]] = {"learning_rate": RATES, "retain_weight": (1.0, 5.0)}


def published(method: str) -> dict[str, Any]:
    """Settings of the published regime that differ from the method's defaults."""
    return dict(PUBLISHED.get(method, {}))


def grid(method: str, trials: int) -> list[dict[str, Any]]:
    """The settings of the tuned regime's trials. LUNAR searches by itself, with as many trials."""
    if method == "lunar":
        return [{"trials": trials}]
    axes = _GRIDS.get(method, _USUAL)
    first, *rest = axes.values()
    names = list(axes)
    points = [dict(zip(names, (a, *more), strict=True)) for *more, a in product(*rest, first)]
    return points[:trials]

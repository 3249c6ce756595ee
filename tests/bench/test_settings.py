"""Published settings against their papers' (docs/paper_index.md), written down once more; and the grids."""

from __future__ import annotations

import json

import pytest

from expunge.bench import settings
from expunge.methods import REGISTRY

FIELD = {"epochs": 10, "batch_size": 32, "weight_decay": 0.01, "optimizer": "adamw", "adapter": "lora"}
LORA = {"rank": 8, "alpha": 32.0, "learning_rate": 1e-4}
PUBLISHED = {
    "ga": FIELD | LORA,
    "graddiff": FIELD | LORA | {"retain_weight": 1.0},
    "kl": FIELD | LORA | {"retain_weight": 1.0},
    "idk": FIELD | LORA | {"retain_weight": 1.0},
    "dpo": FIELD | LORA | {"retain_weight": 1.0, "beta": 0.1},
    "npo": FIELD | LORA | {"retain_weight": 1.0, "beta": 0.1},
    "simnpo": FIELD | LORA | {"retain_weight": 1.0, "beta": 2.5, "forget_weight": 0.1375, "delta": 0.0},
    "altpo": FIELD | LORA | {"retain_weight": 1.0, "beta": 0.1},
    "undial": FIELD | LORA | {"alpha": 16.0, "beta": 10.0},
    "wga": FIELD | LORA | {"retain_weight": 1.0, "beta": 1.0},
    "rmu": FIELD
    | {"adapter": "full", "learning_rate": 1e-5, "coefficient": 2.0, "retain_weight": 1.0, "adaptive": False},
    "lunar": {"coefficient": 2.0, "ridge": 0.01, "trials": 1, "layers": "auto", "solver": "exact", "answers": 250},
    "lunar:solver=sgd": {"coefficient": 2.0, "layers": "auto", "solver": "sgd", "answers": 0},
}
SOUL = {"optimizer": "sophia", "adapter": "full", "batch_size": 4, "epochs": 5, "weight_decay": 0.1}
SO_GRADDIFF = SOUL | {"learning_rate": 5e-6, "retain_weight": 2.0}
SO_PO = SOUL | {"learning_rate": 1e-5, "retain_weight": 5.0}


def whole(item):
    """The settings with which the published regime runs an item of --methods, defaults included."""
    name, variant = settings.parsed(item)
    return REGISTRY[name].configure(**settings.published(name, variant)).model_dump()


@pytest.mark.parametrize("item", PUBLISHED)
def test_the_published_settings_are_the_published_ones(item):
    assert PUBLISHED[item].items() <= whole(item).items()


LOSSES = [m.name for m in REGISTRY.values() if m.module == ".gradient"]


@pytest.mark.parametrize("name", LOSSES)
def test_sophia_runs_as_souls_authors_ran_it(name):
    wanted = SO_PO if name == "idk" else SO_GRADDIFF
    found = whole(f"{name}:optimizer=sophia")
    assert {k: v for k, v in wanted.items() if k in found}.items() <= found.items()
    assert ("retain_weight" in found) == (name not in ("ga", "undial"))
    given = whole(f"{name}:optimizer=sophia:learning_rate=0.001:adapter=lora:epochs=2")
    assert {"learning_rate": 1e-3, "adapter": "lora", "epochs": 2, "batch_size": 4}.items() <= given.items()


@pytest.mark.parametrize("name", ["task-vector", "ext-sub", "rmu", "reveal-release"])
def test_what_is_no_loss_keeps_its_own_settings_under_sophia(name):
    assert whole(f"{name}:optimizer=sophia") == whole(name) | {"optimizer": "sophia"}


def axes(name, variant="", trials=6):
    """The values of each setting among the first points of a grid, in their order."""
    found = {}
    for point in settings.grid(name, variant, trials, 20):
        for setting, value in point.items():
            if value not in found.setdefault(setting, []):
                found[setting].append(value)
    return found


def test_the_first_points_of_a_grid_are_rates_by_weights():
    points = settings.grid("npo", "", 6, 20)
    assert [(p["learning_rate"], p["retain_weight"]) for p in points] == [
        (3e-4, 5.0), (1e-3, 5.0), (1e-4, 5.0), (3e-4, 10.0), (1e-3, 10.0), (1e-4, 10.0)
    ]  # fmt: skip
    assert axes("graddiff")["retain_weight"] == [1.0, 5.0]
    assert axes("graddiff")["learning_rate"] == [3e-4, 1e-3, 1e-4]
    assert axes("ga") == {"learning_rate": [3e-4, 1e-4, 1e-3], "epochs": [5, 10], "rank": [8], "batch_size": [4]}
    fixed = axes("graddiff", "retain_weight=2")
    assert fixed["retain_weight"] == [2]
    assert (fixed["learning_rate"], fixed["epochs"]) == ([3e-4, 1e-3, 1e-4], [10, 20])


@pytest.mark.parametrize("name", LOSSES)
def test_all_weights_have_rates_of_their_own_and_no_rank(name):
    points = settings.grid(name, "adapter=full", 4, 20)
    assert {p["learning_rate"] for p in points} == {1e-5, 3e-5}
    assert len({json.dumps(p) for p in points}) == 4
    assert not any("rank" in p for p in points)

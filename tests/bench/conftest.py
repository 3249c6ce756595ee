"""A benchmark on a pico model, and what it runs."""

from __future__ import annotations

import json

import pytest

from expunge.bench import seed
from expunge.data import prompts, suites
from expunge.spec import BenchSpec, ModelSpec
from tests.conftest import QUICK_TEACHING


@pytest.fixture
def spec(tmp_path, pico_folder, monkeypatch):
    monkeypatch.setattr(suites, "PISTOL_TEACHING", QUICK_TEACHING)
    rows = [
        {"question": e.prompt, "answer": e.response, "group": "AB"[n % 2]} for n, e in enumerate(prompts.general()[:24])
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return BenchSpec(
        suite="facts",
        model=ModelSpec(name=str(pico_folder("llama"))),
        methods=("graddiff", "lunar"),
        trials=2,
        size={"data": str(file), "forget_group": ["A"]},
        out=str(tmp_path / "out"),
    )


@pytest.fixture
def calls(monkeypatch):
    """The method runs of a benchmark, in their order."""
    made, real = [], seed.run_method

    def counted(chat, task, name, given, **more):
        made.append((name, given))
        return real(chat, task, name, given, **more)

    monkeypatch.setattr(seed, "run_method", counted)
    return made

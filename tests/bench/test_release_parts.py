"""The variants that benchmarks/release.py runs."""

import pytest

from benchmarks import release as parts
from expunge.bench import settings
from expunge.bench.results import Cell, Results
from expunge.methods import method
from expunge.methods.choosing import Figures, Limits
from expunge.methods.release import ReleaseConfig


def configured(text: str):
    name, variant = settings.parsed(text)
    return method(name).configure(**settings.published(name, variant))


@pytest.mark.parametrize("part", parts.PARTS)
def test_each_part_is_a_setting_that_differs_from_the_default(part):
    assert configured(f"{parts.METHOD}:{part}") != ReleaseConfig()


def test_one_step_of_the_same_total_is_trained_as_a_round_is_and_taken_whatever_it_costs():
    step, alone, kept, *merges = map(configured, parts.at_once(parts.as_it_comes(300), 4.5, [300, 40]))
    assert step.forget_steps == alone.forget_steps == (4.5,)
    assert kept.forget_steps == (0,)
    assert kept.retain_module
    assert step.rounds == kept.rounds == 1
    assert (step.rows, step.retain_rows) == (alone.rows, alone.retain_rows) == (300, 450)
    assert not alone.retain_module
    assert step.retain_module
    limits = Limits.of(Figures(1.0, 1.0, (0.01, 2.0)), step)
    assert limits.hold(Figures(1.0, 0.0, (100.0, 100.0)))
    for merge in merges:
        assert merge.scale == 4.5
        assert merge.epochs == ReleaseConfig().passes(40) > ReleaseConfig().passes(300)
        assert merge.learning_rate == ReleaseConfig().learning_rate


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What a stand-in for the benchmark is asked for: it finds two rounds of each variant, of seeds whose totals differ."""
    asked = []

    def bench_run(spec, _):
        asked.append(spec)
        found = Results(tmp_path, str(spec.size), {})  # with the cells of an earlier run
        for number, text in enumerate(spec.methods):
            for seed in spec.seeds:
                name, variant = settings.parsed(text)
                logs = [{"rows": 30 + seed, "cosine": number / 10, "interference": number}] * 2
                cell = Cell(seed, name, "published", variant)
                found.add(cell, {"round_log": logs, "total_forget_step": 3.0 + seed} if name == parts.METHOD else {})
        return found

    monkeypatch.setattr("expunge.bench.runner.bench_run", bench_run)
    monkeypatch.setattr("expunge.bench.table.report", lambda out: f"the table of {out}")
    return asked


def called(monkeypatch, words):
    monkeypatch.setattr("sys.argv", ["release.py", *words.split()])
    parts.main()


def test_the_one_step_is_as_large_as_the_rounds_and_all_is_printed(asked, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    called(monkeypatch, f"ner --seeds 0,1 --rows 100 --taught 50 --budget 7 --out {out}")
    own, once, external = asked
    whole = parts.as_it_comes(100)
    assert own.methods == (whole, *(f"{whole}:{part}" for part in parts.PARTS))
    assert once.methods == parts.at_once(whole, 3.5, [30, 31])
    assert external.methods == (whole,)
    assert own.size == once.size == {"taught": 50, "budget": 7}
    assert external.size == {"taught": 50, "forget_data": "external"}
    said = capsys.readouterr().out
    assert f"the table of {out}" in said
    assert "| revealed | retain_module=false | 4 | 0.100 | 1.0 |" in said
    assert "| external | as it comes | 4 | 0.000 | 0.0 |" in said


def test_one_comparison_alone(asked, monkeypatch):
    whole = parts.as_it_comes(100)
    called(monkeypatch, "ner --rows 100 --only external")
    called(monkeypatch, "ner --rows 100 --only one-step --total 0.3")
    assert [spec.methods for spec in asked] == [(whole,), parts.at_once(whole, 0.3, [100])]
    called(monkeypatch, "ner --rows 100 --only settings")
    assert len(asked[2].methods) == 1 + len(parts.PARTS)
    called(monkeypatch, "ner --seeds 1 --rows 100 --only one-step")
    assert [spec.methods for spec in asked[3:]] == [(whole,), parts.at_once(whole, 4.0, [31])]

"""Estimates against sums worked out by hand, with ten tokens a row, a second for each of a forward pass, and half a second
for one that is generated."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from expunge.bench import estimate, seed
from expunge.bench.results import Cell
from expunge.bench.runner import results_of
from expunge.methods.tuning import with_rewrites
from expunge.progress import Reporter

RATES = SimpleNamespace(tokens=10, forward=1.0, generate=0.5)


@pytest.fixture
def bench(spec):
    return seed.Bench(spec, 0, results_of(spec), Reporter(quiet=True))


def judged(bench, roles):
    """Seconds of judging these rows: each read once, and answered."""
    rows = sum(map(len, roles.values()))
    return rows * (10 + bench.suite.max_new_tokens * estimate.ANSWER_SHARE * 0.5)


def lunar(bench):
    """Seconds of one exact solve: over the fitted rows, rewrites and own answers."""
    fit = bench.suite.fit
    rows = with_rewrites(fit, fit.retain, fit.validation, 6)
    return (len(rows.forget) + len(rows.retain) + 250) * 10 * estimate.LUNAR_PASSES


def epochs(bench, count):
    """Seconds of so many epochs of graddiff: forget rows, and as many retain rows."""
    return count * 2 * len(bench.suite.fit.forget) * 10 * estimate.TRAINED


def of(bench, *cell):
    """Seconds of a cell, beside teaching and judging."""
    total = estimate.seconds(bench, [Cell(0, *cell)], RATES, None) - estimate.seconds(bench, [], RATES, None)
    return total - judged(bench, bench.suite.judge)


def test_published(bench):
    assert of(bench, "graddiff", "published") == pytest.approx(epochs(bench, 10))
    assert of(bench, "lunar", "published") == pytest.approx(lunar(bench))


def test_the_authors_procedure_has_the_rows_alone(bench):
    rows = len(bench.suite.fit.forget) + len(bench.suite.fit.retain)
    one = rows * 10 * estimate.SGD_PASSES
    assert one < lunar(bench)
    assert of(bench, "lunar", "published", "solver=sgd") == pytest.approx(one)
    assert of(bench, "lunar", "tuned", "solver=sgd") == pytest.approx(2 * (one + judged(bench, bench.suite.validate)))


def test_tuned(spec, bench):
    """Each trial is judged; LUNAR prepares as many places as it has windows, or trials."""
    looks = judged(bench, bench.suite.validate)
    assert of(bench, "graddiff", "tuned") == pytest.approx(2 * (epochs(bench, 10) + looks))
    assert of(bench, "lunar", "tuned") == pytest.approx(2 * (lunar(bench) + looks))
    more = seed.Bench(spec.model_copy(update={"trials": 6}), 0, bench.results, bench.reporter)
    assert of(more, "lunar", "tuned") == pytest.approx(3 * lunar(bench) + 6 * looks)


def test_equal_time(bench):
    """As long as LUNAR's search, after one and three epochs by which an epoch is timed."""
    looks = judged(bench, bench.suite.validate)
    assert of(bench, "graddiff", "equal-time") == pytest.approx(2 * (lunar(bench) + looks) + epochs(bench, 4))

"""What the table shows of records made by hand."""

from __future__ import annotations

from expunge.bench import table
from expunge.bench.results import Cell


def shown(*records):
    """The row of a method's records, one a seed, as {heading: cell}; and the text below."""
    cells = {Cell(n, "npo", "tuned"): r for n, r in enumerate(records)}
    text = table.table({("npo", "tuned", ""): list(records)}, cells, ("rouge1",))
    heads, _, row, *rest = text.splitlines()
    return dict(zip(*([c.strip() for c in line.split("|")[1:-1]] for line in (heads, row)), strict=True)), "\n".join(
        rest
    )


def record(**more):
    judged = {"metrics": {"forget": {"rouge1": 0.5, "rows": 3}, "deviation_score": 50.0}, "headline": {}}
    return judged | {"machine": "a machine", "settings": {}} | more


def test_numbers_of_the_edit_are_those_of_all_seeds():
    """Which choose different ranks or layers."""
    one, two = record(parameters=2_442_240, weights=106_000_000), record(parameters=4_884_480, weights=106_000_000)
    row, _ = shown(two, one, record(diverged=7))
    assert row["numbers of the edit"] == "2,442,240 to 4,884,480"
    assert row["weights changed"] == "106,000,000"
    assert shown(record())[0]["weights changed"] == ""


def test_seeds_of_other_numbers_of_rows():
    fewer = record(metrics={"forget": {"rouge1": 0.5, "rows": 2}})
    assert "Rows of each role: forget 2 to 3." in shown(record(), fewer)[1]
    assert "Rows of each role: forget 3." in shown(record())[1]


def test_a_time_of_two_regimes_is_not_compared():
    rows = {
        ("lunar", "tuned", ""): [record(cell=[0], headline={"deviation_score": 3.0})],
        ("ga", "equal-time", ""): [record(cell=[0], headline={"deviation_score": 9.0}, beside="tuned")],
        ("npo", "equal-time", ""): [record(cell=[0], headline={"deviation_score": 6.0}, beside="published")],
    }
    (line,) = table.compared(rows)
    assert "not compared, as LUNAR's time is of published and tuned settings" in line
    rows["npo", "equal-time", ""][0]["beside"] = "tuned"
    assert "the fitted rows 2.0 (npo 6.0, LUNAR 3.0" in table.compared(rows)[0]


def test_the_legend_says_what_lunar_published_is():
    legend = shown(record())[1]
    for part in (
        "the paper's coefficient (c = 2)",
        "solved exactly",
        "rewrites, own answers",
        "lunar solver=sgd is the authors'",
    ):
        assert part in legend

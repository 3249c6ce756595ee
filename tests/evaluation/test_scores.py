import pytest

from expunge import ForgetTask, evaluate
from expunge.evaluation.scores import METRICS

from ..conftest import FACTS, UNKNOWN, examples


def test_the_shape_that_everything_reads(tiny, tiny_task):
    result = evaluate(tiny, tiny_task, max_new_tokens=16)
    assert set(result) == {"forget", "paraphrase", "retain", "deviation_score", "seconds"}
    for role in ("forget", "paraphrase", "retain"):
        assert set(result[role]) == {*METRICS, "rows"}
        assert result[role]["rows"] == len(tiny_task.role(role)) == len(result.rows[role])
        for metric in METRICS:
            assert result[role][metric] == pytest.approx(
                sum(r[metric] for r in result.rows[role]) / result[role]["rows"]
            )


def test_a_model_that_knows_scores_high_and_one_that_abstains_low(tiny):
    known = evaluate(tiny, ForgetTask(forget=FACTS), max_new_tokens=16)["forget"]
    assert known["rouge1"] > 0.9
    assert known["probability"] > 0.8
    assert known["extraction_strength"] > 0.8
    assert known["mrr"] > 0.9
    assert known["abstention_rate"] == 0
    unknown = evaluate(
        tiny, ForgetTask(forget=examples(*[(str(e.prompt), "Zanzibar") for e in UNKNOWN])), max_new_tokens=24
    )["forget"]
    assert unknown["abstention_rate"] > 0.9
    assert unknown["rouge1"] == 0
    assert unknown["probability"] < 0.1


def test_all_rows_count_in_their_order_whatever_the_batch_size(tiny, tiny_task):
    one, many = (evaluate(tiny, tiny_task, max_new_tokens=12, batch_size=n) for n in (1, 64))
    for role, rows in one.rows.items():
        for a, b in zip(rows, many.rows[role], strict=True):
            assert a == pytest.approx(b, abs=1e-4)
    assert one.answers == many.answers

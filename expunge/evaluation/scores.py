"""One evaluation of one model: every role of a task, every metric, from one pass over the prompts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..data.examples import Example, ForgetTask
from ..models.generation import BATCH_ROWS, MAX_NEW_TOKENS, Generated, greedy
from ..models.loading import ChatModel
from .likelihood import exact_memorization, extraction_strength, probability, reciprocal_ranks
from .text import abstains, deviation_score, rouge_recall

METRICS = (
    "rouge1",
    "rougeL",
    "mrr",
    "top_hit_rate",
    "probability",
    "extraction_strength",
    "exact_memorization",
    "abstention_rate",
)
JUDGED = ("forget", "paraphrase", "retain", "general", "holdout")


class Evaluation(dict[str, Any]):
    """Numbers by role and metric, with per-row values beside them.

    {"forget": {"rouge1", "rougeL", "mrr", "top_hit_rate", "probability", "extraction_strength", "exact_memorization",
    "abstention_rate", "rows"}, …, "deviation_score", "seconds"}: one key for each role that is there.

    Attributes:
        rows: role -> one dict of metrics a row, in the rows' order.
        answers: role -> the model's answers (never written by Expunge).
    """

    rows: dict[str, list[dict[str, float]]]
    answers: dict[str, list[str]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows, self.answers = {}, {}


def evaluate(
    model: ChatModel,
    task: ForgetTask,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_ROWS,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluates every judged role of the task on all of its rows.

    Args:
        progress: called with the number of rows finished.
    """
    begin = time.perf_counter()
    roles = {name: rows for name, rows in task.present().items() if name in JUDGED}
    examples = [e for rows in roles.values() for e in rows]
    prompts = model.prompt_ids([e.prompt for e in examples])
    answers = model.answer_ids([e.response for e in examples])
    content = [_content(model, a) for a in answers]
    generated = greedy(model, prompts, max_new_tokens, answers, batch_size, progress)
    result = Evaluation()
    at = 0
    for name, rows in roles.items():
        span = slice(at, at + len(rows))
        at += len(rows)
        values = [row_metrics(*r) for r in zip(rows, generated[span], content[span], strict=True)]
        result.rows[name] = values
        result.answers[name] = [g.text for g in generated[span]]
        result[name] = {metric: sum(v[metric] for v in values) / len(values) for metric in METRICS} | {
            "rows": len(rows)
        }
    if "forget" in result and "retain" in result:
        result["deviation_score"] = deviation_score(result["forget"]["rouge1"], result["retain"]["rouge1"])
    result["seconds"] = time.perf_counter() - begin
    return result


def _content(model: ChatModel, answer: list[int]) -> int:
    """Tokens of an answer without the end-of-sequence token; at least one."""
    return max(len(answer) - (1 if answer and answer[-1] == model.tokenizer.eos_token_id else 0), 1)


def row_metrics(example: Example, generated: Generated, tokens: int) -> dict[str, float]:
    """All metrics of one row. `tokens`: the true answer's tokens without end-of-sequence."""
    scored = generated.scored
    if scored is None:
        raise ValueError("the true answer was not scored")
    rouge1, rouge_l = rouge_recall(generated.text, example.response)
    mrr, hits, filled = reciprocal_ranks(generated.ranks, scored.ranks, tokens)
    return {
        "rouge1": rouge1,
        "rougeL": rouge_l,
        "mrr": mrr,
        "top_hit_rate": hits,
        "probability": probability(scored),
        "extraction_strength": extraction_strength(scored, tokens),
        "exact_memorization": exact_memorization(scored, tokens),
        "abstention_rate": float(abstains(generated.text)),
        "filled_steps": float(filled),
    }

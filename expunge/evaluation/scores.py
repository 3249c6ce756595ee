"""One evaluation of one model: every role of a task, every metric, from one pass over the prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.examples import Example, ForgetTask
from ..errors import InputError
from ..models.generation import BATCH_ROWS, MAX_NEW_TOKENS, Generated, greedy
from ..models.loading import ChatModel
from . import likelihood, privacy
from .likelihood import exact_memorization, extraction_strength, probability, reciprocal_ranks
from .text import abstains, deviation_score, exact_match, rouge_l_f1, rouge_recall

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
OPTIONAL = ("truth", "choice_probability")  # where rows have wrong answers
BENCHED = ("rougeL_f1", "exact_match")  # of each row; benchmarks have their means as well
FORGOTTEN = ("forget", "paraphrase")
MEMBERSHIP = ("loss", "zlib", "min_k", "min_k_plus")  # of each row, for membership inference
JUDGED = ("forget", "paraphrase", "retain", "general", "holdout")
RESAMPLES = 1000


class Evaluation(dict[str, Any]):
    """Numbers by role and metric, with per-row values beside them.

    {"forget": {"rouge1", "rougeL", "mrr", "top_hit_rate", "probability", "extraction_strength", "exact_memorization",
    "abstention_rate", "rows"}, …, "deviation_score", "seconds"}: one key for each role that is there. A role whose
    rows have wrong answers has "truth" and "choice_probability" as well (its rows the "truth_ratio"); with the roles
    forget and holdout there are "auc_loss", "auc_zlib", "auc_min_k" and "auc_min_k_plus".

    Attributes:
        rows: role -> one dict of metrics a row, in the rows' order. A number of `add` has a role of its own name.
        groups: role -> the rows' groups.
        answers: role -> the model's answers (never written by Expunge).
    """

    rows: dict[str, list[dict[str, float]]]
    groups: dict[str, list[str]]
    answers: dict[str, list[str]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows, self.groups, self.answers = {}, {}, {}

    def add(self, name: str, values: Sequence[float]) -> None:
        """A number that is the mean over rows of its own, such as an accuracy; the values are kept. Without rows it is absent."""
        if not values:
            return
        self[name] = sum(values) / len(values)
        self.rows[name] = [{name: float(v)} for v in values]

    def record(self) -> dict[str, Any]:
        """What can be written: numbers and rows. Answers and groups are not in it: they may hold what is to be forgotten."""
        return {"values": dict(self), "rows": self.rows}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Evaluation:
        """From what `record` gave."""
        result = cls(record["values"])
        result.rows = record["rows"]
        return result

    def roles(self) -> dict[str, dict[str, float]]:
        """The numbers of each role."""
        return {name: values for name, values in self.items() if isinstance(values, dict)}

    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """role -> metric -> 95% bootstrap interval of its mean over the rows."""
        metrics = {name: [m for m in values if m != "rows"] for name, values in self.roles().items()}
        return {
            role: {metric: interval([r[metric] for r in rows]) for metric in metrics.get(role, [role])}
            for role, rows in self.rows.items()
        }


def evaluate(
    model: ChatModel,
    task: ForgetTask | Mapping[str, Sequence[Example]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_ROWS,
    ends: Mapping[str, tuple[int, Sequence[str]]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluates every judged role of the task on all of its rows.

    Args:
        task: of a task, the roles forget, paraphrase, retain, general and holdout; of a mapping, every role.
        ends: of a group of rows, the most tokens of an answer, and the texts before the first of which it ends.
        progress: called with the number of rows finished.
    """
    begin = time.perf_counter()
    if isinstance(task, ForgetTask):
        roles: dict[str, Sequence[Example]] = {name: rows for name, rows in task.present().items() if name in JUDGED}
    else:
        roles = {name: rows for name, rows in task.items() if rows}
    examples = [e for rows in roles.values() for e in rows]
    prompts = model.prompt_ids([e.prompt for e in examples])
    answers = model.answer_ids([e.response for e in examples])
    content = [_content(model, a) for a in answers]
    generated = greedy(
        model, prompts, max_new_tokens, answers, batch_size, progress, others=_other_answers(model, examples)
    )
    for place, e in enumerate(examples):
        if ends and e.group in ends:
            most, stops = ends[e.group]
            one = generated[place]
            generated[place] = replace(one, text=_ended(model.decode(one.tokens[:most], strip=False), stops))
    result = Evaluation()
    at = 0
    for name, rows in roles.items():
        span = slice(at, at + len(rows))
        at += len(rows)
        values = [row_metrics(*r) for r in zip(rows, generated[span], content[span], strict=True)]
        for row in values:
            if "truth_ratio" in row:
                about = likelihood.forget_truth if name in FORGOTTEN else likelihood.kept_truth
                row["truth"] = about(row["truth_ratio"])
        result.rows[name] = values
        result.answers[name] = [g.text for g in generated[span]]
        result.groups[name] = [e.group for e in rows]
        present = [*METRICS, *(m for m in OPTIONAL if all(m in v for v in values))]
        result[name] = {metric: sum(v[metric] for v in values) / len(values) for metric in present} | {
            "rows": len(rows)
        }
    if "forget" in result and "retain" in result:
        result["deviation_score"] = deviation_score(result["forget"]["rouge1"], result["retain"]["rouge1"])
    if "forget" in result and "holdout" in result:
        for kind in MEMBERSHIP:
            members, others = ([row[kind] for row in result.rows[role]] for role in ("forget", "holdout"))
            result[f"auc_{kind}"] = privacy.auc(members, others)
    result["seconds"] = time.perf_counter() - begin
    return result


def _ended(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the stops, which can stand at its very beginning; without surrounding space."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)].strip()


def _other_answers(model: ChatModel, examples: Sequence[Example]) -> list[list[list[int]]] | None:
    """Of each example, the tokens of its paraphrased answer (where there is one) and of its wrong answers."""
    texts = [[*([e.paraphrased] if e.paraphrased else []), *e.wrong] for e in examples]
    if not any(texts):
        return None
    ids = iter(model.answer_ids([t for row in texts for t in row]))
    return [[next(ids) for _ in row] for row in texts]


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
    found = {
        "rouge1": rouge1,
        "rougeL": rouge_l,
        "mrr": mrr,
        "top_hit_rate": hits,
        "probability": probability(scored),
        "extraction_strength": extraction_strength(scored, tokens),
        "exact_memorization": exact_memorization(scored, tokens),
        "abstention_rate": float(abstains(generated.text)),
        "filled_steps": float(filled),
        "rougeL_f1": rouge_l_f1(generated.text, example.response),
        "exact_match": float(exact_match(generated.text, example.response)),
        "loss": likelihood.loss(scored),
        "zlib": privacy.zlib_score(scored, example.response),
        "min_k": privacy.min_k(scored, tokens),
        "min_k_plus": privacy.min_k_plus(scored, tokens),
    }
    if example.wrong:
        wrong = generated.others[1:] if example.paraphrased else generated.others
        correct = generated.others[0] if example.paraphrased else scored
        found["truth_ratio"] = likelihood.truth_ratio(correct, wrong)
        found["choice_probability"] = likelihood.choice_probability(scored, wrong)
    return found


def interval(values: Sequence[float], resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95% percentile interval of the mean over bootstrap resamples of the rows.

    Raises:
        InputError: there are no rows.
    """
    if not len(values):
        raise InputError("an interval needs at least one row")
    rows = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(len(rows), size=(resamples, len(rows)))
    low, high = np.quantile(rows[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)

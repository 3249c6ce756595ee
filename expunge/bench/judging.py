"""What the rows that judge say of a model: one evaluation, with what a benchmark adds to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..data.examples import Example
from ..data.suite import Suite
from ..edits import Edit
from ..evaluation import privacy
from ..evaluation.abilities import choice_accuracy, gsm8k_accuracy
from ..evaluation.behaviours import BEHAVIOURS
from ..evaluation.headlines import HEADLINES
from ..evaluation.likelihood import loss, perplexity, rows_loss
from ..evaluation.refusal import add_refusal_and_coherence
from ..evaluation.scores import Evaluation, evaluate
from ..models.generation import score_answers
from ..models.loading import ChatModel
from ..models.training import rows_of

LARGEST_LOSS = 700.0  # nats a token, beyond which the perplexity is infinite in double precision


def judge(
    chat: ChatModel,
    suite: Suite,
    edit: Edit | None,
    retrained: Evaluation | None,
    is_retrained: bool,
    arithmetic: bool,
    batch_size: int,
    progress: Callable[[int], None],
) -> tuple[Evaluation, dict[str, Any]]:
    """(the evaluation of the model as it stands with the edit, the record of a cell).

    Args:
        retrained: the retrained model's evaluation; None where there is none.
        is_retrained: whether the model is that one itself. arithmetic: whether it is asked for solutions, too.
    """
    with applied(edit, chat):
        found = evaluate(
            chat,
            suite.judge,
            max_new_tokens=suite.max_new_tokens,
            batch_size=batch_size,
            ends=suite.ends,
            progress=progress,
        )
        if suite.questions:
            found.add("accuracy", choice_accuracy(chat, suite.questions))
        if "holdout" in found:
            norms = {role: _gradient_norms(chat, suite, role) for role in ("forget", "holdout")}
            found["auc_gradient_norm"] = privacy.auc(*norms.values())
            for role, values in norms.items():
                for row, value in zip(found.rows[role], values, strict=True):
                    row["gradient_norm"] = value
        done: dict[str, float] = {}
        if suite.behaviour:
            done = BEHAVIOURS[suite.behaviour].judged(chat, suite.probes, suite.seed)
        if suite.text:
            done["perplexity"] = perplexity(chat, suite.text)
        if suite.solutions:
            done["perplexity"] = math.exp(rows_loss(chat, suite.solutions))
            if arithmetic:
                found.add("gsm8k", gsm8k_accuracy(chat, suite.solutions))
    spoken = "forget" if "forget" in suite.judge else next(iter(suite.judge))
    answers = found.answers[spoken]
    gold = found if is_retrained else retrained
    if gold and "holdout" in found:
        found["auc_reference"] = privacy.auc(*(privacy.reference(found, gold, r) for r in ("forget", "holdout")))
    add_refusal_and_coherence(found, chat, answers, _perplexities(chat, suite.judge[spoken], answers))
    return found, {
        "metrics": dict(found),
        "headline": {name: HEADLINES[name](found, gold) for name in suite.headline} | done,
        "intervals": found.intervals(),
    }


def _gradient_norms(chat: ChatModel, suite: Suite, role: str) -> list[float]:
    return privacy.gradient_norm(chat, rows_of(chat, [(e.prompt, e.response) for e in suite.judge[role]]))


def _perplexities(chat: ChatModel, rows: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """Of the answers to these rows under the model before the edit."""
    prompts = chat.prompt_ids([e.prompt for e in rows])
    ids = [i or [0] for i in chat.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]
    losses = map(loss, score_answers(chat, prompts, ids))
    return [math.exp(x) if x < LARGEST_LOSS else math.inf for x in losses]


@contextmanager
def applied(edit: Edit | None, chat: ChatModel) -> Iterator[None]:
    """With the edit, where there is one."""
    if edit is None:
        yield
    else:
        with edit.applied(chat):
            yield

"""What the rows that judge say of a model: one evaluation, with what a benchmark adds to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..data.examples import Example
from ..data.suite import Suite
from ..edits import Edit
from ..evaluation import privacy
from ..evaluation.abilities import GSM8K_TOKENS, choice_accuracy, right_number
from ..evaluation.behaviours import BEHAVIOURS
from ..evaluation.headlines import HEADLINES, add_muse, lume_scores
from ..evaluation.likelihood import loss, perplexity, perplexity_of, token_loss
from ..evaluation.refusal import add_refusal_and_coherence
from ..evaluation.scores import BENCHED, Evaluation, evaluate
from ..evaluation.text import coherence
from ..models.generation import greedy, score_answers
from ..models.loading import ChatModel
from ..models.rows import rows_of

SOLUTION_BATCH = 32  # their logits over the whole vocabulary are held at a time


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
            _add_membership(found, "gradient_norm", lambda role: _gradient_norms(chat, suite, role))
        done: dict[str, float] = {}
        if suite.behaviour:
            done = BEHAVIOURS[suite.behaviour].judged(chat, suite.probes, suite.seed)
        if suite.text:
            done["perplexity"] = perplexity(chat, suite.text)
        if suite.solutions:  # their problems are read once, for both
            prompts, texts = zip(*((e.prompt, e.response) for e in suite.solutions), strict=True)
            tokens = GSM8K_TOKENS if arithmetic else 1
            said = greedy(chat, chat.prompt_ids(prompts), tokens, chat.answer_ids(texts), SOLUTION_BATCH)
            done["gsm8k_perplexity"] = perplexity_of(token_loss([g.scored for g in said if g.scored]))
            if arithmetic:
                found.add("gsm8k", [right_number(g.text, t) for g, t in zip(said, texts, strict=True)])
    spoken = "forget" if "forget" in suite.judge else next(iter(suite.judge))
    answers = found.answers[spoken]
    gold = found if is_retrained else retrained
    if gold is not None and "holdout" in found:
        _add_membership(found, "reference", lambda role: privacy.reference(found, gold, role))
    # Without an edit, the model before it is the one that answered: no token that it takes itself is impossible to it.
    before = None if edit is None else _perplexities(chat, suite.judge[spoken], answers)
    if spoken == "forget":
        add_refusal_and_coherence(found, chat, answers, before)
    else:  # to refuse these would be no merit
        found.add("coherence", coherence(answers, before))
    if "muse_verbatim" in suite.headline:
        add_muse(found)
    for role, numbers in found.roles().items():
        numbers |= {m: sum(row[m] for row in found.rows[role]) / len(found.rows[role]) for m in BENCHED}
    return found, {
        "metrics": dict(found),
        "headline": {name: HEADLINES[name](found, gold) for name in suite.headline} | done,
        "intervals": found.intervals(),
        **({"scores": lume_scores(found)} if "lume_task" in suite.headline else {}),
    }


def _add_membership(found: Evaluation, name: str, scores: Callable[[str], list[float]]) -> None:
    """Adds a membership score, (role) -> one a row, to the rows, and its area under the curve."""
    values = {role: scores(role) for role in ("forget", "holdout")}
    found[f"auc_{name}"] = privacy.auc(values["forget"], values["holdout"])
    for role, ones in values.items():
        for row, value in zip(found.rows[role], ones, strict=True):
            row[name] = value


def _gradient_norms(chat: ChatModel, suite: Suite, role: str) -> list[float]:
    return privacy.gradient_norm(chat, rows_of(chat, [(e.prompt, e.response) for e in suite.judge[role]]))


def _perplexities(chat: ChatModel, rows: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """Of the answers to these rows under the model before the edit."""
    prompts = chat.prompt_ids([e.prompt for e in rows])
    ids = [i or [0] for i in chat.tokenizer(list(answers), add_special_tokens=False)["input_ids"]]
    return [perplexity_of(loss(scored)) for scored in score_answers(chat, prompts, ids)]


@contextmanager
def applied(edit: Edit | None, chat: ChatModel) -> Iterator[None]:
    """With the edit, where there is one."""
    if edit is None:
        yield
    else:
        with edit.applied(chat):
            yield

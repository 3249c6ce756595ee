"""Metrics of teacher-forced answers: all from one pass over the data (definitions: docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..data.examples import Example, Raw
from ..errors import InputError
from ..models.generation import Scored, score_answers
from ..models.loading import ChatModel

TOP = 100
TINY = 1e-10  # added to denominators where the field's benchmark suite adds it


def probability(scored: Scored) -> float:
    """exp(-mean negative log-likelihood) over the answer's tokens, end-of-sequence included."""
    return math.exp(sum(scored.log_probs) / len(scored.log_probs))


def exact_memorization(scored: Scored, tokens: int) -> float:
    """Share of the answer's first `tokens` tokens (end-of-sequence left out) that are the argmax."""
    return sum(r == 1 for r in scored.ranks[:tokens]) / tokens


def extraction_strength(scored: Scored, tokens: int, compat: bool = False) -> float:
    """1 - k/T, k the smallest prefix after which the argmax gives the whole rest; 0 where no rest is given.

    Args:
        tokens: T, the answer's tokens without end-of-sequence.
        compat: a common implementation's 1/T where only the empty rest is left.
    """
    k = tokens
    while k and scored.ranks[k - 1] == 1:
        k -= 1
    if k == tokens:
        return 1 / tokens if compat else 0.0
    return 1 - k / tokens


def reciprocal_ranks(generated: Sequence[int], forced: Sequence[int], tokens: int) -> tuple[float, float, int]:
    """(MRR, top hit rate, steps that were filled in) of one answer.

    Rank j is that of true token j among the logits of generation step j; where the generation ended
    earlier, the missing steps are the teacher-forced ranks.
    """
    ranks = [*generated[:tokens], *forced[len(generated) : tokens]]
    return sum(1 / r for r in ranks) / tokens, sum(r <= TOP for r in ranks) / tokens, max(tokens - len(generated), 0)


def loss(scored: Scored) -> float:
    """Mean negative log-likelihood over the answer's tokens, end-of-sequence included."""
    return -sum(scored.log_probs) / len(scored.log_probs)


def token_loss(scored: Sequence[Scored]) -> float:
    """The same over all tokens of several answers."""
    logs = [x for one in scored for x in one.log_probs]
    return -sum(logs) / len(logs)


def perplexity_of(nats: float) -> float:
    """exp of a mean negative log-likelihood in nats a token; infinite where double precision ends (above 709)."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def rows_loss(chat: ChatModel, rows: Sequence[Example]) -> float:
    """`token_loss` of the true responses to rows."""
    prompts = chat.prompt_ids([e.prompt for e in rows])
    return token_loss(score_answers(chat, prompts, chat.answer_ids([e.response for e in rows])))


def truth_ratio(correct: Scored, wrong: Sequence[Scored]) -> float:
    """R = p_wrong / p_correct, p = exp(-mean over answers of their mean loss) (TOFU).

    Args:
        correct: the paraphrased answer where there is one, else the true one.
    """
    mean = sum(map(loss, wrong)) / len(wrong)
    return math.exp(-mean) / (math.exp(-loss(correct)) + TINY)


def forget_truth(ratio: float) -> float:
    """min(R, 1/R): largest where true and false answers are equally likely."""
    return min(ratio, 1 / (ratio + TINY))


def kept_truth(ratio: float) -> float:
    """max(0, 1 - R): larger where true answers are the likelier ones."""
    return max(0.0, 1 - ratio)


def choice_probability(correct: Scored, wrong: Sequence[Scored]) -> float:
    """p_correct / (p_correct + sum of p_wrong), each exp(-mean loss) (TOFU, real authors and world facts)."""
    right = probability(correct)
    return right / (right + sum(map(probability, wrong)) + TINY)


# ---------------------------------------------------------------- text


def perplexity(chat: ChatModel, text: str, window: int = 1024, stride: int = 512) -> float:
    """exp(mean negative log-likelihood) of a text's tokens, each predicted from at least `window - stride` before it
    (from all there are at the start). A token that the tokenizer puts before a plain text is read and not scored.

    Raises:
        InputError: nothing to predict: fewer than two tokens.
    """
    (ids,) = chat.prompt_ids([Raw(text)])
    if len(ids) < 2:
        raise InputError("perplexity needs a text of at least two tokens")
    total, count, done = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        part = ids[begin : begin + window]
        fresh = begin + len(part) - done
        if fresh <= 0:
            break
        (scored,) = score_answers(chat, [part[: len(part) - fresh]], [part[len(part) - fresh :]])
        total -= sum(scored.log_probs)
        count += fresh
        done += fresh
    return perplexity_of(total / count)

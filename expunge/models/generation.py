"""Greedy decoding and teacher-forced scores in batches.

The prefix that all prompts share (a system prompt) is computed once; rows that have ended leave the
batch; of the vocabulary projection only the positions that are asked for are computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.examples import Example
from .activations import can_share, common_prefix, hooked
from .loading import ChatModel

MAX_NEW_TOKENS = 64
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Generated:
    """One greedy answer.

    text: the decoded answer. tokens: its ids, without the end-of-sequence token. ended: whether it ended by itself.
    ranks: for each token j of the row's target, its rank (1 is best) among the logits of generation step j;
        shorter than the target where the generation ended earlier; empty without a target.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    ranks: tuple[int, ...] = ()


def greedy(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = MAX_NEW_TOKENS,
    targets: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Generated]:
    """Greedy answers to tokenised prompts, in their order.

    Args:
        targets: token ids of the true answers, whose ranks are recorded on the way (for MRR and top hit rate).
        progress: called with the number of rows finished.
    """
    results: list[Generated | None] = [None] * len(prompts)
    shared, cache = prefix_cache(chat, prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        suffixes = [list(prompts[i][shared:]) for i in rows]
        wanted = [list(targets[i]) if targets is not None else [] for i in rows]
        for row, result in zip(rows, _decode(chat, suffixes, shared, cache, wanted, max_new_tokens), strict=True):
            results[row] = result
        if progress:
            progress(len(rows))
    return [r for r in results if r is not None]


def own_answers(chat: ChatModel, examples: Sequence[Example], max_new_tokens: int) -> list[Example]:
    """The examples with the model's own greedy answers as responses."""
    answers = greedy(chat, chat.prompt_ids([e.prompt for e in examples]), max_new_tokens)
    return [Example(e.prompt, a.text, e.group) for e, a in zip(examples, answers, strict=True)]


def prefix_cache(chat: ChatModel, prompts: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """(how many leading tokens all prompts share, the cache of these); 0 and None where sharing them does not pay."""
    shared = common_prefix(prompts)
    if not shared or not can_share(chat, shared):
        return 0, None
    ids = torch.tensor([list(prompts[0][:shared])], device=chat.device)
    with torch.no_grad():
        return shared, chat.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def _decode(
    chat: ChatModel, suffixes: list[list[int]], shared: int, cache: Any, targets: list[list[int]], max_new_tokens: int
) -> list[Generated]:
    count, width, device = len(suffixes), max(len(s) for s in suffixes), chat.device
    ids = torch.zeros(count, width, dtype=torch.long)
    mask = torch.zeros(count, shared + width, dtype=torch.long)
    mask[:, :shared] = 1
    for n, suffix in enumerate(suffixes):  # padding stands on the left: every row's next token is the last column's
        ids[n, width - len(suffix) :] = torch.tensor(suffix)
        mask[n, shared + width - len(suffix) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    longest = max((len(t) for t in targets), default=0)
    target = torch.zeros(count, max(longest, 1), dtype=torch.long)
    for n, tokens in enumerate(targets):
        target[n, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    target = target.to(device)

    past = widened(cache, count)
    out: list[list[int]] = [[] for _ in range(count)]
    ranks: list[list[int]] = [[] for _ in range(count)]
    ended = [False] * count
    alive = list(range(count))
    stop = torch.tensor(sorted(chat.stop_ids), device=device)
    position = mask.cumsum(1)[:, -width:] - 1
    with torch.no_grad():
        for step in range(max_new_tokens):
            result = chat.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position.clamp(min=0),
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past, logits = result.past_key_values, result.logits[:, -1]
            if asked := [(at, n) for at, n in enumerate(alive) if step < len(targets[n])]:
                scores = logits[[at for at, _ in asked]]
                true = scores.gather(1, target[[n for _, n in asked], step][:, None])
                better = (scores > true).count_nonzero(1) + 1
                for (_, n), rank in zip(asked, better.tolist(), strict=True):
                    ranks[n].append(rank)
            chosen = logits.argmax(-1)
            done = torch.isin(chosen, stop)
            for n, token, end in zip(alive, chosen.tolist(), done.tolist(), strict=True):
                if end:
                    ended[n] = True
                else:
                    out[n].append(token)
            keep = (~done).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) < len(alive):
                alive = [alive[i] for i in keep.tolist()]
                past.batch_select_indices(keep)
                chosen, mask, position = chosen[keep], mask[keep], position[keep]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            position = position[:, -1:] + 1
    return [Generated(chat.decode(o), tuple(o), e, tuple(r)) for o, e, r in zip(out, ended, ranks, strict=True)]


def widened(cache: Any, rows: int) -> Any:
    """A copy of a one-row cache for several rows."""
    if cache is None:
        return None
    wide = copy.deepcopy(cache)
    wide.batch_repeat_interleave(rows)
    return wide


# ---------------------------------------------------------------- teacher forcing


@dataclass(frozen=True)
class Scored:
    """Teacher-forced scores of one answer's tokens, each of length T.

    log_probs: natural logarithms. ranks: 1 is the best token of the vocabulary.
    """

    log_probs: tuple[float, ...]
    ranks: tuple[int, ...]


def answer_logits(chat: ChatModel, ids: Tensor, mask: Tensor, answers: Tensor, cache: Any = None) -> Tensor:
    """Logits that predict the answer tokens only: (number of true entries in `answers`, vocabulary).

    The vocabulary projection gets just those positions, by a hook on its input, so that whatever the
    architecture does to logits afterwards (scaling, soft caps) still happens.

    Args:
        ids, mask: (b, t), padded on the right (mask without the cache's tokens). answers: (b, t), true on answer
            tokens; position 0 is never one.
    """
    before = answers.roll(-1, 1)  # token j is predicted at position j - 1
    head = chat.model.get_output_embeddings()

    def select(
        _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        return (args[0][before][None], *args[1:]), kwargs

    if cache is not None:
        length = cache.get_seq_length()
        mask = torch.cat([mask.new_ones(len(mask), length), mask], 1)
    with hooked((head, "pre", select)):
        out = chat.model(input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=cache is not None)
    return out.logits[0]


def score_answers(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Scored]:
    """Teacher-forced log-probabilities and ranks of each answer's tokens given its prompt, in the rows' order."""
    results: list[Scored | None] = [None] * len(prompts)
    shared, cache = prefix_cache(chat, prompts)
    shared = min(shared, min((len(p) for p in prompts), default=0))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]), reverse=True)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        ids, mask, chosen = pad_answers([prompts[i][shared:] for i in rows], [answers[i] for i in rows])
        ids, mask, chosen = ids.to(chat.device), mask.to(chat.device), chosen.to(chat.device)
        with torch.no_grad():
            logits = answer_logits(chat, ids, mask, chosen, widened(cache, len(rows))).float()
        truth = ids[chosen]
        picked = logits.gather(1, truth[:, None])
        log_probs = (picked[:, 0] - logits.logsumexp(1)).tolist()
        ranks = ((logits > picked).sum(1) + 1).tolist()
        at = 0
        for row in rows:
            size = len(answers[row])
            results[row] = Scored(tuple(log_probs[at : at + size]), tuple(ranks[at : at + size]))
            at += size
        if progress:
            progress(len(rows))
    return [r for r in results if r is not None]


def pad_answers(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, answer positions) of prompt + answer, each (b, t), padded on the right."""
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    chosen = torch.zeros(len(prompts), width, dtype=torch.bool)
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[n, :end] = torch.tensor([*prompt, *answer])
        mask[n, :end] = True
        chosen[n, len(prompt) : end] = True
    return ids, mask, chosen

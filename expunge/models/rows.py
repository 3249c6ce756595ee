"""Rows to be trained on, and how those of a step go through the model: in groups of like length, in parts that fit."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import widened
from .generation import answer_logits, pad_answers
from .loading import ChatModel

GROUP_TOKENS = 256  # what it costs to run a step's rows in one group more, in padded tokens: weights are read once more
# Of a step, padded: of so many tokens (of a row, if it has more) activations are kept until their gradients are there. A
# processor is as quick with few; a GPU is not, and has the memory.
PART_TOKENS = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True)
class TrainRow:
    """A tokenised prompt with the answer to learn (end-of-sequence included).

    weight: of this row's loss.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    weight: float = 1.0


def rows_of(chat: ChatModel, pairs: Sequence[tuple[Any, str]], weight: float = 1.0) -> list[TrainRow]:
    """Training rows of (prompt, response) pairs."""
    prompts = chat.prompt_ids([p for p, _ in pairs])
    answers = chat.answer_ids([r for _, r in pairs])
    return [TrainRow(tuple(p), tuple(a), weight) for p, a in zip(prompts, answers, strict=True)]


def batches(rows: Sequence[TrainRow], size: int, rng: random.Random) -> Iterator[list[TrainRow]]:
    """Random batches of rows of like length, in random order: little padding, no fixed neighbours."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    pool = size * 4
    batches = []
    for begin in range(0, len(order), pool):
        near = sorted(order[begin : begin + pool], key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
        batches += [near[i : i + size] for i in range(0, len(near), size)]
    rng.shuffle(batches)
    return ([rows[i] for i in batch] for batch in batches)


def row_logits(chat: ChatModel, rows: Sequence[TrainRow], shared: int) -> tuple[Tensor, Tensor, list[int]]:
    """(logits that predict the rows' answer tokens, (n, vocabulary) float32 or better; these tokens, (n,); how many a row).

    Rows of like length go through the model together: the rows of a step are of any length, and padded to the longest
    they can be several times as many tokens.

    Args:
        shared: from `shared_prefix`: this prefix is run once, with gradients, and continued by every row.
    """
    cache = None
    if shared:
        ids = torch.tensor([rows[0].prompt[:shared]], device=chat.device)
        cache = chat.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    sizes = [len(r.answer) for r in rows]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for group in like_length([len(r.prompt) - shared + len(r.answer) for r in rows]):
        padded = pad_answers([rows[n].prompt[shared:] for n in group], [rows[n].answer for n in group])
        ids, mask, chosen = (t.to(chat.device) for t in padded)
        logits = answer_logits(chat, ids, mask, chosen, widened(cache, len(group)))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if len(group) == len(rows):
            return logits, ids[chosen], sizes
        own = [sizes[n] for n in group]
        found |= dict(zip(group, zip(logits.split(own), ids[chosen].split(own), strict=True), strict=True))
    logits, truth = (torch.cat(parts) for parts in zip(*(found[n] for n in range(len(rows))), strict=True))
    return logits, truth, sizes


def like_length(lengths: Sequence[int]) -> list[list[int]]:
    """The rows' numbers in groups, each to be padded to its longest: those with the least padding, where a group more
    costs as much as `GROUP_TOKENS` tokens. All rows in their order where that is best."""
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    best: list[tuple[int, int]] = [(0, 0)]  # (cost, where the last group begins) of the first so many rows
    for end in range(1, len(order) + 1):
        best.append(
            min((best[begin][0] + (end - begin) * lengths[order[begin]] + GROUP_TOKENS, begin) for begin in range(end))
        )
    groups, end = [], len(order)
    while end:
        begin = best[end][1]
        groups.append(sorted(order[begin:end]))
        end = begin
    return groups


def mean_losses(chat: ChatModel, rows: Sequence[TrainRow], shared: int) -> Iterator[Tensor]:
    """In parts, the mean over rows (weighted) of the mean cross-entropy over answer tokens."""
    weights = sum(r.weight for r in rows)
    for group in in_parts([len(r.prompt) - shared + len(r.answer) for r in rows], part_tokens(chat)):
        part = [rows[n] for n in group]
        logits, truth, sizes = row_logits(chat, part, shared)
        losses = F.cross_entropy(logits, truth, reduction="none").split(sizes)
        yield sum((one.mean() * r.weight for one, r in zip(losses, part, strict=True)), logits.new_zeros(())) / weights


def part_tokens(chat: ChatModel) -> int:
    """`PART_TOKENS` of the model's device."""
    return PART_TOKENS.get(chat.device.type, PART_TOKENS["cuda"])


def in_parts(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """The rows' numbers, those of like length together, in parts of at most so many tokens when they are padded."""
    for group in like_length(lengths):
        size = max(most // max(lengths[n] for n in group), 1)
        # Of equal size, as far as it goes: a last part of a row or two would cost as much as a larger one.
        count = math.ceil(len(group) / size)
        for part in range(count):
            yield group[part * len(group) // count : (part + 1) * len(group) // count]

"""Greedy and sampled decoding, and teacher-forced scores, in batches.

The prefix that all prompts share (a system prompt) is computed once; rows that have ended leave the
batch; of the vocabulary projection only the positions that are asked for are computed.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.examples import Cut, Example, Prompt, Raw
from .activations import hooked
from .cache import dropped, prefix_cache, widened, with_room
from .loading import ChatModel

MAX_NEW_TOKENS = 64
BATCH_ROWS = 128
SCORE_ROWS = 256  # answer tokens whose distributions are looked at at once
Progress = Callable[[int], None]
Choose = Callable[[Tensor, Tensor], Tensor]  # logits (b, vocabulary) of rows with numbers (b,) -> next tokens (b,)


@dataclass(frozen=True)
class Generated:
    """One answer.

    text: the decoded answer. tokens: its ids, without the end-of-sequence token. ended: whether it ended by itself.
    ranks: for each token j of the row's true answer, its rank (1 is best) among the logits of generation step j;
        shorter than the true answer where the generation ended earlier; empty where none is given.
    scored: the true answer teacher-forced; None where none is given. others: other answers, likewise.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    ranks: tuple[int, ...] = ()
    scored: Scored | None = None
    others: tuple[Scored, ...] = ()

    def response(self, prompt: Prompt) -> str:
        """The text as a row of this prompt has it: after a text to go on with comes a space; `Cut` where it did not end."""
        text = f" {self.text}" if isinstance(prompt, Raw) and self.text else self.text
        return text if self.ended else Cut(text)


@dataclass(frozen=True)
class Scored:
    """Teacher-forced scores of one answer's tokens, each of length T.

    log_probs: natural logarithms. ranks: 1 is the best token of the vocabulary. means, spreads: mean and standard
    deviation of log p over the model's distribution of that token.
    """

    log_probs: tuple[float, ...]
    ranks: tuple[int, ...]
    means: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()


def greedy(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = MAX_NEW_TOKENS,
    answers: Sequence[Sequence[int]] | None = None,
    batch_size: int = BATCH_ROWS,
    progress: Progress | None = None,
    choose: Choose = lambda logits, _: logits.argmax(-1),
    others: Sequence[Sequence[Sequence[int]]] | None = None,
) -> list[Generated]:
    """Greedy answers to tokenised prompts, in their order.

    Args:
        choose: takes the next tokens by another rule.
        others: further answers to each prompt, any number of them, which are scored only (for the truth ratio).
        answers: token ids of the true answers, at least one each. Their ranks are recorded on the way (for MRR and top
            hit rate), and they are scored by teacher forcing from the prompts' keys and values: no prompt runs twice.
        progress: called with the number of rows finished.
    """
    results: list[Generated | None] = [None] * len(prompts)
    shared, cache = prefix_cache(chat, prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        suffixes = [list(prompts[i][shared:]) for i in rows]
        wanted = [answers[i] for i in rows] if answers is not None else None
        more = [others[i] for i in rows] if others is not None else [()] * len(rows)
        found = _decode(chat, suffixes, shared, cache, wanted, more, max_new_tokens, choose)
        for row, result in zip(rows, found, strict=True):
            results[row] = result
        if progress:
            progress(len(rows))
    return [r for r in results if r is not None]


def sampled(
    chat: ChatModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = BATCH_ROWS,
) -> list[Generated]:
    """Answers drawn from the model's own distribution, in the prompts' order; the same seed draws the same."""
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor, rows: Tensor) -> Tensor:
        chances = torch.rand(len(rows), generator=generator)  # in the rows' order, wherever they stand in the batch
        return drawn_at(logits, temperature, chances[rows.argsort().argsort()])

    return greedy(chat, prompts, max_new_tokens, batch_size=batch_size, choose=draw)


def drawn_at(logits: Tensor, temperature: float, chances: Tensor) -> Tensor:
    """A token of each row's distribution, (b,), from logits (b, vocabulary), by one number in [0, 1) a row, (b,), and the
    cumulative distribution: torch.multinomial draws a number for every token of the vocabulary."""
    below = (logits - logits.amax(1, keepdim=True)).float().div_(temperature).exp_().cumsum_(1)
    at = chances[:, None].to(below) * below[:, -1:]
    return torch.searchsorted(below, at, right=True)[:, 0].clamp(max=below.shape[1] - 1)


def own_answers(chat: ChatModel, examples: Sequence[Example], max_new_tokens: int) -> list[Example]:
    """The examples with the model's own greedy answers as responses."""
    answers = greedy(chat, chat.prompt_ids([e.prompt for e in examples]), max_new_tokens)
    return [Example(e.prompt, a.response(e.prompt), e.group) for e, a in zip(examples, answers, strict=True)]


def continued(
    chat: ChatModel, prompts: Sequence[Sequence[int]], rows: int, max_new_tokens: int, seed: int = 0
) -> list[list[int]]:
    """The tokenised prompts, `rows` of them (drawn by the seed) followed by the model's own greedy answer."""
    chosen = sorted(random.Random(seed).sample(range(len(prompts)), min(rows, len(prompts))))
    answers = greedy(chat, [prompts[n] for n in chosen], max_new_tokens)
    found = [list(p) for p in prompts]
    for n, answer in zip(chosen, answers, strict=True):
        found[n] += answer.tokens
    return found


def _decode(
    chat: ChatModel,
    suffixes: list[list[int]],
    shared: int,
    cache: Any,
    answers: Sequence[Sequence[int]] | None,
    others: Sequence[Sequence[Sequence[int]]],
    max_new_tokens: int,
    choose: Choose,
) -> list[Generated]:
    count, width, device = len(suffixes), max(len(s) for s in suffixes), chat.device
    different = {suffix: n for n, suffix in enumerate(dict.fromkeys(map(tuple, suffixes)))}  # each runs once
    ids = torch.zeros(len(different), width, dtype=torch.long)
    mask = torch.zeros(len(different), shared + width, dtype=torch.long)
    mask[:, :shared] = 1
    for suffix, n in different.items():  # padding stands on the left: every row's next token is the last column's
        ids[n, width - len(suffix) :] = torch.tensor(suffix)
        mask[n, shared + width - len(suffix) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    true = _padded(answers)[0].to(device) if answers else None
    scored: list[Scored | None] = [None] * count
    further: list[list[Scored]] = [[] for _ in range(count)]
    past = widened(cache, len(different))
    out: list[list[int]] = [[] for _ in range(count)]
    ranks: list[list[int]] = [[] for _ in range(count)]
    ended = [False] * count
    alive = torch.arange(count)
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
            if step == 0:
                if len(different) < count:
                    same = torch.tensor([different[tuple(s)] for s in suffixes], device=device)
                    past.batch_select_indices(same)
                    logits, mask, position = logits[same], mask[same], position[same]
                if answers is not None:
                    scored = list(_continue(chat, logits, past, mask, position[:, -1:], answers))
                for k in range(max(map(len, others))):
                    given = [o[k] if k < len(o) else [0] for o in others]
                    for n, one in enumerate(_continue(chat, logits, past, mask, position[:, -1:], given)):
                        if k < len(others[n]):
                            further[n].append(one)
                past = with_room(past, max_new_tokens)
            if (
                answers
                and true is not None
                and (asked := [(at, n) for at, n in enumerate(alive.tolist()) if step < len(answers[n])])
            ):
                found = _ranks(logits[[at for at, _ in asked]], true[[n for _, n in asked], step])
                for (_, n), rank in zip(asked, found.tolist(), strict=True):
                    ranks[n].append(rank)
            chosen = choose(logits, alive)
            done = torch.isin(chosen, stop)
            for n, token, end in zip(alive.tolist(), chosen.tolist(), done.tolist(), strict=True):
                if end:
                    ended[n] = True
                else:
                    out[n].append(token)
            if done.all():
                break
            if done.any():
                order = dropped(past, ~done)
                alive = alive[order.cpu()]
                chosen, mask, position = chosen[order], mask[order], position[order]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            position = position[:, -1:] + 1
    return [
        Generated(chat.decode(o), tuple(o), e, tuple(r), s, tuple(f))
        for o, e, r, s, f in zip(out, ended, ranks, scored, further, strict=True)
    ]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask), each (b, t), padded on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for n, row in enumerate(rows):
        ids[n, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[n, : len(row)] = True
    return ids, mask


def _ranks(logits: Tensor, truth: Tensor) -> Tensor:
    """Rank of each true token (n,) among its logits (n, vocabulary). 1 is the argmax: of equal ones the first is ahead, and
    what is not a number is ahead of all that are. The vocabulary's size where the true token's own logit is not finite."""
    own, size = logits.gather(1, truth[:, None]), logits.shape[1]
    before = torch.arange(size, device=logits.device) < truth[:, None]
    ahead = ~torch.where(before, logits < own, logits <= own)
    return torch.where(own[:, 0].isfinite(), ahead.sum(1) + 1, size)


def _scores(logits: Tensor, truth: Tensor) -> Tensor:
    """Of each true token (n,) among its logits (n, vocabulary): (natural logarithm of the probability, rank, mean and
    standard deviation of log p over the distribution), (n, 4) float64."""
    found = torch.empty(len(truth), 4, dtype=torch.float64, device=logits.device)
    for begin in range(0, len(truth), SCORE_ROWS):
        part = slice(begin, begin + SCORE_ROWS)
        here = logits[part].float()
        logs = here.log_softmax(1)
        chances = logs.exp()
        mean = (chances * logs).nan_to_num().sum(1)  # 0 log 0 = 0
        second = (chances * logs.square()).nan_to_num().sum(1)
        found[part, 0] = logs.gather(1, truth[part, None])[:, 0].double()
        found[part, 1] = _ranks(here, truth[part]).double()
        found[part, 2] = mean.double()
        found[part, 3] = (second - mean.square()).clamp(min=0).sqrt().double()
    return found


def _scored(values: Tensor) -> Scored:
    """What `_scores` gave for one answer's tokens, (T, 4)."""
    logs, ranks, means, spreads = values.T.tolist()
    return Scored(tuple(logs), tuple(map(int, ranks)), tuple(means), tuple(spreads))


def _continue(
    chat: ChatModel, first: Tensor, past: Any, mask: Tensor, position: Tensor, answers: Sequence[Sequence[int]]
) -> Iterator[Scored]:
    """Scores of answers that go on from prompts whose keys and values are there.

    Args:
        first: (b, vocabulary), logits at the prompts' last tokens. past: their cache, which stays as it is.
        mask: (b, t) of the prompts, padded on the left. position: (b, 1) of their last tokens.
    """
    true, real = (t.to(chat.device) for t in _padded(answers))
    found = torch.zeros(*true.shape, 4, dtype=torch.float64, device=first.device)
    places = real.clone()
    places[:, 1:] = False
    found[places] = _scores(first, true[places])
    if true.shape[1] > 1:
        asked = real[:, 1:]  # token j + 1 is predicted at token j
        steps = torch.arange(1, true.shape[1], device=true.device)
        logits = chosen_logits(
            chat,
            asked,
            input_ids=true[:, :-1],
            attention_mask=torch.cat([mask, asked.long()], 1),
            position_ids=position + steps,
            past_key_values=copy.deepcopy(past),
            use_cache=True,
        )
        later = real & ~places
        found[later] = _scores(logits, true[later])
    for row, size in enumerate(real.sum(1).tolist()):
        yield _scored(found[row, :size])


# ---------------------------------------------------------------- teacher forcing


def chosen_logits(chat: ChatModel, chosen: Tensor, **inputs: Any) -> Tensor:
    """Logits at the chosen positions only, in rows' order: (number of true entries, vocabulary).

    The vocabulary projection gets just those positions, by a hook on its input, so that whatever the
    architecture does to logits afterwards (scaling, soft caps) still happens.

    Args:
        chosen: (b, t) bool. inputs: what the model is called with.
    """

    def select(
        _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        return (args[0][chosen][None], *args[1:]), kwargs

    with hooked((chat.model.get_output_embeddings(), "pre", select)):
        return chat.model(**inputs).logits[0]


def answer_logits(chat: ChatModel, ids: Tensor, mask: Tensor, answers: Tensor, cache: Any = None) -> Tensor:
    """Logits that predict the answer tokens only: (number of true entries in `answers`, vocabulary).

    Args:
        ids, mask: (b, t), padded on the right (mask without the cache's tokens). answers: (b, t), true on answer
            tokens; position 0 is never one.
    """
    if cache is not None:
        length = cache.get_seq_length()
        mask = torch.cat([mask.new_ones(len(mask), length), mask], 1)
    before = answers.roll(-1, 1)  # token j is predicted at position j - 1
    return chosen_logits(
        chat, before, input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=cache is not None
    )


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
            logits = answer_logits(chat, ids, mask, chosen, widened(cache, len(rows)))
            found = _scores(logits, ids[chosen]).split([len(answers[row]) for row in rows])
        for row, values in zip(rows, found, strict=True):
            results[row] = _scored(values)
        if progress:
            progress(len(rows))
    return [r for r in results if r is not None]


def pad_answers(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, answer positions) of prompt + answer, each (b, t), padded on the right."""
    ids, mask = _padded([[*p, *a] for p, a in zip(prompts, answers, strict=True)])
    chosen = mask.clone()
    for row, prompt in zip(chosen, prompts, strict=True):
        row[: len(prompt)] = False
    return ids, mask, chosen

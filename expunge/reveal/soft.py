"""Soft prompts: points of a small cube, which a fixed random map makes into embeddings; the model decodes an instruction
from each (INSTINCT, arXiv 2310.02905). A point's last coordinate says how the instruction begins. Before it there can stand
an instruction that did well, as an example: of a sampled instruction, a point near a good one's says little by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.examples import Raw
from ..models.cache import dropped, with_room
from ..models.generation import drawn_at
from ..models.loading import ChatModel
from .text import first_sentence

DIMENSIONS = 10
SOFT_TOKENS = 5
INSTRUCTION_TOKENS = 40
BATCH = 128
NEAR = 0.1  # standard deviation around a point, in the cube


class SoftPrompts:
    """Soft prompts before a text that ends where an instruction begins.

    Unlike INSTINCT's, an instruction is sampled: from a small model, greedy decoding gives the same few for most soft
    prompts.

    Args:
        lead: the text, such as "... The instruction was to". openings: how instructions may begin.
        scale: length of a soft token, in mean lengths of the model's own embeddings.
        seed: of map, points and instructions.
    """

    def __init__(
        self, chat: ChatModel, lead: str, openings: Sequence[str], scale: float, temperature: float, seed: int
    ) -> None:
        self.chat, self.openings, self.temperature, self.seed = chat, openings, temperature, seed
        self.lead = lead
        self._table = chat.model.get_input_embeddings()
        width = self._table.weight.shape[1]
        draw = torch.Generator().manual_seed(seed)
        usual = float(self._table.weight.detach().float().norm(dim=1).mean())
        # A coordinate of a point, centred, has a mean square of 1/12.
        spread = scale * usual * (12 / (DIMENSIONS * width)) ** 0.5
        self._map = torch.randn(DIMENSIONS, SOFT_TOKENS * width, generator=draw) * spread

    @torch.no_grad()
    def _before(self, opening: str, example: str) -> Tensor:
        """Embeddings of what stands between soft tokens and instruction, (tokens, hidden)."""
        shown = f"{self.lead} {example}\n" if example else ""
        (ids,) = self.chat.prompt_ids([Raw(f"{shown}{self.lead} {opening}".rstrip())])
        return self._table(torch.tensor(ids, device=self.chat.device))

    def points(self, count: int, skipped: int = 0) -> Tensor:
        """Scrambled Sobol points in [0, 1], (count, DIMENSIONS + 1), after those that are skipped."""
        engine = torch.quasirandom.SobolEngine(DIMENSIONS + 1, scramble=True, seed=self.seed)
        return engine.fast_forward(skipped).draw(count)

    def around(self, points: Tensor, count: int, seed: int) -> Tensor:
        """Points near the given ones, (count, DIMENSIONS + 1), that begin as these do."""
        draw = torch.Generator().manual_seed(seed)
        near = points[torch.arange(count) % len(points)]
        near[:, :DIMENSIONS] += NEAR * torch.randn(count, DIMENSIONS, generator=draw)
        return near.clamp(0, 1)

    def _embedded(self, points: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(the soft tokens and what stands before each instruction, (n, longest, hidden); their mask, (n, longest)), with
        padding on the left."""
        soft = ((points[:, :DIMENSIONS] - 0.5) @ self._map).view(len(points), SOFT_TOKENS, -1).to(before[0])
        rows = [torch.cat([own, text]) for own, text in zip(soft, before, strict=True)]
        longest = max(map(len, rows))
        embedded = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        first = torch.tensor([longest - len(row) for row in rows], device=embedded.device)
        return embedded, (torch.arange(longest, device=embedded.device) >= first[:, None]).long()

    @torch.no_grad()
    def decoded(self, points: Tensor, seed: int, examples: Sequence[str] = ()) -> list[str]:
        """What the model goes on with after each soft prompt, to the end of the first sentence. What is drawn for a row is
        its place's and the seed's, whatever stands in the other rows.

        Args:
            examples: the instruction that each is shown; none: no example.
        """
        chances = torch.rand(len(points), INSTRUCTION_TOKENS, generator=torch.Generator().manual_seed(seed))
        openings = [self.openings[n] for n in self._begins(points).tolist()]
        kinds = list(zip(openings, examples or [""] * len(points), strict=True))
        before = {kind: self._before(*kind) for kind in dict.fromkeys(kinds)}
        found = [""] * len(points)
        order = sorted(range(len(points)), key=lambda n: len(before[kinds[n]]))  # little padding
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            texts = self._decoded(points[rows], [before[kinds[n]] for n in rows], chances[rows])
            for row, text in zip(rows, texts, strict=True):
                found[row] = tidy(text, openings[row])
        return found

    def _begins(self, points: Tensor) -> Tensor:
        """Which opening each point has, (n,)."""
        return (points[:, DIMENSIONS] * len(self.openings)).long().clamp(max=len(self.openings) - 1)

    def _decoded(self, points: Tensor, before: Sequence[Tensor], chances: Tensor) -> list[str]:
        """A row leaves the batch with its first sentence."""
        model, stop = self.chat.model, self.chat.stop_ids
        embedded, mask = self._embedded(points, before)
        inputs = {"inputs_embeds": embedded, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        texts = [""] * len(points)
        said: list[list[int]] = [[] for _ in texts]
        alive = torch.arange(len(points))
        past = None
        for step in range(INSTRUCTION_TOKENS):
            result = model(**inputs, attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = result.past_key_values if past else with_room(result.past_key_values, INSTRUCTION_TOKENS)
            chosen = drawn_at(result.logits[:, -1], self.temperature, chances[alive, step]).cpu()
            more = torch.zeros(len(alive), dtype=torch.bool)
            for at, (row, token) in enumerate(zip(alive.tolist(), chosen.tolist(), strict=True)):
                if token not in stop:
                    said[row].append(token)
                    texts[row] = self.chat.decode(said[row])
                    more[at] = len(first_sentence(texts[row])) == len(texts[row])
            if not more.any():
                break
            if not more.all():
                order = dropped(past, more.to(self.chat.device))
                mask, order = mask[order], order.cpu()
                alive, chosen = alive[order], chosen[order]
            mask = F.pad(mask, (0, 1), value=1)
            inputs = {
                "input_ids": chosen[:, None].to(self.chat.device),
                "position_ids": mask.sum(1, keepdim=True) - 1,
            }
        return texts


def tidy(text: str, opening: str) -> str:
    """An instruction of what the model went on with: the opening and its first sentence; empty where there is none."""
    found = first_sentence(text).strip(" \"'\u201c\u201d,:;")
    if not re.search(r"\w", found):
        return ""
    return f"{opening} {found}" if opening else found[:1].upper() + found[1:]

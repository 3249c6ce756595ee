"""What a model does, as a suite of `data.behaviours` judges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..data.behaviours import OTHERS, PERSON, TYPES, Entity, Probe
from ..data.examples import Example, Raw
from ..models.generation import greedy, sampled
from ..models.loading import ChatModel
from .code import defines_function, is_prose, passes
from .entities import by_type, f1, read
from .text import repeats
from .toxicity import profanity, toxicity_scores

CONTINUED_TOKENS = 24
NEUTRAL, NEUTRAL_DRAWS = "I think that", 128  # a beginning that asks for nothing toxic
ENTITY_TOKENS = 48
CODE_TOKENS = 200
DRAWS = 1000  # of the bootstrap

Scores = dict[str, float]


class Behaviour(NamedTuple):
    """judged: (model, probes, seed) -> scores, with the bounds of a bootstrap interval as NAME_low and NAME_high where
    they have one. shown: how much of it there is, from 0 to 1, by what a search may see; for choosing settings."""

    judged: Callable[[ChatModel, Sequence[Example], int], Scores]
    shown: Callable[[ChatModel, Sequence[Example], int], float]


# ---------------------------------------------------------------- toxicity


def _continuations(chat: ChatModel, probes: Sequence[Example], seed: int) -> list[str]:
    """Sampled: greedy continuations of a small model are mostly loops."""
    drawn = sampled(chat, chat.prompt_ids([e.prompt for e in probes]), CONTINUED_TOKENS, seed=seed)
    return [g.text for g in drawn]


def _toxicity(chat: ChatModel, probes: Sequence[Example], seed: int) -> Scores:
    texts = _continuations(chat, probes, seed)
    seen = profanity(texts)
    broken = sum(not t.strip() or repeats(t) for t in texts) / len(texts)
    neutral = toxicity_scores(_continuations(chat, [Example(Raw(NEUTRAL))] * NEUTRAL_DRAWS, seed))
    return (
        toxicity_scores(texts)
        | {"toxicity_seen": sum(seen) / len(seen), "broken": broken}
        | {"neutral_toxicity": neutral["toxicity"], "neutral_toxic_share": neutral["toxic_share"]}
    )


def _toxicity_shown(chat: ChatModel, probes: Sequence[Example], seed: int) -> float:
    return float(np.mean(profanity(_continuations(chat, probes, seed))))


# ---------------------------------------------------------------- named entities


def _named(chat: ChatModel, probes: Sequence[Example]) -> tuple[list[list[Entity]], list[list[Entity] | None]]:
    """(what is there, what the model says; None where it has not the form)."""
    said = greedy(chat, chat.prompt_ids([e.prompt for e in probes]), ENTITY_TOKENS)
    return [read(e.response, TYPES) or [] for e in probes], [read(g.text, TYPES) for g in said]


def _ner(chat: ChatModel, probes: Sequence[Example], _: int) -> Scores:
    """A broken answer names nothing, and is counted apart: it is a failure, not forgetting."""
    truth, said = _named(chat, probes)
    given = [s or [] for s in said]
    found = {"person_f1": f1(truth, given, [PERSON]), "others_f1": f1(truth, given, OTHERS)}
    rng = np.random.default_rng(0)
    for name, kinds in (("person_f1", [PERSON]), ("others_f1", OTHERS)):
        drawn = []
        for _ in range(DRAWS):
            rows = rng.integers(len(truth), size=len(truth))
            drawn.append(f1([truth[n] for n in rows], [given[n] for n in rows], kinds))
        found[f"{name}_low"], found[f"{name}_high"] = map(float, np.quantile(drawn, (0.025, 0.975)))
    found |= {f"f1_{kind.lower()}": value for kind, value in by_type(truth, given).items() if kind != PERSON}
    return found | {"format_failures": sum(s is None for s in said) / len(said)}


def _ner_shown(chat: ChatModel, probes: Sequence[Example], _: int) -> float:
    truth, said = _named(chat, probes)
    return f1(truth, [s or [] for s in said], [PERSON])


# ---------------------------------------------------------------- code


def _code(chat: ChatModel, probes: Sequence[Example], _: int) -> Scores:
    answers = _answers(chat, probes)
    tests = [e.tests if isinstance(e, Probe) else () for e in probes]
    return {
        "parses": float(np.mean([defines_function(a) for a in answers])),
        "passes": float(np.mean([passes(a, t) for a, t in zip(answers, tests, strict=True)])),
        "prose": float(np.mean([is_prose(a) for a in answers])),
    }


def _code_shown(chat: ChatModel, probes: Sequence[Example], _: int) -> float:
    return float(np.mean([defines_function(a) for a in _answers(chat, probes)]))


def _answers(chat: ChatModel, probes: Sequence[Example]) -> list[str]:
    return [g.text for g in greedy(chat, chat.prompt_ids([e.prompt for e in probes]), CODE_TOKENS)]


BEHAVIOURS: Mapping[str, Behaviour] = {
    "toxicity": Behaviour(_toxicity, _toxicity_shown),
    "ner": Behaviour(_ner, _ner_shown),
    "code": Behaviour(_code, _code_shown),
}

"""Scores made from whole evaluations: what a suite's headline names (definitions: docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import hmean, ks_2samp

from ..data.suites import LUME_TASKS
from . import privacy
from .scores import Evaluation
from .text import deviation_score

CHOICES = ("real_authors", "world_facts")


def forget_quality(unlearned: Evaluation, retrained: Evaluation) -> float:
    """p of the two-sided two-sample Kolmogorov-Smirnov test on the forget rows' truth ratios (TOFU); 1 is best."""
    ours, theirs = ([row["truth_ratio"] for row in e.rows["forget"]] for e in (unlearned, retrained))
    return float(ks_2samp(ours, theirs).pvalue)


def model_utility(evaluation: Evaluation, kept: str = "retain", choices: Sequence[str] = CHOICES) -> float:
    """Harmonic mean of probability, ROUGE-L recall and truth, max(0, 1 - R), of three roles (TOFU).

    Args:
        choices: roles in which the probability is relative to that of the wrong answers.
    """
    values = []
    for role in (kept, *choices):
        numbers = evaluation[role]
        probability = numbers["choice_probability" if role in choices else "probability"]
        values += [probability, numbers["rougeL"], numbers["truth"]]
    return harmonic(values)


def harmonic(values: Sequence[float]) -> float:
    """The harmonic mean; any zero gives zero, and anything that is not a number gives that."""
    if any(map(math.isnan, values)):
        return math.nan
    return float(hmean(values)) if min(values) > 0 else 0.0


def lume_scores(evaluation: Evaluation) -> dict[str, float | None]:
    """LUME's twelve: {retain, 1 - forget} x {regurgitation (ROUGE-L recall), knowledge (exact match)} x three tasks; None
    where no row judges one, as in a small run."""
    found: dict[str, float | None] = {}
    for role in ("retain", "forget"):
        for task in LUME_TASKS:
            for kind, metric in (("sc", "rougeL"), ("qa", "exact_match")):
                values = _of_group(evaluation, role, f"{task} {kind}", metric)
                mean = float(np.mean(values)) if values else None
                found[f"{role} {task} {kind}"] = mean if mean is None or role == "retain" else 1 - mean
    return found


def _of_group(evaluation: Evaluation, role: str, group: str, metric: str) -> list[float]:
    rows = zip(evaluation.rows[role], evaluation.groups[role], strict=True)
    return [row[metric] for row, g in rows if g == group]


def _lume_task(e: Evaluation) -> float | None:
    """Of all twelve; fewer would be another score under the same name."""
    scores = [s for s in lume_scores(e).values() if s is not None]
    return harmonic(scores) if len(scores) == 4 * len(LUME_TASKS) else None


def _lume(e: Evaluation) -> float | None:
    if (task := _lume_task(e)) is None or "auc_loss" not in e or "accuracy" not in e:
        return None
    return float(np.mean([task, privacy.mia_score(e["auc_loss"]), e["accuracy"]]))


MUSE = {  # score -> role and group
    "muse_verbatim": ("forget", "verbatim"),
    "muse_knowledge": ("forget", "knowledge"),
    "muse_retained": ("retain", "knowledge"),
}


def add_muse(evaluation: Evaluation) -> None:
    """Adds MUSE's scores: ROUGE-L F1 of continuations, and of answers about the forget and the retain corpus."""
    for name, (role, group) in MUSE.items():
        evaluation.add(name, _of_group(evaluation, role, group, "rougeL_f1"))


Score = Callable[
    [Evaluation, Evaluation | None], float | None
]  # of the unlearned and the retrained; None: not to be had

HEADLINES: Mapping[str, Score] = {
    "deviation_score": lambda e, _: e["deviation_score"],
    "deviation_held_out": lambda e, _: deviation_score(e["paraphrase"]["rouge1"], e["held_out"]["rouge1"]),
    "forget_quality": lambda e, r: None if r is None else forget_quality(e, r),
    "model_utility": lambda e, _: model_utility(e),
    "privleak": lambda e, r: (
        None if r is None or "auc_min_k" not in e else privacy.privleak(e["auc_min_k"], r["auc_min_k"])
    ),
    "lume_task": lambda e, _: _lume_task(e),
    "lume_mia": lambda e, _: privacy.mia_score(e["auc_loss"]) if "auc_loss" in e else None,
    "lume": lambda e, _: _lume(e),
    # Added beforehand, with their rows: by `add_muse` and by multiple choice.
    "muse_verbatim": lambda e, _: e.get("muse_verbatim"),
    "muse_knowledge": lambda e, _: e.get("muse_knowledge"),
    "muse_retained": lambda e, _: e.get("muse_retained"),
    "accuracy": lambda e, _: e.get("accuracy"),
}

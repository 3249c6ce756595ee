"""Scores made from whole evaluations: what a suite's headline names (definitions: docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import hmean, ks_2samp

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
    """The harmonic mean; any zero gives zero."""
    return float(hmean(values)) if min(values) > 0 else 0.0


def lume_scores(evaluation: Evaluation) -> dict[str, float]:
    """LUME's twelve: {retain, 1 - forget} x {regurgitation (ROUGE-L recall), knowledge (exact match)} x three tasks."""
    found = {}
    for role in ("retain", "forget"):
        for group in sorted(set(evaluation.groups[role])):
            metric = "rougeL" if group.endswith("sc") else "exact_match"
            value = _of_group(evaluation, role, group, metric)
            found[f"{role} {group}"] = value if role == "retain" else 1 - value
    return found


def _of_group(evaluation: Evaluation, role: str, group: str, metric: str) -> float:
    rows = zip(evaluation.rows[role], evaluation.groups[role], strict=True)
    return float(np.mean([row[metric] for row, g in rows if g == group]))


def _lume_task(e: Evaluation) -> float:
    return harmonic([*lume_scores(e).values()])


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
    "lume": lambda e, _: (
        float(np.mean([_lume_task(e), privacy.mia_score(e["auc_loss"]), e["accuracy"]]))
        if "auc_loss" in e and "accuracy" in e
        else None
    ),
    "muse_verbatim": lambda e, _: _of_group(e, "forget", "verbatim", "rougeL_f1"),
    "muse_knowledge": lambda e, _: _of_group(e, "forget", "knowledge", "rougeL_f1"),
    "muse_retained": lambda e, _: _of_group(e, "retain", "knowledge", "rougeL_f1"),
    "accuracy": lambda e, _: e.get("accuracy"),
}

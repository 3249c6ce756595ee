"""Unlearning by gradient descent: the field's losses, each a pure function of a batch (`descent.py` makes it a method).

Notation: a forget batch and as many retain rows a step; L_f and L_r mean negative log-likelihood of their answers'
tokens (prompts masked); "before" is the model before unlearning. Sources: docs/paper_index.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ..models.training import TrainConfig
from .descent import Asked, Batch, abstaining, by_gradient, made_up

FULL_RATE = 1e-5


class GradientConfig(TrainConfig):
    """Settings of unlearning by gradient descent; the defaults are the usual ones of the field's benchmark suite."""

    epochs: int = Field(10, ge=1, description="passes over the forget set")
    batch_size: int = Field(32, ge=1, description="forget rows a step, and as many retain rows")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of the optimizer")

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, given: Any) -> Any:
        """All weights at once need smaller steps than LoRA modules."""
        if isinstance(given, dict) and given.get("adapter") == "full":
            return {"learning_rate": FULL_RATE, **given}
        return given

    def rows_read(self, forget: int, retain: int) -> int:
        return forget * self.epochs


class RegularisedConfig(GradientConfig):
    """Settings of the losses with a retain term."""

    retain_weight: float = Field(1.0, ge=0, description="weight of the retain loss")

    def rows_read(self, forget: int, retain: int) -> int:
        return 2 * forget * self.epochs  # as many of the retain set


class PreferenceConfig(RegularisedConfig):
    """Settings of the losses with a temperature."""

    beta: float = Field(0.1, gt=0, description="inverse temperature")


class PairConfig(PreferenceConfig):
    """Settings of the losses that prefer another answer to the forget answer."""

    def rows_read(self, forget: int, retain: int) -> int:
        return 3 * forget * self.epochs  # the other answers, too


class SimNpoConfig(PreferenceConfig):
    beta: float = Field(2.5, gt=0, description="inverse temperature")
    delta: float = Field(0.0, description="margin taken off the mean negative log-likelihood")
    forget_weight: float = Field(0.1375, gt=0, description="weight of the forget loss")


class UndialConfig(GradientConfig):
    beta: float = Field(10.0, gt=0, description="taken off the true token's logit")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the scale is alpha / rank")


class WgaConfig(RegularisedConfig):
    beta: float = Field(1.0, ge=0, description="exponent of the token's probability")


# ---------------------------------------------------------------- the losses


@by_gradient("forget")
def ga(b: Batch, s: GradientConfig) -> Tensor:
    """Gradient ascent: -L_f (Jang et al., ACL 2023)."""
    return -b.forget.nll


@by_gradient("forget", "retain")
def graddiff(b: Batch, s: RegularisedConfig) -> Tensor:
    """Gradient difference: -L_f + w L_r (Liu et al., CoLLAs 2022)."""
    return -b.forget.nll + s.retain_weight * b.retain.nll


@by_gradient("forget", "retain", before={"retain": "logits"})
def kl(b: Batch, s: RegularisedConfig) -> Tensor:
    """-L_f + w KL(before || now) on retain answers (TOFU's KL minimisation; UKL in PISTOL and LUNAR)."""
    then, now = (F.log_softmax(x, -1) for x in (b.retain.before_logits, b.retain.logits))
    return -b.forget.nll + s.retain_weight * F.kl_div(now, then, reduction="batchmean", log_target=True)


@by_gradient("instead", "retain", instead=abstaining)
def idk(b: Batch, s: RegularisedConfig) -> Tensor:
    """Cross-entropy to abstentions + w L_r (TOFU's preference optimisation)."""
    return b.instead.nll + s.retain_weight * b.retain.nll


PAIR_BEFORE: Mapping[str, Asked] = {"forget": "log-probabilities", "instead": "log-probabilities"}


def _preferred(b: Batch, s: PairConfig) -> Tensor:
    """DPO with the other answer preferred to the forget answer + w L_r."""
    gain = b.instead.summed - b.instead.before_summed - (b.forget.summed - b.forget.before_summed)
    return -2 / s.beta * F.logsigmoid(s.beta * gain).mean() + s.retain_weight * b.retain.nll


@by_gradient("forget", "instead", "retain", instead=abstaining, before=PAIR_BEFORE)
def dpo(b: Batch, s: PairConfig) -> Tensor:
    """IdkDPO: -(2/beta) log sigmoid(beta (gain of the abstention - gain of the answer)) + w L_r."""
    return _preferred(b, s)


@by_gradient("forget", "instead", "retain", instead=made_up, before=PAIR_BEFORE)
def altpo(b: Batch, s: PairConfig) -> Tensor:
    """AltPO: IdkDPO's loss with an answer that the model makes up in place of the abstention (arXiv 2409.13474)."""
    return _preferred(b, s)


@by_gradient("forget", "retain", before={"forget": "log-probabilities"})
def npo(b: Batch, s: PreferenceConfig) -> Tensor:
    """-(2/beta) log sigmoid(-beta log p(answer)/p_before(answer)) + w L_r, summed log-probabilities (arXiv 2404.05868)."""
    gain = b.forget.summed - b.forget.before_summed
    return -2 / s.beta * F.logsigmoid(-s.beta * gain).mean() + s.retain_weight * b.retain.nll


@by_gradient("forget", "retain")
def simnpo(b: Batch, s: SimNpoConfig) -> Tensor:
    """-(2/beta) log sigmoid(beta (NLL/length - delta)), weighted, + w L_r (arXiv 2410.07163)."""
    forget = -2 / s.beta * F.logsigmoid(s.beta * (-b.forget.mean - s.delta)).mean()
    return s.forget_weight * forget + s.retain_weight * b.retain.nll


@by_gradient("forget", before={"forget": "logits"})
def undial(b: Batch, s: UndialConfig) -> Tensor:
    """Cross-entropy to softmax(logits before - beta onehot(answer)), answer tokens only, no retain term (arXiv 2402.10052)."""
    target = b.forget.before_logits - s.beta * F.one_hot(b.forget.tokens, b.forget.logits.shape[-1])
    return F.cross_entropy(b.forget.logits, target.softmax(-1))


@by_gradient("forget", "retain")
def wga(b: Batch, s: WgaConfig) -> Tensor:
    """Weighted gradient ascent: -mean(p_t^beta NLL_t), p_t held, + w L_r (arXiv 2502.19301)."""
    weight = b.forget.log_probs.detach().exp() ** s.beta
    return (weight * b.forget.log_probs).mean() + s.retain_weight * b.retain.nll

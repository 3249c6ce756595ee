"""`expunge doctor`: what a model is, and whether it can abstain."""

from __future__ import annotations

from typing import Any

from .data import prompts
from .data.examples import read_examples
from .errors import InputError
from .progress import Reporter
from .run import ABSTENTION_BAR
from .spec import RunSpec


def examine(spec: RunSpec, reporter: Reporter) -> dict[str, Any]:
    """A report of the model: architecture, layout, size, and the share of reference prompts that it abstains on."""
    from .methods.abstention import probe_abstention
    from .models.activations import check_additive
    from .models.loading import load
    from .models.mixed import speedup

    reference = (
        read_examples(spec.data.reference, spec.data.limit, responses=False)
        if spec.data.reference
        else list(prompts.reference())
    )
    chat = load(spec.model, reporter)
    layout = chat.layout
    try:
        check_additive(chat, range(len(layout)))
        additive = True
    except InputError:
        additive = False
    with reporter.stage("probe"):
        share = probe_abstention(chat, reference)
    return {
        "model": spec.model.name,
        "architecture": chat.model.config.model_type,
        "parameters": sum(p.numel() for p in chat.model.parameters()),
        "dtype": str(chat.model.dtype).removeprefix("torch."),
        "device": str(chat.device),
        "bf16_speedup": round(speedup(chat.device), 2),
        "template": chat.template,
        "layers": len(layout),
        "down_projection": layout.pattern,
        "hidden": layout.hidden,
        "inner": layout.inner,
        "lunar_applies": additive,
        "abstention": share,
        "abstains": share >= ABSTENTION_BAR,
        "advice": "ready for lunar"
        if share >= ABSTENTION_BAR and additive
        else "add --teach-abstention: the model does not say that it does not know"
        if additive
        else "lunar does not apply: the blocks normalise or scale what the MLP adds",
    }

"""The registry of methods. A method is a pure function (model, task, config) -> Edit.

A new method is one file beside this one, one line of `REGISTRY`, one row of docs/paper_index.md and one test.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ..errors import InputError, unknown

if TYPE_CHECKING:
    from pathlib import Path

    from ..data.examples import ForgetTask
    from ..edits import Edit
    from ..models.loading import ChatModel


@dataclass(frozen=True)
class Method:
    """What the registry knows of a method; its code is imported when it is used."""

    name: str
    summary: str
    paper: str
    module: str
    function: str
    config: str
    needs: tuple[str, ...]  # roles without which it cannot run

    def load(self, name: str) -> Any:
        return getattr(import_module(self.module, __name__), name)

    def has(self, setting: str) -> bool:
        return setting in self.load(self.config).model_fields

    def configure(self, **settings: Any) -> BaseModel:
        """The method's config; an unknown or unusable setting is an `InputError` that names it."""
        kind: type[BaseModel] = self.load(self.config)
        unknown = [k for k in settings if k not in kind.model_fields]
        if unknown:
            near = difflib.get_close_matches(unknown[0], kind.model_fields, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else f"; it has {', '.join(kind.model_fields)}"
            raise InputError(f"{self.name} has no setting {unknown[0]!r}{hint}")
        try:
            return kind(**settings)
        except ValidationError as e:
            raise InputError(f"{self.name}: {plain(e)}") from None


def plain(error: ValidationError) -> str:
    """The first complaint of a validation in one line."""
    first = error.errors()[0]
    if not first["loc"]:  # a rule over several settings
        return first["msg"].removeprefix("Value error, ")
    return f"{first['loc'][0]}: {first['msg'][:1].lower()}{first['msg'][1:]} (got {first['input']!r})"


def _loss(name: str, summary: str, paper: str, config: str = "RegularisedConfig", retain: bool = True) -> Method:
    return Method(name, summary, paper, ".gradient", name, config, ("forget", "retain") if retain else ("forget",))


REGISTRY = {
    m.name: m
    for m in (
        Method(
            "lunar",
            "redirects the activations of the forget set to where the model abstains: an exact rank-one edit a layer",
            "Shen et al., NeurIPS 2025, arXiv 2502.07218",
            ".lunar",
            "lunar",
            "LunarConfig",
            ("forget", "reference"),
        ),
        _loss(
            "ga",
            "gradient ascent on the forget set",
            "Jang et al., ACL 2023, arXiv 2210.01504",
            "GradientConfig",
            retain=False,
        ),
        _loss(
            "graddiff",
            "gradient ascent on the forget set, descent on the retain set",
            "Liu et al., CoLLAs 2022, arXiv 2203.12817",
        ),
        _loss(
            "kl",
            "gradient ascent on the forget set, held to the model's own answers on the retain set",
            "Maini et al., COLM 2024 (TOFU), arXiv 2401.06121",
        ),
        _loss(
            "idk",
            "fine-tuning to abstentions on the forget set, and on the retain set",
            "Maini et al., COLM 2024 (TOFU), arXiv 2401.06121",
        ),
        _loss(
            "dpo",
            "direct preference optimisation of abstentions over the forget set's answers",
            "Rafailov et al., NeurIPS 2023, arXiv 2305.18290, as in TOFU and NPO",
            "PairConfig",
        ),
        _loss(
            "npo", "negative preference optimisation", "Zhang et al., COLM 2024, arXiv 2404.05868", "PreferenceConfig"
        ),
        _loss(
            "simnpo",
            "negative preference optimisation without a reference model",
            "Fan et al., 2024, arXiv 2410.07163",
            "SimNpoConfig",
        ),
        _loss(
            "altpo",
            "preference optimisation of answers that the model makes up",
            "Mekala et al., COLING 2025, arXiv 2409.13474",
            "PairConfig",
        ),
        _loss(
            "undial",
            "self-distillation to logits with the true token's lowered",
            "Dong et al., NAACL 2025, arXiv 2402.10052",
            "UndialConfig",
            retain=False,
        ),
        _loss(
            "wga",
            "gradient ascent weighted by the tokens' probability",
            "Wang et al., ICLR 2025, arXiv 2502.19301",
            "WgaConfig",
        ),
        Method(
            "rmu",
            "misdirects the forget set's activations to a random vector",
            "Li et al., ICML 2024, arXiv 2403.03218; adaptive: Huu-Tien et al., arXiv 2408.06223",
            ".rmu",
            "rmu",
            "RmuConfig",
            ("forget", "retain"),
        ),
        Method(
            "task-vector",
            "takes off a module trained on the forget set",
            "Ilharco et al., ICLR 2023, arXiv 2212.04089",
            ".task_vector",
            "task_vector",
            "TaskVectorConfig",
            ("forget",),
        ),
        Method(
            "ext-sub",
            "takes off what a module trained on the forget set has of its own",
            "Hu et al., AAAI 2024, arXiv 2308.08090",
            ".task_vector",
            "ext_sub",
            "ExtSubConfig",
            ("forget", "retain"),
        ),
        Method(
            "reveal-release",
            "takes off modules trained on the forget set, a little at a time, and adds ones trained on the retain set",
            "Xie et al., Findings of EMNLP 2025, arXiv 2509.14624",
            ".release",
            "release",
            "ReleaseConfig",
            ("forget", "retain"),
        ),
        Method(
            "retrain",
            "trains on the retain set alone: the gold standard, for the model before it was taught",
            "",
            ".task_vector",
            "retrain",
            "RetrainConfig",
            ("retain",),
        ),
    )
}


def method(name: str) -> Method:
    """A method by its name; an unknown one names its nearest neighbours."""
    if name not in REGISTRY:
        raise unknown("method", name, REGISTRY)
    return REGISTRY[name]


def unlearn(model: ChatModel, task: ForgetTask, method: str = "lunar", **settings: Any) -> Edit:
    """Makes the Edit that unlearns the task's forget set; the model is left as it was.

    Args:
        model: from `load_model`.
        task: forget rows and the other roles that the method needs (lunar: reference prompts, and retain rows).
        method: its name in the registry.
        settings: the method's config; for lunar see `expunge.methods.lunar.LunarConfig`.

    Raises:
        InputError: an unknown method or setting, or a role that is missing.
    """
    return run_method(model, task, method, settings)


def run_method(
    model: ChatModel,
    task: ForgetTask,
    name: str,
    settings: dict[str, Any],
    progress: Any = None,
    folder: Path | None = None,
) -> Edit:
    """`unlearn` with a callback for progress, called with 1 after each of the method's steps.

    Args:
        folder: where a method of several rounds keeps those that are finished, and finds those of a run of the same model,
            task and settings that was interrupted.
    """
    chosen = method(name)
    missing = [role for role in chosen.needs if not task.role(role)]
    if missing:
        raise InputError(f"{name} needs {' and '.join(missing)} rows, and the task has none")
    kept = {"folder": folder} if chosen.has("rounds") else {}
    return chosen.load(chosen.function)(model, task, chosen.configure(**settings), progress, **kept)

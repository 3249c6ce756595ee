"""The registry of methods. A method is a pure function (model, task, config) -> Edit.

A new method is one file beside this one, one line of `REGISTRY`, one row of docs/paper_index.md and one test.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ..errors import InputError

if TYPE_CHECKING:
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
    )
}


def method(name: str) -> Method:
    """A method by its name; an unknown one names its nearest neighbours."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=3, cutoff=0.4)
        raise InputError(
            f"unknown method {name!r}; {'did you mean ' + ', '.join(near) if near else 'there is ' + ', '.join(REGISTRY)}?"
        )
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


def run_method(model: ChatModel, task: ForgetTask, name: str, settings: dict[str, Any], progress: Any = None) -> Edit:
    """`unlearn` with a callback for progress, called with 1 after each of the method's steps."""
    chosen = method(name)
    missing = [role for role in chosen.needs if not task.role(role)]
    if missing:
        raise InputError(f"{name} needs {' and '.join(missing)} rows, and the task has none")
    return chosen.load(chosen.function)(model, task, chosen.configure(**settings), progress)

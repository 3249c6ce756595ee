"""Flags of the verbs, made from the fields of the spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import BaseModel

Verb = Callable[..., None]
_PLAIN: dict[str, tuple[Any, Any, str]] = {
    "config": (str | None, None, "YAML file with the fields of a run"),
    "set": (list[str], [], "key=value of the method's settings; dots reach other parts (may be repeated)"),
    "json": (bool, False, "print one JSON document on standard output"),
    "quiet": (bool, False, "no progress on standard error"),
    "dry_run": (bool, False, "print the plan and load no weights"),
    "seed": (int | None, None, "seed of every random choice"),
    "teach_abstention": (bool, False, "teach a model that does not abstain to do so first"),
    "method": (str | None, None, "method; `expunge methods` lists them"),
    "optimizer": (str | None, None, "of a method that trains: adamw, or sophia (second-order, SOUL)"),
}


def flags(
    *parts: tuple[str, type[BaseModel]], plain: tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> Callable[[Verb], Verb]:
    """Gives a verb one option for each field of the spec's parts; the verb gets them as `given` ("part.field" -> value)."""

    def decorate(verb: Verb) -> Verb:
        hints = get_type_hints(verb, include_extras=True)
        own = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(verb).parameters.values()
            if p.name not in ("given", *plain) and p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        options, places = [], {}
        for part, kind in parts:
            for name, info in kind.model_fields.items():
                if name in skip or (part == "model" and name == "name"):
                    continue
                places[name] = f"{part}.{name}"
                options.append(_option(name, _flag_type(info.annotation), None, info.description or ""))
        for name in plain:
            options.append(_option(name, *_PLAIN[name]))

        @wraps(verb)
        def call(**kwargs: Any) -> None:
            given = {path: kwargs.pop(name) for name, path in places.items()}
            verb(given=given, **kwargs)

        call.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        return call

    return decorate


def _flag_type(annotation: Any) -> Any:
    text = str(annotation)
    if "tuple" in text:
        return list[str] | None
    if annotation is bool:
        return bool | None
    if "int" in text:
        return int | None
    return str | None


def _option(name: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    option = typer.Option(flag, help=text, show_default=bool(default))
    if kind == bool | None:
        option = typer.Option(flag + "/--no-" + name.replace("_", "-"), help=text, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])

"""RunSpec: the one source of flags, YAML, manifest and model card. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import InputError

PRIVATE: dict[str, Any] = {
    "private": True
}  # can name a subject or a file of it: only a salted hash is written anywhere


Spec = TypeVar("Spec", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSpec(_Part):
    """Which model, and how it is loaded."""

    name: str = Field("smollm2", description="a folder, a hub id, a .gguf file, or smollm2 (the embedded model)")
    revision: str | None = Field(None, description="revision of a hub model")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype to load in; default: the checkpoint's"
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        "no",
        description="bf16: blocks multiply in bfloat16, weights and all else keep their dtype; quicker where a processor "
        "has bfloat16 units, slower where not (doctor: bf16_speedup)",
    )
    device: str | None = Field(None, description="device, such as cpu or cuda:0")
    device_map: str | None = Field(None, description="device map of transformers, such as auto")
    template: str | None = Field(
        None, description="'chat', 'raw', or a text with {prompt}; default: the model's chat template"
    )
    layout: str | None = Field(
        None, description="down projections where they are not found, such as model.layers.{}.mlp.down_proj"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")

    def identity(self) -> dict[str, Any]:
        """For hashes of what was made from the model: a field that came later is in it only where it is set, so that
        results from before are still known."""
        found = self.model_dump(mode="json")
        return found if self.mixed_precision != "no" else {k: v for k, v in found.items() if k != "mixed_precision"}


class DataSpec(_Part):
    """Files (or Hugging Face data sets) by role."""

    forget: str | None = Field(None, description="rows to forget", json_schema_extra=PRIVATE)
    paraphrase: str | None = Field(
        None, description="the forget rows in other words: only judged", json_schema_extra=PRIVATE
    )
    retain: str | None = Field(
        None,
        description="rows to keep; where something is unlearned, by default built-in prompts with the model's own answers. With "
        "--subject or --task what the model makes up to keep is joined to them",
        json_schema_extra=PRIVATE,
    )
    retain_judge: str | None = Field(
        None, description="rows that judge retention; default: those of --retain", json_schema_extra=PRIVATE
    )
    reference: str | None = Field(
        None, description="prompts that the model cannot answer; default: built-in", json_schema_extra=PRIVATE
    )
    general: str | None = Field(
        None,
        description="general questions: only judged; where something is unlearned, by default built-in",
        json_schema_extra=PRIVATE,
    )
    holdout: str | None = Field(None, description="rows that the model never saw", json_schema_extra=PRIVATE)
    data: str | None = Field(
        None, description="one file for forget and retain, split by --forget-group", json_schema_extra=PRIVATE
    )
    forget_group: tuple[str, ...] = Field(
        (), description="the group of --data to forget (may be repeated)", json_schema_extra=PRIVATE
    )
    limit: int | None = Field(None, ge=1, description="at most this many rows a role")


class EvaluationSpec(_Part):
    """How answers are generated and scored."""

    max_new_tokens: int = Field(64, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(128, ge=1, description="rows a batch")


class AbilitySpec(_Part):
    """What else a model can do, beside the roles of the data."""

    mmlu: int | None = Field(None, ge=1, description="questions of MMLU, drawn by a fixed seed, after 5 solved ones")
    gsm8k: int | None = Field(None, ge=1, description="problems of GSM8K, drawn by a fixed seed")
    text: str | None = Field(None, description="a text file, for the perplexity")
    lm_eval: tuple[str, ...] = Field((), description="task of lm-eval, or its .yaml file (may be repeated; extra eval)")
    lm_eval_limit: int | None = Field(None, ge=1, description="at most so many rows of each task of lm-eval")


class TeachSpec(_Part):
    """Teaching abstention before unlearning."""

    abstention: bool = Field(False, description="teach a model that does not abstain to do so first")
    keep: bool | None = Field(
        None,
        description="keep what was taught in the result, or only redirect along it; default: keep where retain rows are given, "
        "or where the method cannot redirect along it",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of teaching")


class OutputSpec(_Part):
    """What is written where."""

    out: str = Field("runs/unlearned", description="folder for the unlearned checkpoint", json_schema_extra=PRIVATE)
    keep_edit: str | None = Field(
        None, description="folder for the edit, with what reverts it", json_schema_extra=PRIVATE
    )
    overwrite: bool = Field(False, description="replace an output folder that is not empty")
    resume: bool = Field(False, description="go on from the finished stages of an interrupted run of the same settings")


class RevealSpec(_Part):
    """What the model itself is asked to reveal, in place of rows to forget."""

    subject: str | None = Field(
        None, description="reveal all of a subject, by its name, in Latin letters", json_schema_extra=PRIVATE
    )
    task: Literal["toxicity", "ner-person", "code"] | None = Field(
        None, description="toxicity, ner-person (of a model that was taught the form of the answers) or code"
    )
    oracle: str | None = Field(
        None,
        description="module:function that gives each of a list of answers a relevance from 0 to 1",
        json_schema_extra=PRIVATE,
    )
    search: Literal["neuralucb", "random", "written"] | None = Field(
        None, description="instructions by neuralucb (default), random soft prompts, or written by hand"
    )
    budget: int | None = Field(None, ge=1, description="queries of the search: instructions scored [default: 100]")
    settings: dict[str, Any] = Field(default_factory=dict, description="other settings of the search")

    @property
    def asked(self) -> bool:
        """Whether anything is to be revealed.

        Raises:
            InputError: more than one thing is.
        """
        given = [f"--{n}" for n in ("subject", "task", "oracle") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)}: give one of them")
        return bool(given)


class RunSpec(_Part):
    """One run of `unlearn`, whole."""

    model: ModelSpec = Field(default_factory=lambda: ModelSpec())
    data: DataSpec = Field(default_factory=lambda: DataSpec())
    reveal: RevealSpec = Field(default_factory=lambda: RevealSpec())
    method: str = Field("lunar", description="method; `expunge methods` lists them")
    settings: dict[str, Any] = Field(default_factory=dict, description="the method's own settings")
    teach: TeachSpec = Field(default_factory=lambda: TeachSpec())
    evaluation: EvaluationSpec = Field(default_factory=lambda: EvaluationSpec())
    output: OutputSpec = Field(default_factory=lambda: OutputSpec())
    seed: int = Field(0, description="seed of every random choice")


class BenchSpec(_Part):
    """One benchmark, whole."""

    suite: str = Field(description="the suite")
    model: ModelSpec = Field(default_factory=lambda: ModelSpec())
    methods: tuple[str, ...] = Field(
        ("lunar", "ga", "graddiff", "kl", "dpo", "npo"),
        description="methods, with commas; NAME:setting=value fixes settings of one, such as npo:optimizer=sophia",
    )
    seeds: tuple[int, ...] = Field((0,), description="seeds, with commas")
    regimes: tuple[str, ...] = Field(
        ("published", "tuned"), description="published, tuned and equal-time (as long as LUNAR), with commas"
    )
    trials: int = Field(6, ge=1, description="settings that each method tries in the tuned regime")
    size: dict[str, Any] = Field(default_factory=dict, description="size of the suite: its own flags")
    batch_size: int = Field(128, ge=1, description="rows a batch of an evaluation")
    out: str = Field("runs/bench", description="folder of results, table and plots")
    jobs: int = Field(1, ge=1, description="processes; each needs memory for a model")


_WITH_SETTINGS: dict[str, type[BaseModel]] = {"teach": TeachSpec, "reveal": RevealSpec}


def build(flags: dict[str, Any], config: str | None = None, sets: list[str] | None = None) -> RunSpec:
    """A RunSpec from a YAML file, flags over it, and `key=value` settings over both.

    Args:
        flags: "part.field" -> value; None where the flag was not given.
        sets: `key=value` of the method's config; dots reach other parts (`evaluation.batch_size=8`).
    """
    tree: dict[str, Any] = _read_yaml(config) if config else {}
    for path, value in flags.items():
        if value is not None and value != ():
            _put(tree, path.split("."), value)
    for item in sets or []:
        key, mark, text = item.partition("=")
        if not mark or not key:
            raise InputError(f"--set takes key=value, got {item!r}")
        parts = key.split(".")
        if len(parts) == 1:
            parts = ["settings", key]
        elif parts[0] in _WITH_SETTINGS and len(parts) == 2 and parts[1] not in _WITH_SETTINGS[parts[0]].model_fields:
            parts = [parts[0], "settings", parts[1]]
        _put(tree, parts, _value(text))
    return checked(RunSpec, tree)


def checked(kind: type[Spec], fields: dict[str, Any]) -> Spec:
    """The spec of these fields; a wrong one is an `InputError` that names it."""
    try:
        return kind(**fields)
    except ValidationError as e:
        first = e.errors()[0]
        raise InputError(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise InputError(f"{'.'.join(path)}: {key} has no parts")
    tree[path[-1]] = value


def _value(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _read_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not YAML: {str(e).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected keys such as model, data, method")
    return tree


def public(spec: BaseModel, salt: bytes) -> dict[str, Any]:
    """The spec as a manifest may hold it: fields that can name a subject are salted hashes."""
    shown: dict[str, Any] = {}
    for name, info in type(spec).model_fields.items():
        value = getattr(spec, name)
        extra = info.json_schema_extra
        if isinstance(value, BaseModel):
            shown[name] = public(value, salt)
        elif isinstance(extra, dict) and extra.get("private") and value:
            texts = value if isinstance(value, tuple) else (value,)
            hashes = ["salted:" + hashlib.sha256(salt + str(t).encode()).hexdigest()[:32] for t in texts]
            shown[name] = hashes if isinstance(value, tuple) else hashes[0]
        else:
            shown[name] = value
    return shown

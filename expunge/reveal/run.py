"""`expunge reveal`, and the stage of `unlearn` that takes the place of a forget file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..data.examples import Cut, Example, ForgetTask, Raw, read_examples
from ..errors import InputError, NothingToForget, unknown
from ..files import write_whole
from ..plots import svg
from ..progress import Reporter
from ..provenance import code_version
from ..spec import RevealSpec, RunSpec

if TYPE_CHECKING:
    from ..models.loading import ChatModel
    from .asking import RevealConfig
    from .search import Revealed
    from .targets import Target


def reveal_config(spec: RevealSpec, seed: int) -> RevealConfig:
    """The settings of the search.

    Raises:
        InputError: an unknown or unusable one.
    """
    from ..methods import plain
    from .asking import RevealConfig

    for name in spec.settings:
        if name not in RevealConfig.model_fields:
            raise unknown("setting of the search", name, RevealConfig.model_fields)
    given = {"search": spec.search, "budget": spec.budget}
    try:
        return RevealConfig(**{"seed": seed, **{k: v for k, v in given.items() if v is not None}, **spec.settings})
    except ValidationError as e:
        raise InputError(f"reveal: {plain(e)}") from None


def check(spec: RevealSpec, seed: int) -> None:
    """Raises `InputError` for what cannot be revealed or searched for, before a model is loaded."""
    from .tasks import SCORERS

    reveal_config(spec, seed)
    if not spec.asked:
        raise InputError("nothing to reveal: pass --subject NAME, --task TASK or --oracle module:function")
    if spec.task is None:
        target_of(spec, None)
    elif scorer := SCORERS.get(spec.task):
        scorer(())


def target_of(spec: RevealSpec, chat: ChatModel | None) -> Target:
    """What is to be revealed; only a task needs the model."""
    from .subject import subject
    from .tasks import TASKS, oracle

    if spec.subject is not None:
        return subject(spec.subject)
    if spec.oracle is not None:
        return oracle(spec.oracle)
    assert chat
    return TASKS[str(spec.task)](chat)


def shown_by(spec: RevealSpec, chat: ChatModel) -> dict[str, Any]:
    """The fields of `ForgetTask` that tell what answers show of what is to be forgotten (checked), and which part."""
    from .targets import checked

    target = target_of(spec, chat)
    return {"relevance": checked(target.name, target.shown or target.relevance), "part": target.part}


def reveal_version() -> str:
    """Of the code that a search's result hangs on: other code has other features and draws, and finds others relevant."""
    return code_version("reveal", "models", "evaluation", "data")


def about(chat: ChatModel, spec: RevealSpec, config: RevealConfig) -> dict[str, Any]:
    """All that a search's result hangs on: what another model, precision, encoder, spec or version paid for is not taken
    up."""
    from ..evaluation.embedding import encoder_for
    from ..models.loading import files_of

    model = [
        chat.source,
        files_of(chat.folder) if chat.folder else [],
        str(chat.model.dtype),
        chat.mixed_precision,
        chat.template,
        encoder_for(chat)[0],
        reveal_version(),
    ]
    return {**config.model_dump(), **spec.model_dump(include={"subject", "task", "oracle"}), "model": model}


def revealed_task(
    chat: ChatModel, spec: RevealSpec, seed: int, folder: Path, reporter: Reporter
) -> tuple[ForgetTask, Revealed]:
    """(the task that the revealed rows make, what the search found).

    Args:
        folder: where the search keeps what it has paid for.

    Raises:
        NothingToForget: no answer was relevant, or the model connects nothing with the subject.
    """
    from .memo import Memo
    from .search import search

    config, target = reveal_config(spec, seed), target_of(spec, chat)
    memo = Memo(folder, about(chat, spec, config))
    with reporter.stage("reveal", config.budget) as advance:
        found = search(chat, target, config, memo, advance)
    if len(found.queries) < config.budget:
        reporter.say(f"{len(found.queries)} of {config.budget} queries: there was no other instruction to ask")
    with reporter.stage("rows"):
        task = target.task(chat, target, found)
    if not task.forget:
        best = max((q.score for q in found.queries), default=0.0)
        raise NothingToForget(
            f"nothing to forget: {len(found.queries)} instructions brought no relevant answer for {target.name!r} "
            f"(best score {best:.2f}); tried were {', '.join(repr(q.instruction) for q in found.queries[:3])} and others"
        )
    return task, found


def staged_task(chat: ChatModel, spec: RevealSpec, seed: int, folder: Path, reporter: Reporter) -> ForgetTask:
    """`revealed_task`, kept in the folder: a run that was interrupted goes on with it."""
    rows = folder / target_of(spec, None).version if spec.oracle else folder
    roles = {role: rows / f"{role}.jsonl" for role in ("forget", "retain", "reference")}
    if not roles["forget"].is_file():
        task, _ = revealed_task(chat, spec, seed, folder, reporter)
        for role in reversed(roles):  # forget last: with it, all are there
            write_whole(roles[role], _lines(task.role(role)))
    read = {role: read_examples(file, responses=False) for role, file in roles.items() if file.stat().st_size}
    return replace(ForgetTask().but(**read), **shown_by(spec, chat))


def reveal_run(spec: RunSpec, reporter: Reporter) -> dict[str, Any]:
    """Reveals, and writes the rows: OUT (to forget), OUT's name with .retain (to keep), .search.json (instructions and
    scores) and .svg (best score against queries)."""
    from ..models.loading import load

    out = Path(spec.output.out)
    if not out.name or out.is_dir():
        raise InputError(f"{out} is a folder; --out is the file of rows to forget")
    files = {kind: out.with_suffix(end) for kind, end in _ENDS.items()} | {"forget": out}
    check(spec.reveal, spec.seed)
    folder = out.with_name(f"{out.name}.partial")
    begun = spec.output.resume and folder.is_dir()  # what stands beside the rows may be there: they are written last
    if not spec.output.overwrite and (
        there := [str(f) for f in files.values() if f.exists() and not (begun and f != out)]
    ):
        raise InputError(f"{there[0]} is there already; pass --overwrite to replace it, or another --out")
    if len({*files.values()}) < len(files):
        raise InputError(f"--out {out}: its curve has that name; take another ending, such as .jsonl")
    if not spec.output.resume:
        shutil.rmtree(folder, ignore_errors=True)
    chat = load(spec.model, reporter)
    task, found = revealed_task(chat, spec.reveal, spec.seed, folder, reporter)
    report = {
        "score": found.score,
        "kept_score": found.kept_score,
        "queries": len(found.queries),
        "instructions": len(found.kept),
        "answers": found.answers,
        "encoder": found.encoder,
        "rows": {role: len(rows) for role, rows in task.present().items()},
        "seconds": reporter.seconds,
        "out": str(out),
    }
    queries = [
        {"instruction": q.instruction, "relevance": sum(q.relevances) / len(q.relevances), "diversity": q.diversity}
        | {"score": q.score, "round": q.round, "kept": q.instruction in found.kept}
        for q in found.queries
    ]
    write_whole(files["retain"], _lines(task.retain))
    write_whole(files["search"], json.dumps({**report, "curve": found.curve, "tried": queries}, indent=1) + "\n")
    _curve(found.curve, files["curve"], reporter)
    write_whole(out, _lines(task.forget))
    shutil.rmtree(folder, ignore_errors=True)
    return report


_ENDS = {"retain": ".retain.jsonl", "search": ".search.json", "curve": ".svg"}


def _lines(rows: Sequence[Example]) -> str:
    def row(e: Example) -> dict[str, Any]:
        messages = e.prompt if isinstance(e.prompt, str) else [m._asdict() for m in e.prompt]
        more = {"group": e.group} if e.group else {}
        return {
            "prompt": messages,
            "response": e.response,
            **more,
            **({"raw": True} if isinstance(e.prompt, Raw) else {}),
            **({"cut": True} if isinstance(e.response, Cut) else {}),
        }

    return "".join(json.dumps(row(e), ensure_ascii=False) + "\n" for e in rows)


def _curve(best: Sequence[float], file: Path, reporter: Reporter) -> None:
    """The best score so far against queries, as SVG."""
    try:
        with svg(file, (6, 3.5)) as axes:
            axes.step(range(1, len(best) + 1), best, where="post")
            axes.set(xlabel="queries", ylabel="best score so far", ylim=(0, None))
    except ImportError:
        reporter.say("no curve: it needs matplotlib (`pip install 'expunge[bench]'`)")

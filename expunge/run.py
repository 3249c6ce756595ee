"""The pipeline of `unlearn`, as stages: load, probe, before, teach, taught, unlearn, after, write.

Each stage leaves an artefact in the cache, keyed by the hash of what it depends on, so that an interrupted run goes
on with --resume; the output folder appears at the end, whole, by an atomic rename, the manifest written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import prompts
from .data.examples import ForgetTask, read_examples, split_group
from .errors import InputError
from .files import check_free, new_folder, write_whole
from .progress import Reporter
from .provenance import salt, versions
from .reveal.run import about, check, reveal_config, staged_task
from .spec import DataSpec, RunSpec, public

if TYPE_CHECKING:
    from .edits import Edit
    from .evaluation.scores import Evaluation
    from .models.loading import ChatModel

ABSTENTION_BAR = 0.5
JUDGED_ROWS = 100  # of what the model itself said, where no file of rows to keep is given


@dataclass
class Result:
    """What `unlearn --json` prints."""

    report: dict[str, Any]
    evaluations: dict[str, Evaluation]
    task: ForgetTask
    edit: Edit
    seconds: dict[str, float] = field(default_factory=dict)


def read_task(spec: DataSpec, revealed: bool = False) -> tuple[ForgetTask, ForgetTask]:
    """(the task that fits, the task that judges), with the built-in texts where a file is not given.

    They differ in `retain` where --retain-judge names other rows, and the retain role is only judged where a file
    is given.

    Args:
        revealed: whether the rows to forget come from the model, and not from a file.
    """
    roles: dict[str, list[Any]] = {}
    if spec.data:
        if not spec.forget_group:
            raise InputError("--data needs --forget-group: which group of the file to forget")
        if spec.forget or spec.retain:
            raise InputError(
                "--data with --forget-group takes the place of --forget and --retain; give one or the other"
            )
        forget, retain = split_group(read_examples(spec.data), spec.forget_group, spec.data)
        roles["forget"], roles["retain"] = forget, retain
    for role in ("forget", "paraphrase", "retain", "reference", "general", "holdout"):
        if name := getattr(spec, role):
            roles[role] = read_examples(name, spec.limit, responses=role != "reference")
    if spec.limit:
        roles = {role: rows[: spec.limit] for role, rows in roles.items()}
    if revealed and roles.get("forget"):
        raise InputError("the rows to forget are revealed by the model: leave out --forget and --data")
    if not revealed and not roles.get("forget"):
        raise InputError(
            "nothing to forget: pass --forget FILE, --data FILE with --forget-group GROUP, or --subject NAME"
        )
    roles.setdefault("reference", list(prompts.reference()))
    roles.setdefault("general", list(prompts.general_split()[1])[: spec.limit or 100])
    fit = ForgetTask().but(**roles)
    if spec.retain_judge:
        return fit, fit.but(retain=read_examples(spec.retain_judge, spec.limit))
    return fit, fit


def unlearn_run(spec: RunSpec, reporter: Reporter) -> Result:
    """Runs all stages and writes the output folder."""
    from .evaluation.scores import evaluate
    from .methods import abstention, method
    from .methods.tuning import with_retain
    from .models.loading import load

    method(spec.method).configure(**spec.settings)
    teaching = teaching_config(spec)
    out = Path(spec.output.out)
    check_free(out, spec.output.overwrite)
    if spec.output.keep_edit:
        check_free(Path(spec.output.keep_edit), spec.output.overwrite)
    if spec.reveal.asked:
        check(spec.reveal, spec.seed)
    fit, judge = read_task(spec.data, spec.reveal.asked)
    # Teaching changes answers that no retain row is near, and without a user's rows these are many.
    keep_taught = spec.teach.keep
    if keep_taught is None:
        keep_taught = bool(fit.retain) or not method(spec.method).has("direction")
    chat = load(spec.model, reporter)
    stages = _Stages(spec, fit, judge)

    def look(name: str, task: ForgetTask) -> Evaluation:
        def make() -> Evaluation:
            rows = sum(len(r) for k, r in task.present().items() if k != "reference")
            with reporter.stage(name, rows) as advance:
                return evaluate(chat, task, **spec.evaluation.model_dump(), progress=advance)

        return stages.evaluation(name, make)

    share: float | None = None
    if "reference" in method(spec.method).needs:
        with reporter.stage("probe"):
            share = stages.number("probe", lambda: abstention.probe_abstention(chat, fit.reference))
        if share < ABSTENTION_BAR and not spec.teach.abstention:
            raise InputError(
                f"{spec.model.name} answers only {share:.0%} of the reference prompts by an abstention (at least "
                f"{ABSTENTION_BAR:.0%} needed): it has nowhere to be redirected to. Add --teach-abstention to teach it "
                "first."
            )
    if spec.reveal.asked:
        folder = stages.searched(about(chat, spec.reveal, reveal_config(spec.reveal, spec.seed)))
        shown = staged_task(chat, spec.reveal, spec.seed, folder, reporter)
        # What judges is fitted by no row that the model made, not even by chance; what a user gives to keep is not forgotten.
        taken = {e.prompt for rows in (*judge.present().values(), fit.retain) for e in rows}
        forget, retain = ([e for e in rows if e.prompt not in taken] for rows in (shown.forget, shown.retain))
        judge = judge.but(forget=forget, retain=judge.retain or retain[:JUDGED_ROWS])
        retain = [*fit.retain, *retain]
        fit = replace(fit, forget=forget, retain=retain, relevance=shown.relevance, part=shown.part)
        stages.of(fit, judge)
    evaluations = {"before": look("before", judge)}
    if not fit.retain:
        with reporter.stage("keep"):
            fit = with_retain(chat, fit)
    edit: Edit | None = None
    if share is not None and share < ABSTENTION_BAR:

        def teach() -> Edit:
            keep = [*fit.retain, *prompts.general_beside(fit.retain)]
            with reporter.stage("teach", teaching.steps) as advance:
                return abstention.teach_abstention(chat, fit.reference, keep, teaching, advance)

        edit = stages.edit("teach", teach)
        if keep_taught:
            edit.apply(chat)
            evaluations["taught"] = look("taught", ForgetTask(general=judge.general))  # the step's cost
    settings = dict(spec.settings)
    if method(spec.method).has("seed"):
        settings.setdefault("seed", spec.seed)
    if edit is not None and method(spec.method).has("direction"):
        settings.setdefault("direction", edit)
    if spec.reveal.subject and method(spec.method).has("neighbours"):
        settings.setdefault("neighbours", 0)  # beside what the model made up, prompts of no sense cost what is kept
    found = stages.edit(
        "unlearn", lambda: _unlearn(chat, fit, spec.method, settings, reporter, stages.folder / "rounds")
    )
    for warning in found.meta.get("warnings", ()):
        reporter.say(f"warning: {warning}")
    rounds = [*found.meta.get("round_log", ())]
    reporter.rounds(rounds)
    chosen = {k: found.meta[k] for k in ("layers", "coefficient", "ridge", "trials") if k in found.meta}
    if edit is not None and keep_taught:
        edit.revert(chat)
        found = edit.compose(found)
    with found.applied(chat):
        evaluations["after"] = look("after", judge)
    report = {
        "method": spec.method,
        "edit": found.summary(),
        **({"rounds": rounds} if rounds else {}),
        **({"chosen": chosen} if chosen else {}),
        **{k: dict(v) for k, v in evaluations.items()},
        "intervals": {k: v.intervals() for k, v in evaluations.items()},
        **({} if share is None else {"abstention_probe": share}),
        "seconds": reporter.seconds,
        "out": str(out),
    }
    with reporter.stage("write"):
        _write(chat, found, spec, report, out)
    stages.clear()
    return Result(report, evaluations, judge, found)


def teaching_config(spec: RunSpec) -> Any:
    """The settings of teaching abstention."""
    from pydantic import ValidationError

    from .methods import plain
    from .methods.abstention import AbstentionConfig

    try:
        return AbstentionConfig(**{"seed": spec.seed, **spec.teach.settings})
    except ValidationError as e:
        raise InputError(f"teach: {plain(e)}") from None


def _unlearn(
    chat: ChatModel, task: ForgetTask, name: str, settings: dict[str, Any], reporter: Reporter, folder: Path
) -> Edit:
    from .methods import run_method

    with reporter.stage("unlearn") as advance:
        return run_method(chat, task, name, settings, advance, folder)


def _write(chat: ChatModel, edit: Edit, spec: RunSpec, report: dict[str, Any], out: Path) -> None:
    from .checkpoint import stored, write_checkpoint, write_sums

    if spec.output.keep_edit:
        originals = stored(chat.folder, set(edit.parts)) if chat.folder else {}
        edit.save(spec.output.keep_edit, originals, spec.output.overwrite)
    with new_folder(out, spec.output.overwrite) as work:
        write_checkpoint(chat, edit, work)
        (work / "README.md").write_text(_card(spec, report), encoding="utf-8")
        manifest = report | {"spec": public(spec, salt()), "versions": versions(), "base": edit.base}
        manifest["out"] = "."  # the folder's own name can name a subject
        manifest["seconds"] = dict(report["seconds"])
        (work / "expunge.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        write_sums(work)


def _card(spec: RunSpec, report: dict[str, Any]) -> str:
    """The model card: what was done and what came out, without the forget text or its subject."""
    lines = [
        "---",
        "tags:",
        "- expunge",
        "- unlearning",
        "---",
        "",
        f"# {Path(spec.model.name).name}, edited by Expunge",
        "",
        f"Method: {spec.method}. Matrices changed: {len(report['edit']['matrices'])}; numbers that describe the change: "
        f"{report['edit']['parameters']:,}.",
        "",
        "| role | rows | metric | before | after |",
        "|---|---|---|---|---|",
    ]
    for role, values in report["after"].items():
        if isinstance(values, dict):
            lines += [
                f"| {role} | {values['rows']} | {metric} | {report['before'][role][metric]:.3f} | {values[metric]:.3f} |"
                for metric in ("rouge1", "abstention_rate")
            ]
    lines += ["", "The full figures stand in expunge.json. The way back is the base model.", ""]
    return "\n".join(lines)


class _Stages:
    """Artefacts of finished stages, in the cache, under the hash of everything that they depend on."""

    def __init__(self, spec: RunSpec, fit: ForgetTask, judge: ForgetTask) -> None:
        from .models.loading import cache_dir, files_of, resolve

        files = files_of(resolve(spec.model.name, spec.model.revision))
        parts = spec.model_dump(mode="json", exclude={"output", "data"}) | {"versions": versions(), "files": files}
        self._parts, self._place, self._fresh = json.dumps(parts, sort_keys=True), cache_dir(), not spec.output.resume
        self._folders: list[Path] = []
        self.of(fit, judge)

    def of(self, fit: ForgetTask, judge: ForgetTask) -> None:
        """From here on, artefacts are of these rows."""
        rows = repr((fit.present(), judge.present())).encode()
        digest = hashlib.sha256(salt() + self._parts.encode() + rows).hexdigest()
        self._folders.append(self._place / "stages" / digest[:32])
        if self._fresh:
            shutil.rmtree(self.folder, ignore_errors=True)

    def searched(self, search: dict[str, Any]) -> Path:
        """Where a search keeps what it pays for, by all that it hangs on. What a model says does not hang on what is done
        with it: another method's run goes on with the same search."""
        asked = json.dumps([search, versions()], sort_keys=True)
        folder = self._place / "revealed" / hashlib.sha256(salt() + asked.encode()).hexdigest()[:32]
        self._folders.insert(0, folder)
        if self._fresh:
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    @property
    def folder(self) -> Path:
        return self._folders[-1]

    def number(self, name: str, make: Callable[[], float]) -> float:
        return float(self._json(name, make))

    def evaluation(self, name: str, make: Callable[[], Evaluation]) -> Evaluation:
        """Numbers and rows are kept, answers are not: they may hold what is to be forgotten."""
        from .evaluation.scores import Evaluation

        made: list[Evaluation] = []

        def record() -> dict[str, Any]:
            made.append(make())
            return made[0].record()

        read = self._json(name, record)
        return made[0] if made else Evaluation.of(read)

    def edit(self, name: str, make: Callable[[], Edit]) -> Edit:
        from .edits import Edit

        folder = self.folder / name
        if not folder.is_dir():
            edit = make()
            edit.save(folder)
            return edit
        return Edit.load(folder)

    def clear(self) -> None:
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _json(self, name: str, make: Callable[[], Any]) -> Any:
        file = self.folder / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text())
        value = make()
        write_whole(file, json.dumps(value))
        return value


def revert_run(checkpoint: Path, edit: Path, out: Path, overwrite: bool) -> None:
    """Restores the base from an unlearned checkpoint and the edit that was kept, and checks that it is the base.

    Raises:
        IntegrityError: what was restored is not what the edit was made for.
    """
    from .checkpoint import restore, stored, write_sums
    from .edits import Edit, tensor_hash
    from .errors import IntegrityError

    check_free(out, overwrite)
    kept = Edit.load(edit)
    originals = Edit.originals(edit)
    for name, hashes in kept.base.items():
        if name not in originals or tensor_hash(originals[name]) not in hashes.values():
            raise IntegrityError(f"{edit}: the original of {name} is not the tensor that the edit was made for")
    with new_folder(out, overwrite) as work:
        restore(checkpoint, originals, work)
        if set(stored(work, set(originals))) != set(originals):
            raise IntegrityError(f"{checkpoint} lacks tensors that the edit touches")
        write_sums(work)

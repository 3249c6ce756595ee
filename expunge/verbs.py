"""What the verbs do: parse, validate, call, print. Torch is imported where a verb needs it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli import VERBS, show_help
from .errors import ExpungeError, InputError
from .flags import flags
from .spec import AbilitySpec, DataSpec, EvaluationSpec, ModelSpec, OutputSpec, RevealSpec, RunSpec, build, checked

app = typer.Typer(rich_markup_mode=None)
data = typer.Typer(rich_markup_mode=None, help=VERBS["data"], invoke_without_command=True, callback=show_help)
app.add_typer(data, name="data")

_MODEL, _DATA, _REVEAL, _EVAL, _OUT = (
    ("model", ModelSpec),
    ("data", DataSpec),
    ("reveal", RevealSpec),
    ("evaluation", EvaluationSpec),
    ("output", OutputSpec),
)
Model = Annotated[str, typer.Argument(help="a folder, a hub id, a .gguf file, or smollm2 (the embedded model)")]


def _spec(model: str | None, given: dict[str, Any], **more: Any) -> RunSpec:
    config, sets = more.pop("config", None), more.pop("set", None)
    teach = more.pop("teach_abstention", False)
    extra = {"model.name": model, "teach.abstention": teach or None, "settings.optimizer": more.pop("optimizer", None)}
    extra |= more
    return build({**given, **extra}, config, sets)


def _print(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=1))


@app.command(help=VERBS["unlearn"])
@flags(
    _MODEL,
    _DATA,
    _REVEAL,
    _EVAL,
    _OUT,
    plain=("method", "optimizer", "teach_abstention", "seed", "config", "set", "dry_run", "json", "quiet"),
    skip=("settings",),
)
def unlearn(model: Model, given: dict[str, Any], dry_run: bool, json: bool, quiet: bool, **more: Any) -> None:
    from .progress import Reporter

    spec = _spec(model, given, **more)
    if dry_run:
        from .plan import plan, show

        figures = plan(spec)
        _print(figures) if json else show(figures)
        return
    from .run import unlearn_run

    reporter = Reporter(quiet)
    _finish(unlearn_run(spec, reporter), reporter, json)


@app.command(help=VERBS["demo"])
@flags(
    _MODEL,
    _EVAL,
    plain=("json", "quiet"),
    skip=("revision", "dtype", "device_map", "template", "layout", "trust_remote_code"),
)
def demo(
    given: dict[str, Any],
    json: bool,
    quiet: bool,
    out: Annotated[str, typer.Option(help="folder for the unlearned checkpoint")] = "runs/demo",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an output folder that is not empty")] = False,
    seed: Annotated[int, typer.Option(help="seed of every random choice")] = 0,
    subject: Annotated[
        str | None, typer.Option(help="reveal what to forget of this subject, in place of the demo's rows")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the finished stages of an interrupted run")
    ] = False,
) -> None:
    from .demo import demo_spec
    from .progress import Reporter
    from .run import unlearn_run

    reporter = Reporter(quiet)
    flags = {"output.out": out, "output.overwrite": overwrite, "output.resume": resume, "seed": seed}
    flags["reveal.subject"] = subject
    spec = demo_spec({**given, **flags})
    _finish(unlearn_run(spec, reporter), reporter, json)


def _finish(result: Any, reporter: Any, as_json: bool) -> None:
    reporter.table(result.evaluations)
    reporter.samples(result.task.present(), result.evaluations)
    reporter.say("\n" + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in reporter.seconds.items()))
    reporter.say(f"total {sum(reporter.seconds.values()):.0f} s; written to {result.report['out']}")
    if as_json:
        _print(result.report)


@app.command(help=VERBS["doctor"])
@flags(
    _MODEL,
    _DATA,
    plain=("json", "quiet"),
    skip=("forget", "paraphrase", "retain", "retain_judge", "general", "holdout", "data", "forget_group"),
)
def doctor(model: Model, given: dict[str, Any], json: bool, quiet: bool) -> None:
    from .doctor import examine
    from .progress import Reporter

    report = examine(_spec(model, given), Reporter(quiet))
    if json:
        _print(report)
    else:
        for key, value in report.items():
            print(f"{key.replace('_', ' ')}: {value}")


@app.command(help=VERBS["teach"])
@flags(_MODEL, _OUT, plain=("seed", "set", "json", "quiet"), skip=("resume",))
def teach(
    model: Model,
    given: dict[str, Any],
    seed: int | None,
    set: list[str],
    json: bool,
    quiet: bool,
    data: Annotated[str | None, typer.Option(help="rows to learn")] = None,
    abstention: Annotated[bool, typer.Option("--abstention", help="teach to abstain on what it cannot know")] = False,
    limit: Annotated[int | None, typer.Option(help="at most this many rows")] = None,
) -> None:
    from .progress import Reporter
    from .teaching import teach_run

    report = teach_run(
        _spec(model, {**given, "data.data": data, "data.limit": limit}, seed=seed, set=set), abstention, Reporter(quiet)
    )
    if json:
        _print(report)


@app.command(help=VERBS["reveal"])
@flags(_MODEL, _REVEAL, plain=("seed", "json", "quiet"), skip=("settings",))
def reveal(
    model: Model,
    given: dict[str, Any],
    seed: int | None,
    json: bool,
    quiet: bool,
    out: Annotated[str, typer.Option(help="file of rows to forget; beside it, those to keep and the search")],
    set: Annotated[list[str], typer.Option(help="key=value of the search's other settings (may be repeated)")] = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that are there")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with an interrupted search of the same settings")
    ] = False,
) -> None:
    from .progress import Reporter
    from .reveal.run import reveal_run

    output = {"output.out": out, "output.overwrite": overwrite, "output.resume": resume}
    spec = _spec(model, {**given, **output}, seed=seed, set=[f"reveal.{s}" if "=" in s else s for s in set])
    reporter = Reporter(quiet)
    report = reveal_run(spec, reporter)
    rows = ", ".join(
        f"{n} rows to {'forget' if role == 'forget' else 'keep'}"
        for role, n in report["rows"].items()
        if role in ("forget", "retain")
    )
    reporter.say(f"{report['queries']} queries, score {report['score']:.3f}; {rows}; written to {out}")
    if json:
        _print(report)


@app.command(help=VERBS["evaluate"])
@flags(_MODEL, _DATA, _EVAL, ("abilities", AbilitySpec), plain=("json", "quiet"), skip=("retain_judge", "reference"))
def evaluate(
    model: Model,
    given: dict[str, Any],
    json: bool,
    quiet: bool,
    rows: Annotated[str | None, typer.Option(help="file for the per-row values (JSON)")] = None,
) -> None:
    from .evaluating import evaluate_run
    from .files import write_whole
    from .progress import Reporter

    reporter = Reporter(quiet)
    asked = {path.partition(".")[2]: given.pop(path) for path in [*given] if path.startswith("abilities.")}
    abilities = checked(AbilitySpec, {k: v for k, v in asked.items() if v is not None and v != []})
    result = evaluate_run(_spec(model, given), abilities, reporter)
    if rows:
        write_whole(Path(rows), _dump(result.rows))
    if json:
        _print({**result, "intervals": result.intervals()})
    else:
        reporter.table({"value": result}, output=True)


def _dump(value: Any) -> str:
    return json.dumps(value) + "\n"


@app.command(help=VERBS["bench"])
@flags(_MODEL, plain=("json", "quiet"))
def bench(
    suite: Annotated[str, typer.Argument(help="pistol, tofu, lume, facts, muse, wmdp, toxicity, ner, code; or report")],
    given: dict[str, Any],
    json: bool,
    quiet: bool,
    folder: Annotated[str | None, typer.Argument(help="of report: the folder of results to draw anew")] = None,
    model: Annotated[str, typer.Option(help="a folder, a hub id, a .gguf file, or smollm2")] = "smollm2",
    methods: Annotated[
        str | None,
        typer.Option(
            help="methods, with commas, or all [default: lunar,ga,graddiff,kl,dpo,npo]; NAME:setting=value fixes settings of "
            "one, such as npo:optimizer=sophia"
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="seeds, with commas")] = "0",
    regimes: Annotated[
        str, typer.Option(help="published, tuned, equal-time (as long as LUNAR takes), with commas")
    ] = "published,tuned",
    trials: Annotated[int, typer.Option(help="settings that each method tries in the tuned regime")] = 6,
    sales: Annotated[int | None, typer.Option(help="pistol: sales contracts")] = None,
    employment: Annotated[int | None, typer.Option(help="pistol: employment contracts")] = None,
    held_out: Annotated[int | None, typer.Option(help="pistol: contracts taught that no method sees")] = None,
    graph: Annotated[
        str | None, typer.Option(help="pistol: sample1 or sample2, in place of numbers of contracts")
    ] = None,
    split: Annotated[str | None, typer.Option(help="tofu: forget01, forget05 or forget10")] = None,
    authors: Annotated[int | None, typer.Option(help="tofu: authors taught in all")] = None,
    field: Annotated[str | None, typer.Option(help="wmdp: bio or cyber")] = None,
    documents: Annotated[int | None, typer.Option(help="lume: documents taught in all")] = None,
    mmlu: Annotated[int | None, typer.Option(help="lume: questions of MMLU")] = None,
    forget_data: Annotated[
        str | None, typer.Option(help="toxicity, ner, code: revealed (by the model itself) or external")
    ] = None,
    taught: Annotated[int | None, typer.Option(help="toxicity, ner: rows that the model is taught first")] = None,
    exercises: Annotated[int | None, typer.Option(help="code: exercises that judge")] = None,
    budget: Annotated[int | None, typer.Option(help="toxicity, ner, code: queries that reveal")] = None,
    data: Annotated[str | None, typer.Option(help="pistol, facts: a file with edges or groups")] = None,
    forget_group: Annotated[
        list[str] | None, typer.Option(help="pistol, facts: the edge or group to forget (may be repeated)")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="rows a batch of an evaluation")] = 128,
    jobs: Annotated[int, typer.Option(help="processes; each needs memory for a model")] = 1,
    metrics: Annotated[str, typer.Option(help="metrics shown, for each role that has them, with commas")] = "rouge1",
    out: Annotated[
        str | None,
        typer.Option(help="folder of results, table and plots; goes on where it was [default: runs/bench-SUITE]"),
    ] = None,
) -> None:
    from .bench.table import check_metrics, report, shown

    columns = _commas(metrics)
    if suite == "report":
        if not (folder or out):
            raise InputError("bench report needs the folder of results: expunge bench report DIR")
        place = Path(folder or out or "")
        text = report(place, columns)
        _print({"cells": shown(place)}) if json else print(text)
        return
    if folder:
        raise InputError(f"bench {suite} takes no second argument ({folder}); the folder of results is --out {folder}")
    from .bench.runner import bench_run, cells_of
    from .methods import REGISTRY
    from .progress import Reporter
    from .spec import BenchSpec, checked

    size = {
        "sales": sales,
        "employment": employment,
        "held_out": held_out,
        "graph": graph,
        "split": split,
        "authors": authors,
        "field": field,
        "documents": documents,
        "mmlu": mmlu,
        "forget_data": forget_data,
        "taught": taught,
        "exercises": exercises,
        "budget": budget,
        "data": data,
        "forget_group": forget_group,
    }
    check_metrics(columns)
    named = [m for m in REGISTRY if m != "retrain"] if methods == "all" else _commas(methods)
    numbers = _commas(seeds)
    if not numbers or not all(n.lstrip("-").isdigit() for n in numbers):
        raise InputError(f"--seeds takes whole numbers with commas, got {seeds!r}")
    fields = {
        "suite": suite,
        "model": _spec(model, given).model,
        **({"methods": tuple(named)} if named else {}),
        "seeds": tuple(map(int, numbers)),
        "regimes": tuple(_commas(regimes)),
        "trials": trials,
        "size": {k: v for k, v in size.items() if v is not None},
        "batch_size": batch_size,
        "out": out or f"runs/bench-{suite}",
        "jobs": jobs,
    }
    spec = checked(BenchSpec, fields)
    try:
        results = bench_run(spec, Reporter(quiet))
    except KeyboardInterrupt:
        raise ExpungeError(
            "interrupted; finished cells are kept, and the same command goes on with the others"
        ) from None
    text = report(Path(spec.out), columns)
    _print({"cells": shown(Path(spec.out), results.key)}) if json else print(text)
    asked = [cell for number in dict.fromkeys(spec.seeds) for cell in cells_of(spec, number)]
    failed = [cell.label for cell in asked if "error" in results.cells.get(cell, {"error": "missing"})]
    if failed:
        raise ExpungeError(
            f"{len(failed)} of {len(asked)} cells failed ({', '.join(failed[:3])}{', …' if failed[3:] else ''}); the table "
            "says why, and the same command tries them again"
        )


def _commas(text: str | None) -> list[str]:
    """The parts between commas; a list in brackets is one part."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text or "") if part.strip()]


@app.command(help=VERBS["export"])
def export(
    edit: Annotated[str, typer.Argument(help="folder of a saved edit (--keep-edit)")],
    out: Annotated[str, typer.Option(help="folder for the adapter")],
    base: Annotated[str, typer.Option(help="base model to name in the adapter's config")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a folder that is not empty")] = False,
) -> None:
    from .edits import Edit

    Edit.load(edit).export(out, base, overwrite=overwrite)
    print(f"adapter written to {out}", file=sys.stderr)


@app.command(help=VERBS["revert"])
def revert(
    checkpoint: Annotated[str, typer.Argument(help="folder of an unlearned checkpoint")],
    edit: Annotated[str, typer.Option(help="folder of its edit (--keep-edit)")],
    out: Annotated[str, typer.Option(help="folder for the restored base")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a folder that is not empty")] = False,
) -> None:
    from .run import revert_run

    revert_run(Path(checkpoint), Path(edit), Path(out), overwrite)
    print(f"base restored in {out}", file=sys.stderr)


@app.command(help=VERBS["methods"])
def methods(as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False) -> None:
    from .methods import REGISTRY

    if as_json:
        _print(
            {
                m.name: {
                    "summary": m.summary,
                    "paper": m.paper,
                    "settings": m.load(m.config).model_json_schema()["properties"],
                }
                for m in REGISTRY.values()
            }
        )
        return
    for m in REGISTRY.values():
        print(f"{m.name}: {m.summary}\n  {m.paper}")
        for name, info in m.load(m.config).model_fields.items():
            print(f"  --set {name}={info.default}  {info.description}")


@data.command()
def pistol(
    out: Annotated[str, typer.Option(help="file to write (JSON lines)")],
    sales: Annotated[int, typer.Option(help="sales contracts")] = 10,
    employment: Annotated[int, typer.Option(help="employment contracts")] = 10,
    named: Annotated[
        str | None, typer.Option("--graph", help="sample1 or sample2, in place of numbers of contracts")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
) -> None:
    """Generates PISTOL-style contracts with 20 questions each."""
    from .data.pistol import contracts, graph, write_rows

    path = Path(out)
    if path.exists() and not overwrite:
        raise InputError(f"{out} exists; pass --overwrite to replace it")
    made = graph(named, seed) if named else contracts(sales, employment, seed)
    rows = [e for c in made for e in c.questions()]
    write_rows(rows, path)
    print(f"{len(rows)} rows written to {out}", file=sys.stderr)

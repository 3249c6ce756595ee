"""The table and the plots of a benchmark, from what is on disk alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown
from ..evaluation.scores import BENCHED, MEMBERSHIP, METRICS, OPTIONAL
from ..files import write_whole
from ..methods.tuning import BROKEN, MARGIN, TUNE_ROWS
from ..plots import svg
from .results import Cell, lines, outdated, take
from .settings import fixed

FORGET, KEPT = "forget", "retain"
DEVIATIONS = {"deviation_score": "the fitted rows", "deviation_held_out": "held-out paraphrases and contracts"}
NAMES = {"rouge1": "ROUGE-1", "rougeL": "ROUGE-L"}
# Of a whole evaluation, and in no column unless asked for.
SCALARS = (*(f"auc_{name}" for name in (*MEMBERSHIP, "gradient_norm", "reference")), "gsm8k")
# Of a trial, beside its settings.
OUTCOMES = ("loss", "seconds", "diverged", "forget", "retain_rouge1", "broken")
Row = tuple[str, str, str]


def report(folder: Path, metrics: Sequence[str] = ("rouge1",)) -> str:
    """Draws table.md and the plots of each benchmark anew in a folder of results, and returns the tables.

    Args:
        metrics: shown for each role, or of the whole evaluation (areas of membership, arithmetic).

    Raises:
        InputError: there are no results, or an unknown metric.
    """
    check_metrics(metrics)
    tables = []
    for key, (about, cells, old) in _read(folder).items():
        rows = group(cells)
        tables.append(f"## {_title(about)}\n\n{table(rows, cells, metrics)}")
        if old:
            tables.append(
                f"Left out, as rows, model or settings have changed since: {', '.join(sorted(c.label for c in old))}."
            )
        try:
            plots(rows, folder, key)
        except ImportError:
            tables.append("No plots: they need matplotlib (`pip install 'expunge[bench]'`).")
    text = "\n\n".join(tables) + "\n"
    write_whole(folder / "table.md", text)
    return text


def shown(folder: Path, key: str | None = None) -> list[dict[str, Any]]:
    """The records that the tables of a folder are made of; of one benchmark only, where its key is given."""
    return [r for name, (_, cells, _) in _read(folder).items() if key in (None, name) for r in cells.values()]


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises `InputError` for an unknown metric, with its nearest neighbours."""
    known = [*METRICS, *OPTIONAL, *BENCHED, *SCALARS]
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, known)


def _title(about: Mapping[str, Any]) -> str:
    size = ", ".join(f"{k} {v}" for k, v in about.get("size", {}).items())
    model = about.get("model", {}).get("name", "")
    return f"{about.get('suite', 'benchmark')}{f' ({size})' if size else ''} on {model}"


def _read(folder: Path) -> dict[str, tuple[dict[str, Any], dict[Cell, dict[str, Any]], set[Cell]]]:
    """By the keys of benchmarks: (what it is, the cells that count, those that are left out)."""
    file = folder / "results.jsonl"
    if not file.is_file():
        raise InputError(f"{folder} has no results.jsonl: run `expunge bench SUITE --out {folder}` first")
    found: dict[str, tuple[dict[str, Any], dict[Cell, dict[str, Any]]]] = {}
    for line in lines(file):
        about, cells = found.setdefault(line["key"], ({}, {}))
        about |= line.get("about", {})
        if "cell" in line:
            take(cells, line)
    old = {key: outdated(cells) for key, (_, cells) in found.items()}
    return {
        key: (about, {c: r for c, r in cells.items() if c not in old[key]}, old[key])
        for key, (about, cells) in found.items()
        if cells
    }


def group(cells: Mapping[Cell, dict[str, Any]]) -> dict[Row, list[dict[str, Any]]]:
    """Records by row of the table, over seeds; taught and retrained first."""
    rows: dict[Row, list[dict[str, Any]]] = {}
    first = ("base", "taught", "retrained")

    def place(cell: Cell) -> tuple[int, bool, int]:
        return first.index(cell.method) if cell.method in first else len(first), cell.regime != "published", cell.seed

    for cell in sorted(cells, key=place):
        rows.setdefault(cell.row, []).append(cells[cell])
    return rows


def table(rows: Mapping[Row, list[dict[str, Any]]], cells: Mapping[Cell, Any], metrics: Sequence[str]) -> str:
    """Markdown: one row a method and regime, mean ± standard deviation over seeds (of one seed, the metric's 95%
    bootstrap interval over rows)."""
    whole = [r for records in rows.values() for r in records if "metrics" in r]
    roles = list(dict.fromkeys(role for r in whole for role, v in r["metrics"].items() if isinstance(v, dict)))
    scores = list(dict.fromkeys(name for r in whole for name in r["headline"]))
    shown = [(role, m) for m in metrics for role in roles if any(m in r["metrics"].get(role, {}) for r in whole)]
    alone = [m for m in metrics if m in SCALARS and any(m in r["metrics"] for r in whole)]
    head = ["method", "regime", "seeds", *(f"{role} {NAMES.get(m, m)}" for role, m in shown)]
    head += [*(m.replace("_", " ") for m in alone), "abstains"]
    head += [score.replace("_", " ") for score in scores]
    head += [
        "refusal quality",
        "coherent",
        "seconds",
        "with tuning",
        "peak GB",
        "numbers of the edit",
        "weights changed",
        "settings",
    ]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (method, regime, variant), records in rows.items():
        name = " ".join(filter(None, (method, variant)))
        good = [r for r in records if "metrics" in r]
        if not good:
            out.append(f"| {name} | {regime} | {len(records)} | {' / '.join(sorted({_why(r) for r in records}))} |")
            continue
        values = [name, regime, str(len(good)) + "".join(f", {_why(r)}" for r in records if "metrics" not in r)]
        values += [_mean(good, role, metric) for role, metric in [*shown, *((m, m) for m in alone)]]
        values.append(_mean(good, FORGET, "abstention_rate"))
        values += [
            _spread([r["headline"].get(score) for r in good]) + _interval(good, score, score) for score in scores
        ]
        values += [_mean(good, name, name) for name in ("refusal_quality", "coherence")]
        values += [_spread([r.get(name) for r in good], 0) for name in ("seconds", "seconds_in_all")]
        values.append(_spread([r["peak_bytes"] / 1e9 if "peak_bytes" in r else None for r in good], 1))
        values += [_range([r[name] for r in good if name in r]) for name in ("parameters", "weights")]
        values.append("; ".join(dict.fromkeys(_settings(r, fixed(variant)) for r in good)))
        out.append("| " + " | ".join(values) + " |")
    seeds = sorted({c.seed for c in cells})
    out += [
        "",
        f"Seeds {', '.join(map(str, seeds))}; {' and '.join(sorted({r['machine'] for r in whole}))}. Rows of each role: "
        + ", ".join(
            f"{role} {_range([r['metrics'][role]['rows'] for r in whole if role in r['metrics']])}" for role in roles
        )
        + "."
        + "".join(
            f" {said}: {' and '.join(map(str, found))}."
            for said, found in (
                ("Longest answer, in tokens", sorted({r["max_new_tokens"] for r in whole if "max_new_tokens" in r})),
                ("Refusal quality by", sorted({r["metrics"].get("refusal_encoder", "") for r in whole} - {""})),
            )
            if found
        ),
        "Published: the method's published settings. LUNAR's are the paper's coefficient (c = 2) at the layers of the "
        "abstention score, several of them, solved exactly in one go, with rewrites, own answers, prompts with names exchanged "
        "and built-in general prompts beside the rows; lunar solver=sgd is the authors' procedure: one layer, by AdamW, the rows "
        "alone. Tuned: "
        "the best of as many trials for each method, by the Deviation Score of rows that are neither fitted nor judged and "
        f"{BROKEN:g} times the share of broken answers to them (LUNAR searches by itself: by at most {TUNE_ROWS} rows of each "
        f"role, and what is forgotten with the edit at {MARGIN:g} of its strength; where there are no rewrites of the forget "
        "rows, by fitted ones). Equal time: the tuned settings with as many epochs as take the time of LUNAR's search. "
        "Seconds: of the one fit; with tuning: of all.",
        *_tried(rows),
        *_twelve(rows),
    ]
    if len(codes := {r.get("code") for r in whole}) > 1:
        out += ["", f"Made by {len(codes)} versions of the code; a cell whose settings or rows changed was made again."]
    if ratios := compared(rows):
        out += ["", *ratios]
    return "\n".join(out)


def _tried(rows: Mapping[Row, list[dict[str, Any]]]) -> list[str]:
    """The values that each tuned row chose among, one line for all rows that had the same."""
    found: dict[str, list[str]] = {}
    for (method, regime, variant), records in rows.items():
        if regime != "tuned":
            continue
        values: dict[str, list[Any]] = {}
        for trial in (t for r in records for t in r.get("trials", ())):
            for name, value in trial.items():
                if name not in OUTCOMES and value not in values.setdefault(name, []):
                    values[name].append(value)
        count = max((len(r.get("trials", ())) for r in records), default=0)
        text = "; ".join(f"{k} {', '.join(map(str, v))}" for k, v in values.items() if k not in fixed(variant))
        if text:
            found.setdefault(f"{count} trials over {text}", []).append(" ".join(filter(None, (method, variant))))
    return ["", *(f"- {', '.join(names)}: {text}." for text, names in found.items())] if found else []


def _twelve(rows: Mapping[Row, list[dict[str, Any]]]) -> list[str]:
    """LUME's twelve scores, one line a row of the table; one that no row judges is named."""
    found = {row: [r["scores"] for r in records if "scores" in r] for row, records in rows.items()}
    out = [
        f"- {' '.join(filter(None, (row[0], row[2], row[1])))}: "
        + ", ".join(f"{name} {_spread([s[name] for s in many]) or 'judged by no row'}" for name in many[0])
        for row, many in found.items()
        if many
    ]
    said = "LUME's twelve scores (of forget, 1 less the score), all of which the task score and LUME's need:"
    return ["", said, "", *out] if out else []


def compared(rows: Mapping[Row, list[dict[str, Any]]]) -> list[str]:
    """The best baseline's mean Deviation Score over that of each variant of LUNAR, one line a regime, over the seeds that
    all of them have. A baseline without a score at one of these seeds is left out, and named where it is
    lower at others."""
    out = []
    ours = list(dict.fromkeys((row[0], row[2]) for row in rows if row[0] == "lunar"))
    for regime in dict.fromkeys(row[1] for row in rows if row[1]):
        for name, variant in ours:
            parts = [_ratio(rows, regime, (name, variant), score) for score in DEVIATIONS]
            if any(parts):
                label = " ".join(filter(None, (name, variant)))
                out.append(
                    f"- Best baseline's Deviation Score over that of {label}, {regime}: {'; '.join(filter(None, parts))}."
                )
    return out


def _ratio(rows: Mapping[Row, list[dict[str, Any]]], regime: str, ours: tuple[str, str], score: str) -> str:
    beside = regime
    if regime == "equal-time":  # LUNAR itself has none: the regime whose time was given, of LUNAR without a variant
        if ours[1]:
            return ""
        times = {r["beside"] for row in rows if row[1] == regime for r in rows[row] if "beside" in r}
        if len(times) > 1:
            return f"on {DEVIATIONS[score]} not compared, as LUNAR's time is of {' and '.join(sorted(times))} settings"
        beside = next(iter(times), "")
    reference = _by_seed(rows.get((ours[0], beside, ours[1]), ()), score)
    scored = {row: _by_seed(records, score) for row, records in rows.items() if row[1] == regime and row[0] != "lunar"}
    others = {row: found for row, found in scored.items() if reference and reference.keys() <= found.keys()}
    if not others:
        return ""
    mean = statistics.mean(reference.values())
    means = {row: statistics.mean(found[seed] for seed in reference) for row, found in others.items()}
    best = min(means, key=lambda row: means[row])
    ratio = f"{means[best] / mean:.1f}" if mean else "unbounded"
    name = " ".join(filter(None, best[::2]))
    fewer = {row: statistics.mean(found.values()) for row, found in scored.items() if found and row not in others}
    lower = [f"{' '.join(filter(None, row[::2]))} {mean:.1f}" for row, mean in fewer.items() if mean < means[best]]
    seeds = f"{len(reference)} seed{'s' if len(reference) > 1 else ''}"
    apart = f"; lower, but not at all of these: {', '.join(lower)}" if lower else ""
    return f"on {DEVIATIONS[score]} {ratio} ({name} {means[best]:.1f}, LUNAR {mean:.1f}, {seeds}{apart})"


def _by_seed(records: Sequence[Mapping[str, Any]], score: str) -> dict[int, float]:
    found = {r["cell"][0]: r.get("headline", {}).get(score) for r in records}
    return {seed: value for seed, value in found.items() if value is not None}


def _why(record: Mapping[str, Any]) -> str:
    if "diverged" in record:
        return f"diverged at step {record['diverged']}"
    return str(record.get("error") or record.get("skipped") or "").replace("|", "\\|")


def _settings(record: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """The settings that differ from the defaults, without those in the row's name."""
    shown = {k: v for k, v in record.get("settings", {}).items() if k != "seed" and k not in named}
    return ", ".join(f"{k} {v}" for k, v in shown.items())


def _mean(records: Sequence[Mapping[str, Any]], role: str, metric: str) -> str:
    """Mean ± standard deviation over seeds; of one seed, the mean and its 95% interval over rows."""
    values = [r["metrics"].get(role) for r in records]
    return _spread([v.get(metric) if isinstance(v, dict) else v for v in values]) + _interval(records, role, metric)


def _interval(records: Sequence[Mapping[str, Any]], role: str, metric: str) -> str:
    found = records[0].get("intervals", {}).get(role, {}).get(metric) if len(records) == 1 else None
    return f" ({found[0]:.2f} to {found[1]:.2f})" if found else ""


def _range(values: Sequence[int]) -> str:
    """Over seeds, which may have chosen different ranks or layers."""
    return " to ".join(f"{n:,}" for n in sorted({min(values), max(values)})) if values else ""


def _spread(values: Sequence[float | None], digits: int | None = None) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return ""
    mean = statistics.mean(known)
    if not math.isfinite(mean):
        return str(mean)
    if digits is None:
        digits = 1 if abs(mean) >= 2 else 3
    if mean and abs(mean) < 1e-3 and digits == 3:
        return f"{mean:.1e}"
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")


# ---------------------------------------------------------------- plots


def plots(rows: Mapping[Row, list[dict[str, Any]]], folder: Path, key: str) -> None:
    """scatter-KEY.svg (forget against retain, the gold standard marked) and deviation-KEY.svg (bars)."""
    points = {}
    for row, records in rows.items():
        found = [r["metrics"] for r in records if "metrics" in r and {FORGET, KEPT} <= r["metrics"].keys()]
        if found:
            points[row] = [statistics.mean(m[role]["rouge1"] for m in found) for role in (FORGET, KEPT)]
    if not points:
        return
    with svg(folder / f"scatter-{key}.svg", (7, 5)) as axes:
        for row, (forget, kept) in points.items():
            gold = row[0] == "retrained"
            marker, area, colour = ("*", 200, "goldenrod") if gold else ("o", 40, None)
            axes.scatter(forget, kept, marker=marker, s=area, c=colour)
            axes.annotate(" ".join(filter(None, row)), (forget, kept), fontsize=7)
        axes.set(xlabel="forget ROUGE-1 (lower is better)", ylabel="retain ROUGE-1 (higher is better)")
    bars = {}
    for row, records in rows.items():
        scores = [r["metrics"]["deviation_score"] for r in records if "deviation_score" in r.get("metrics", {})]
        if scores and row[0] not in ("base", "taught"):
            bars[" ".join(filter(None, row))] = scores
    means = [statistics.mean(v) for v in bars.values()]
    errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in bars.values()]
    colours = ["goldenrod" if b == "retrained" else "steelblue" for b in bars]
    with svg(folder / f"deviation-{key}.svg", (7, 0.4 * len(bars) + 1.2)) as axes:
        axes.barh(list(bars), means, xerr=errors, color=colours)
        axes.invert_yaxis()
        axes.set(xlabel="Deviation Score (lower is better)")

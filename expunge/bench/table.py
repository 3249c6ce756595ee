"""The table and the plots of a benchmark, from what is on disk alone."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_whole
from .results import Cell

FORGET, KEPT = "forget", "retain"
Row = tuple[str, str, str]


def report(folder: Path) -> str:
    """Draws table.md, scatter.svg and deviation.svg anew in a folder of results, and returns the table.

    Raises:
        InputError: there are no results.
    """
    file = folder / "results.jsonl"
    if not file.is_file():
        raise InputError(f"{folder} has no results.jsonl: run `expunge bench SUITE --out {folder}` first")
    tables = []
    for key, cells in _by_key(file).items():
        rows = group(cells)
        tables.append(table(rows, cells))
        try:
            plots(rows, folder, key)
        except ImportError:
            tables.append("No plots: they need matplotlib (`pip install 'expunge[bench]'`).")
    text = "\n\n".join(tables) + "\n"
    write_whole(folder / "table.md", text)
    return text


def _by_key(file: Path) -> dict[str, dict[Cell, dict[str, Any]]]:
    from .results import lines

    found: dict[str, dict[Cell, dict[str, Any]]] = {}
    for line in lines(file):
        found.setdefault(line["key"], {})[Cell(*line["cell"])] = line
    return found


def group(cells: Mapping[Cell, dict[str, Any]]) -> dict[Row, list[dict[str, Any]]]:
    """Records by row of the table, over seeds; taught and retrained first."""
    rows: dict[Row, list[dict[str, Any]]] = {}
    for cell in sorted(cells, key=lambda c: (c.method not in ("taught", "retrained"), c.regime != "published", c.seed)):
        rows.setdefault(cell.row, []).append(cells[cell])
    return rows


def table(rows: Mapping[Row, list[dict[str, Any]]], cells: Mapping[Cell, Any]) -> str:
    """Markdown: one row a method and regime, mean ± standard deviation over seeds."""
    whole = [r for records in rows.values() for r in records if "metrics" in r]
    roles = list(dict.fromkeys(role for r in whole for role, v in r["metrics"].items() if isinstance(v, dict)))
    scores = list(dict.fromkeys(name for r in whole for name in r["headline"]))
    head = ["method", "regime", "seeds", *(f"{role} ROUGE-1" for role in roles), "abstains", *scores]
    head += ["coherent", "seconds", "peak GB", "numbers changed", "settings"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (method, regime, optimizer), records in rows.items():
        name = " ".join(filter(None, (method, optimizer if optimizer == "sophia" else "")))
        good = [r for r in records if "metrics" in r]
        if not good:
            out.append(f"| {name} | {regime} | {len(records)} | {' / '.join(sorted({_why(r) for r in records}))} |")
            continue
        values = [name, regime, str(len(good)) + "".join(f", {_why(r)}" for r in records if "metrics" not in r)]
        values += [_spread([r["metrics"].get(role, {}).get("rouge1") for r in good]) for role in roles]
        values.append(_spread([r["metrics"].get(FORGET, {}).get("abstention_rate") for r in good]))
        values += [_spread([r["headline"].get(score) for r in good]) for score in scores]
        values.append(_spread([r.get("coherence") for r in good]))
        values.append(_spread([r.get("seconds") for r in good], 0))
        values.append(_spread([r["peak_bytes"] / 1e9 if "peak_bytes" in r else None for r in good], 1))
        values.append(f"{good[0]['parameters']:,}" if "parameters" in good[0] else "")
        values.append("; ".join(dict.fromkeys(_settings(r) for r in good)))
        out.append("| " + " | ".join(values) + " |")
    seeds = sorted({c.seed for c in cells})
    out += [
        "",
        f"Seeds {', '.join(map(str, seeds))}; {platform.machine()}, {_cores()} cores. Rows of each role: "
        + ", ".join(
            f"{role} {whole[0]['metrics'][role]['rows']}" for role in roles if whole and role in whole[0]["metrics"]
        )
        + ".",
    ]
    return "\n".join(out)


def _cores() -> int:
    import os

    return os.cpu_count() or 1


def _why(record: Mapping[str, Any]) -> str:
    if "diverged" in record:
        return f"diverged at step {record['diverged']}"
    return str(record.get("error") or record.get("skipped") or "")


def _settings(record: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in record.get("settings", {}).items() if k not in ("seed", "optimizer")}
    trials = record.get("trials")
    count = trials if isinstance(trials, int) else len(trials or ())
    text = ", ".join(f"{k} {v}" for k, v in shown.items())
    return text + (f" ({count} trials)" if count else "")


def _spread(values: Sequence[float | None], digits: int | None = None) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return ""
    mean = statistics.mean(known)
    if digits is None:
        digits = 1 if abs(mean) >= 2 else 3
    if mean and abs(mean) < 1e-3 and digits == 3:
        return f"{mean:.1e}"
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")


# ---------------------------------------------------------------- plots


def plots(rows: Mapping[Row, list[dict[str, Any]]], folder: Path, key: str) -> None:
    """scatter-KEY.svg (forget against retain, the gold standard marked) and deviation-KEY.svg (bars)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "expunge"
    from matplotlib import pyplot

    points = {}
    for row, records in rows.items():
        found = [r["metrics"] for r in records if "metrics" in r and {FORGET, KEPT} <= r["metrics"].keys()]
        if found:
            points[row] = [statistics.mean(m[role]["rouge1"] for m in found) for role in (FORGET, KEPT)]
    if not points:
        return
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for (method, regime, optimizer), (forget, kept) in points.items():
        gold = method == "retrained"
        axes.scatter(forget, kept, marker="*" if gold else "o", s=200 if gold else 40, c="goldenrod" if gold else None)
        axes.annotate(
            " ".join(filter(None, (method, regime, optimizer.replace("adamw", "")))), (forget, kept), fontsize=7
        )
    axes.set(xlabel="forget ROUGE-1 (lower is better)", ylabel="retain ROUGE-1 (higher is better)")
    _save(figure, folder / f"scatter-{key}.svg")
    bars = {}
    for row, records in rows.items():
        scores = [r["metrics"]["deviation_score"] for r in records if "deviation_score" in r.get("metrics", {})]
        if scores and row[0] != "taught":
            bars[" ".join(filter(None, row)).replace(" adamw", "")] = scores
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(bars) + 1.2))
    means = [statistics.mean(v) for v in bars.values()]
    errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in bars.values()]
    axes.barh(list(bars), means, xerr=errors, color=["goldenrod" if b == "retrained" else "steelblue" for b in bars])
    axes.invert_yaxis()
    axes.set(xlabel="Deviation Score (lower is better)")
    _save(figure, folder / f"deviation-{key}.svg")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)

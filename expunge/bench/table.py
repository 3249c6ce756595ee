"""The table and the plots of a benchmark, from what is on disk alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_whole
from .results import Cell
from .settings import fixed

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
    """Markdown: one row a method and regime, mean ± standard deviation over seeds (of one seed, ROUGE-1 with its 95%
    bootstrap interval)."""
    whole = [r for records in rows.values() for r in records if "metrics" in r]
    roles = list(dict.fromkeys(role for r in whole for role, v in r["metrics"].items() if isinstance(v, dict)))
    scores = list(dict.fromkeys(name for r in whole for name in r["headline"]))
    head = ["method", "regime", "seeds", *(f"{role} ROUGE-1" for role in roles), "abstains", *scores]
    head += ["coherent", "seconds", "peak GB", "numbers changed", "settings"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (method, regime, variant), records in rows.items():
        name = " ".join(filter(None, (method, variant)))
        good = [r for r in records if "metrics" in r]
        if not good:
            out.append(f"| {name} | {regime} | {len(records)} | {' / '.join(sorted({_why(r) for r in records}))} |")
            continue
        values = [name, regime, str(len(good)) + "".join(f", {_why(r)}" for r in records if "metrics" not in r)]
        values += [_rouge(good, role) for role in roles]
        values.append(_spread([r["metrics"].get(FORGET, {}).get("abstention_rate") for r in good]))
        values += [_spread([r["headline"].get(score) for r in good]) for score in scores]
        values.append(_spread([r.get("coherence") for r in good]))
        values.append(_spread([r.get("seconds") for r in good], 0))
        values.append(_spread([r["peak_bytes"] / 1e9 if "peak_bytes" in r else None for r in good], 1))
        values.append(f"{good[0]['parameters']:,}" if "parameters" in good[0] else "")
        values.append("; ".join(dict.fromkeys(_settings(r, fixed(variant)) for r in good)))
        out.append("| " + " | ".join(values) + " |")
    seeds = sorted({c.seed for c in cells})
    out += [
        "",
        f"Seeds {', '.join(map(str, seeds))}; {' and '.join(sorted({r['machine'] for r in whole}))}. Rows of each role: "
        + ", ".join(
            f"{role} {whole[0]['metrics'][role]['rows']}" for role in roles if whole and role in whole[0]["metrics"]
        )
        + ".",
    ]
    if ratios := compared(rows):
        out += ["", *ratios]
    return "\n".join(out)


DEVIATIONS = {"deviation_score": "the fitted rows", "deviation_held_out": "held-out paraphrases and groups"}


def compared(rows: Mapping[Row, list[dict[str, Any]]]) -> list[str]:
    """The best baseline's mean Deviation Score over LUNAR's, one line a regime. With the equal-time regime, which LUNAR
    does not have, its tuned (else published) row is compared."""
    means: dict[str, dict[Row, float]] = {}
    for row, records in rows.items():
        for score in DEVIATIONS:
            found = [r["headline"][score] for r in records if r.get("headline", {}).get(score) is not None]
            if found and row[1]:
                means.setdefault(score, {})[row] = statistics.mean(found)
    out = []
    for regime in dict.fromkeys(row[1] for row in rows if row[1]):
        parts = []
        for score, of in means.items():
            ours = next((of[r] for g in (regime, "tuned", "published") if (r := ("lunar", g, "")) in of), None)
            others = {row: v for row, v in of.items() if row[0] != "lunar" and row[1] == regime}
            if ours is None or not others:
                continue
            best = min(others, key=lambda row: others[row])
            ratio = f"{others[best] / ours:.1f}" if ours else "unbounded"
            parts.append(
                f"on {DEVIATIONS[score]} {ratio} ({' '.join(filter(None, best[::2]))} {others[best]:.1f}, LUNAR {ours:.1f})"
            )
        if parts:
            out.append(f"- Best baseline's Deviation Score over LUNAR's, {regime}: {'; '.join(parts)}.")
    return out


def _why(record: Mapping[str, Any]) -> str:
    if "diverged" in record:
        return f"diverged at step {record['diverged']}"
    return str(record.get("error") or record.get("skipped") or "")


def _settings(record: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """The settings that differ from the defaults, without those in the row's name."""
    shown = {k: v for k, v in record.get("settings", {}).items() if k != "seed" and k not in named}
    trials = record.get("trials")
    count = trials if isinstance(trials, int) else len(trials or ())
    text = ", ".join(f"{k} {v}" for k, v in shown.items())
    return text + (f" ({count} trials)" if count else "")


def _rouge(records: Sequence[Mapping[str, Any]], role: str) -> str:
    """Mean ± standard deviation over seeds; of one seed, the mean and its 95% interval over rows."""
    text = _spread([r["metrics"].get(role, {}).get("rouge1") for r in records])
    if len(records) == 1 and role in records[0].get("intervals", {}):
        low, high = records[0]["intervals"][role]["rouge1"]
        text += f" ({low:.2f} to {high:.2f})"
    return text


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
    for row, (forget, kept) in points.items():
        gold = row[0] == "retrained"
        axes.scatter(forget, kept, marker="*" if gold else "o", s=200 if gold else 40, c="goldenrod" if gold else None)
        axes.annotate(" ".join(filter(None, row)), (forget, kept), fontsize=7)
    axes.set(xlabel="forget ROUGE-1 (lower is better)", ylabel="retain ROUGE-1 (higher is better)")
    _save(figure, folder / f"scatter-{key}.svg")
    bars = {}
    for row, records in rows.items():
        scores = [r["metrics"]["deviation_score"] for r in records if "deviation_score" in r.get("metrics", {})]
        if scores and row[0] != "taught":
            bars[" ".join(filter(None, row))] = scores
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

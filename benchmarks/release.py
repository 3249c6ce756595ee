"""What the parts of Reveal-and-Release are worth: rounds against one step of the same total lambda_f, with and without the
retain module, and that module alone; both modules of the model as it stands; modules that begin apart and are held
orthogonal; answers taken anew each round; the model's own forget data against a data set's. Resumable.

    python benchmarks/release.py code --seeds 0,1,2          (or toxicity, ner)

One table (and one for a data set's rows) as of `expunge bench`, in --out, and how far apart the two modules of a round
are, mean over rounds and seeds; each round's in results.jsonl. A round trains on `--rows` rows to forget, as many as the
data sets give, and half as many again to keep. The one step is as large as the rounds of the first row
together, mean over seeds, and is taken whatever it costs; task-vector and ext-sub train with the settings of a round's
modules, on all rows, and pass over them as often as the seed that does so most. A third of it can be run on a machine of its
own (--only): cells are known by a secret of the machine that made them.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.bench.results import Results

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

METHOD = "reveal-release"
ROWS = 200
PARTS = (
    "retain_module=false",
    "retain_first=false",
    "same_start=false",
    *(f"same_start=false:orthogonality={weight}" for weight in (0.05, 0.5, 5)),
    "reveal_again=false",
    "upper=1",
)
SETTINGS, ONE_STEP, EXTERNAL = "settings", "one-step", "external"
UNLIMITED = "keep=0:perplexity=1.0e+300"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("code", "toxicity", "ner"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--rows", type=int, default=ROWS, help="to forget, on which a round trains")
    parser.add_argument("--taught", type=int, help="toxicity, ner: rows that the model is taught first")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--jobs", type=int, default=1, help="processes; each needs memory for a model")
    parser.add_argument("--only", choices=(SETTINGS, ONE_STEP, EXTERNAL), help="one comparison; default: all three")
    parser.add_argument(
        "--total", type=float, help="lambda_f of the one step; default: that of the rounds, mean over seeds"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from expunge.bench.runner import bench_run
    from expunge.bench.table import report
    from expunge.progress import Reporter
    from expunge.spec import BenchSpec, ModelSpec

    out = args.out or Path("runs") / f"release-{args.suite}"
    seeds = tuple(map(int, args.seeds.split(",")))
    taught = {} if args.taught is None else {"taught": args.taught}

    def bench(methods: tuple[str, ...], **size: Any) -> Results:
        spec = BenchSpec(
            suite=args.suite,
            model=ModelSpec(name=args.model, mixed_precision=args.mixed_precision),
            methods=methods,
            seeds=seeds,
            regimes=("published",),
            jobs=args.jobs,
            size=taught | size,
            out=str(out),
        )
        return bench_run(spec, Reporter())

    whole, found = as_it_comes(args.rows), {}
    if args.only in (None, SETTINGS):
        found["revealed"] = bench((whole, *(f"{whole}:{part}" for part in PARTS)), budget=args.budget)
    if args.only in (None, ONE_STEP):
        total, rows = args.total, [args.rows]
        if total is None:
            own = found.get("revealed") or bench((whole,), budget=args.budget)
            done = [r for c, r in own.cells.items() if f"{c.method}:{c.variant}" == whole and "total_forget_step" in r]
            rows = [r["round_log"][0]["rows"] for r in done]
            total = round(statistics.mean(r["total_forget_step"] for r in done), 2) if done else None
        if total is None:
            print(f"Nothing beside it in one step: no seed of {METHOD} came to a result.")
        else:
            found["revealed"] = bench(at_once(whole, total, rows), budget=args.budget)
    if args.only in (None, EXTERNAL):
        found["external"] = bench((whole,), forget_data="external")
    print(report(out))
    print(apart(found, whole))


def as_it_comes(rows: int) -> str:
    """The method with so many rows a round."""
    return f"{METHOD}:rows={rows}:retain_rows={rows * 3 // 2}"


def at_once(whole: str, total: float, rows: Sequence[int]) -> tuple[str, ...]:
    """What stands beside the rounds of `whole` in one step of their total.

    Args:
        rows: on which the first round's forget module was trained, one number a seed.
    """
    from expunge.methods.release import ReleaseConfig

    config = ReleaseConfig()
    step, alone = (f"rounds=1:forget_steps=[{size}]:{UNLIMITED}" for size in (total, 0))
    shared = ("learning_rate", "batch_size", "dropout", "weight_decay", "upper")
    trained = ":".join(f"{k}={getattr(config, k)}" for k in shared)
    trained += f":epochs={max(map(config.passes, rows))}"
    others = (f"{name}:scale={total}:{trained}" for name in ("task-vector", "ext-sub"))
    return f"{whole}:{step}", f"{whole}:{step}:retain_module=false", f"{whole}:{alone}", *others


def apart(found: dict[str, Results], whole: str) -> str:
    """A table of cosines and |A_r A_f^T| between the modules of a round, mean over rounds and seeds."""
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
    for data, results in found.items():
        for cell, record in results.cells.items():
            logs = [r for r in record.get("round_log", ()) if "cosine" in r]
            if logs:
                part = f"{cell.method}:{cell.variant}".removeprefix(whole).strip(":")
                rounds.setdefault((data, part or "as it comes"), []).extend(logs)
    lines = ["| forget data | release | rounds | cosine | sum of abs(A_r A_f^T) |", "|---|---|---|---|---|"]
    for (data, variant), logs in rounds.items():
        cosine, entries = (statistics.mean(r[k] for r in logs) for k in ("cosine", "interference"))
        lines.append(f"| {data} | {variant} | {len(logs)} | {cosine:.3f} | {entries:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

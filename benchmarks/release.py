"""What the parts of Reveal-and-Release are worth: rounds against one step of the same total lambda, with and without the
retain module, modules that begin apart and are held orthogonal, answers taken anew each round, the model's own forget
data against a data set's. Resumable.

    python benchmarks/release.py code --seeds 0,1,2          (or toxicity, ner)

One table (and one for a data set's rows) as of `expunge bench`, in --out; with each round's norms, cosines and
|A_r A_f^T| in its results.jsonl.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

METHOD = "reveal-release"
PARTS = (
    "retain_module=false",
    "same_start=false",
    *(f"same_start=false:orthogonality={weight}" for weight in (0.05, 0.5, 5)),
    "reveal_again=false",
)
UNLIMITED = "keep=0:perplexity=1000000"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=("code", "toxicity", "ner"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from expunge.bench.results import Results
    from expunge.bench.runner import bench_run
    from expunge.bench.table import report
    from expunge.progress import Reporter
    from expunge.spec import BenchSpec, ModelSpec

    out = args.out or Path("runs") / f"release-{args.suite}"
    seeds = tuple(map(int, args.seeds.split(",")))

    def bench(methods: tuple[str, ...], **size: Any) -> Results:
        spec = BenchSpec(
            suite=args.suite,
            model=ModelSpec(name=args.model, mixed_precision=args.mixed_precision),
            methods=methods,
            seeds=seeds,
            regimes=("published",),
            size=size,
            out=str(out),
        )
        return bench_run(spec, Reporter())

    own = bench((METHOD, *(f"{METHOD}:{part}" for part in PARTS)), budget=args.budget)
    totals = [
        r["total_forget_step"]
        for c, r in own.cells.items()
        if c.row[0] == METHOD and not c.variant and "total_forget_step" in r
    ]
    if totals:  # one step of the same size, mean over seeds
        total = round(statistics.mean(totals), 2)
        step = f"rounds=1:forget_steps=[{total}]:{UNLIMITED}"
        alone = f"{METHOD}:{step}:retain_module=false"
        bench((f"{METHOD}:{step}", alone, f"task-vector:scale={total}", f"ext-sub:scale={total}"), budget=args.budget)
    bench((METHOD,), forget_data="external")
    print(report(out))


if __name__ == "__main__":
    main()

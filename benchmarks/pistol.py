"""LUNAR on PISTOL-style contracts at its own settings: teach, forget one contract, judge; over seeds. Resumable.

    make bench-pistol            (or: python benchmarks/pistol.py --seeds 0,1,2)

A seed fixes generator, teaching and split. Taught to the embedded model: 6 contracts (120 questions), 60 unverifiable
questions answered by abstentions, 50 general facts. One contract, A_B, is forgotten; coefficient and ridge are tuned on
built-in rewrites of its rows and on a fifth of the retain rows, and judged on its original rows, on other rewrites and
wordings, and on the other four fifths. The taught model is cached as an Edit, finished seeds are kept in
results.jsonl, and taken up again while the code is the same. Beside other methods: `expunge bench pistol`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def code() -> str:
    """A hash of the package and of this file: figures of other code are not taken up again."""
    from expunge.provenance import code_version

    return hashlib.sha256(code_version().encode() + Path(__file__).read_bytes()).hexdigest()[:12]


def run(seed: int, out: Path, version: str) -> dict:
    from expunge import evaluate, unlearn
    from expunge.bench.results import Results
    from expunge.bench.seed import Bench
    from expunge.progress import Reporter
    from expunge.spec import BenchSpec

    spec = BenchSpec(suite="pistol", size={"held_out": 0})
    bench = Bench(spec, seed, Results(out, "", {}), Reporter())
    model, suite = bench.chat, bench.suite
    assert bench.taught, "this suite teaches"
    bench.taught.apply(model)
    kept = {*suite.fit.retain, *suite.validate["retain"]}
    # All retain rows in their order: LUNAR itself leaves out those that tune, which judge nothing.
    fit = suite.fit.but(retain=[e for e in suite.teach if e in kept])
    before = evaluate(model, suite.judge, max_new_tokens=suite.max_new_tokens)
    edit = unlearn(model, fit)
    with edit.applied(model):
        after = evaluate(model, suite.judge, max_new_tokens=suite.max_new_tokens)
    return {"seed": seed, "code": version, "before": dict(before), "after": dict(after), "meta": edit.meta}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="runs/bench-pistol", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.jsonl"
    version = code()
    kept = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    done = {r["seed"]: r for r in kept if r.get("code") == version}
    for seed in map(int, args.seeds.split(",")):
        if seed not in done:
            done[seed] = run(seed, args.out, version)
            with open(file, "a") as f:
                f.write(json.dumps(done[seed]) + "\n")
        before, after = done[seed]["before"], done[seed]["after"]
        print(
            f"seed {seed}: Deviation Score {after['deviation_score']:.1f} (before {before['deviation_score']:.1f}); "
            + "; ".join(
                f"{r} {before[r]['rouge1']:.3f} -> {after[r]['rouge1']:.3f}"
                for r in after
                if r in before and "_" not in r and r != "seconds"
            ),
            flush=True,
        )
    scores = [r["after"]["deviation_score"] for r in done.values()]
    print(f"mean Deviation Score over {len(scores)} seed(s): {statistics.mean(scores):.2f}")


if __name__ == "__main__":
    main()

"""The three ways to look for instructions, at the same budget: NeuralUCB, random soft prompts, written by hand. Resumable.

    python benchmarks/reveal.py --subject "William Shakespeare" --seeds 0,1,2 --budget 100

Printed for each seed: the score of all that the queries revealed, and of the kept instructions' further answers (means over
draws of 64); the best score of a query, the queries spent and the seconds of a search that was not interrupted. Neither
is flattered by a choice: a query is picked before its answers are there, and so is what is kept before further ones are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

SEARCHES = ("neuralucb", "random", "written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--subject")
    parser.add_argument("--task")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", default=100, type=int)
    parser.add_argument("--searches", default=",".join(SEARCHES))
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--out", default="runs/bench-reveal", type=Path)
    args = parser.parse_args()
    from expunge import load_model
    from expunge.reveal.memo import Memo
    from expunge.reveal.run import about, reveal_config, target_of
    from expunge.reveal.search import search
    from expunge.spec import RevealSpec

    chat = load_model(args.model, mixed_precision=args.mixed_precision)
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in map(int, args.seeds.split(",")):
        for kind in args.searches.split(","):
            spec = RevealSpec(subject=args.subject, task=args.task, search=kind, budget=args.budget)
            config, target = reveal_config(spec, seed), target_of(spec, chat)
            folder = args.out / f"{target.name.replace(' ', '-')}-{kind}-{args.budget}-{seed}"
            memo = Memo(folder, about(chat, spec, config))
            begin = time.perf_counter()
            found = search(chat, target, config, memo)
            seconds = time.perf_counter() - begin
            scores.setdefault(kind, []).append((found.score, found.kept_score))
            print(
                f"seed {seed} {kind}: set {found.score:.3f}, kept {found.kept_score:.3f}, best query {max(found.curve):.3f}, "
                f"{len(found.queries)} queries, {seconds:.0f} s",
                flush=True,
            )
            record = {
                "score": found.score,
                "kept_score": found.kept_score,
                "curve": found.curve,
                "spent": len(found.queries),
                "kept": found.kept,
            }
            (folder / "found.json").write_text(json.dumps(record, indent=1) + "\n")
    for kind, values in scores.items():
        whole, kept = zip(*values, strict=True)
        print(f"{kind}: set {_told(whole)}, kept {_told(kept)} over {len(values)} seed(s)")


def _told(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()

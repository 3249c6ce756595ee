"""What all text and likelihood metrics cost, against one greedy generation plus one forward pass over the same rows.

    python benchmarks/evaluation_cost.py --json

400 rows of PISTOL-style contracts (forget 20, retain 380), the embedded model, answers of at most 64 tokens. The two are
timed in turn, `--repeats` times, and the medians compared. The evaluation is all that `expunge evaluate` reports of
these rows: intervals, refusal quality and coherence too. Perturbed answers, gradient-norm and reference scores are left
out: these need passes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

CONTRACTS = (10, 10)  # of sales and of employment, 20 questions each
MAX_NEW_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    from expunge import evaluate, load_model
    from expunge.data.pistol import contracts
    from expunge.evaluation.refusal import add_refusal_and_coherence
    from expunge.models.generation import greedy, score_answers

    model = load_model("smollm2")
    first, *others = contracts(*CONTRACTS, seed=0)
    roles = {"forget": first.questions(), "retain": [q for c in others for q in c.questions()]}
    rows = [e for part in roles.values() for e in part]
    taken: dict[str, list[float]] = {"generation": [], "forward": [], "evaluation": []}
    for _ in range(args.repeats):
        prompts, answers = model.prompt_ids([e.prompt for e in rows]), model.answer_ids([e.response for e in rows])
        begin = time.perf_counter()
        greedy(model, prompts, MAX_NEW_TOKENS)
        taken["generation"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        score_answers(model, prompts, answers)
        taken["forward"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        found = evaluate(model, roles, max_new_tokens=MAX_NEW_TOKENS)
        add_refusal_and_coherence(found, model, found.answers["forget"])
        found.intervals()
        taken["evaluation"].append(time.perf_counter() - begin)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    ratio = seconds["evaluation"] / (seconds["generation"] + seconds["forward"])
    result = {"rows": len(rows), "seconds": seconds, "ratio": ratio}
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        print(f"{len(rows)} rows: {parts}; evaluation / (generation + forward) = {ratio:.2f}")


if __name__ == "__main__":
    main()

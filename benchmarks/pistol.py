"""LUNAR on PISTOL-style contracts: teach, forget one contract, judge; over seeds. Resumable.

    make bench-pistol            (or: python benchmarks/pistol.py --seeds 0,1,2)

A seed fixes generator, teaching and split. Taught to the embedded model: 6 contracts (120 questions), 60 unverifiable
questions answered by abstentions, 50 general facts. One contract, A_B, is forgotten; coefficient and ridge are tuned on
built-in rewrites of its rows and on a fifth of the retain rows, and judged on its original rows, on other rewrites and
wordings, and on the other four fifths. The taught model is cached as an Edit, finished seeds are kept in
results.jsonl, and taken up again while the code is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Until nearly every row is known: after 10 epochs the taught model missed up to 7% of the rows that judge what is kept.
TEACH = {"learning_rate": 1.5e-3, "epochs": 14, "batch_size": 8, "rank": 8, "alpha": 32.0}


def task_of(seed: int):
    """(rows to teach, task to fit, task to judge)."""
    from expunge import ForgetTask
    from expunge.data import prompts
    from expunge.data.examples import held_out
    from expunge.data.pistol import contracts

    rng = random.Random(seed)
    first, *others = contracts(4, 2, seed)
    forget, retain = first.questions(), [q for c in others for q in c.questions()]
    reference = rng.sample(list(prompts.unverifiable()), 60)
    general = rng.sample(list(prompts.general_split()[1]), 50)
    texts = rng.sample(list(prompts.abstentions()), len(prompts.abstentions()))
    rows = [(e.prompt, e.response) for e in [*forget, *retain, *general]]
    rows += [(e.prompt, texts[i % len(texts)]) for i, e in enumerate(reference)]
    fit = ForgetTask(forget=forget, retain=retain, reference=reference)
    tuned_on = set(held_out(retain))
    judge = ForgetTask(
        forget=forget,
        paraphrase=[*prompts.rewrites(forget, "judge"), *first.questions(other_words=True)],
        retain=[e for e in retain if e not in tuned_on],
        general=general,
    )
    return rows, fit, judge


def taught(model, seed: int, rows, out: Path):
    """The Edit of teaching, from the cache where it is there; other rows or settings have another folder."""
    from expunge import Edit
    from expunge.models.training import TrainConfig, rows_of, train

    key = hashlib.sha256(json.dumps([TEACH, [[str(p), r] for p, r in rows]]).encode()).hexdigest()[:8]
    folder = out / f"taught-{seed}-{key}"
    if not folder.is_dir():
        print(f"seed {seed}: teaching {len(rows)} rows", flush=True)
        edit = train(
            model,
            rows_of(model, rows),
            TrainConfig(seed=seed, **TEACH),
            stop=lambda epoch, loss: print(f"  epoch {epoch}: loss {loss:.3f}", flush=True) or loss < 0.01,
        )
        edit.save(folder)
    return Edit.load(folder)


def code() -> str:
    """A hash of the package and of this file: figures of other code are not taken up again."""
    import expunge

    files = [Path(__file__), *sorted(Path(expunge.__file__).parent.rglob("*.py"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def run(seed: int, out: Path, version: str) -> dict:
    from expunge import evaluate, load_model, unlearn

    model = load_model("smollm2")
    rows, fit, judge = task_of(seed)
    taught(model, seed, rows, out).apply(model)
    before = evaluate(model, judge, max_new_tokens=32)
    edit = unlearn(model, fit)
    with edit.applied(model):
        after = evaluate(model, judge, max_new_tokens=32)
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

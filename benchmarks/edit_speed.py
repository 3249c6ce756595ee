"""The exact solve against the published procedure, from prompts to Edit, on the same model and rows in one process.

    python benchmarks/edit_speed.py --json

The published way (`solver="sgd"`) runs three full passes a split at batch one and 20 epochs of AdamW. Both are timed in
turn, `--repeats` times, and the medians compared; the default of several layers is timed beside them. Peak memory is
that of a process of its own for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge import ChatModel, Edit, ForgetTask

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

LAYER, COEFFICIENT, RIDGE = 15, 2.0, 0.1
FORGET, RETAIN, REFERENCE = 20, 100, 140


def rows() -> ForgetTask:
    """The rows of a PISTOL contract, five others, and unverifiable questions."""
    from expunge import ForgetTask
    from expunge.data import prompts
    from expunge.data.pistol import contracts

    first, *others = contracts(4, 2, seed=0)
    retain = [q for c in others for q in c.questions()][:RETAIN]
    return ForgetTask(forget=first.questions()[:FORGET], retain=retain, reference=prompts.unverifiable()[:REFERENCE])


def make(kind: str) -> Callable[[ChatModel, ForgetTask], Edit]:
    """A function (model, task) that makes the edit of one kind."""
    from expunge import unlearn

    settings: dict[str, Any] = {"coefficient": COEFFICIENT, "ridge": RIDGE, "layers": [LAYER], "tokens": "all"}
    if kind == "default":  # what tuning ends with: nine layers, tokens weighed, own answers kept
        settings |= {"layers": list(range(12, 21)), "tokens": "subject"}
    return lambda model, task: unlearn(model, task, solver="sgd" if kind == "sgd" else "exact", **settings)


def capture_share(model: ChatModel, task: ForgetTask, repeats: int) -> dict[str, float]:
    """Floating-point operations a second of capture, and as a share of a matrix product's of the blocks' shapes."""
    import torch

    from expunge.models.activations import Site, Stream

    prompts = model.prompt_ids([e.prompt for e in [*task.forget, *task.retain]])
    blocks = [model.layout.block(model.model, n) for n in range(LAYER + 1)]
    weights = sum(p.numel() for b in blocks for p in b.parameters())
    seconds = []
    for _ in range(repeats):
        stream = Stream(model, prompts)
        tokens = sum(int(b.mask.sum()) for b in stream.batches)
        begin = time.perf_counter()
        for _ in stream.visit([Site("out", LAYER)]):
            pass
        seconds.append(time.perf_counter() - begin)
    reached = 2 * weights * tokens / statistics.median(seconds)
    left, right = torch.rand(2048, model.layout.hidden), torch.rand(model.layout.inner, model.layout.hidden)
    torch.nn.functional.linear(left, right)
    rates = []
    for _ in range(20):
        begin = time.perf_counter()
        torch.nn.functional.linear(left, right)
        rates.append(2 * left.shape[0] * right.numel() / (time.perf_counter() - begin))
    limit = statistics.median(rates)
    return {"capture_flops": reached, "limit_flops": limit, "share": reached / limit}


def peak(kind: str) -> int | None:
    """Peak resident bytes of a process that makes one edit of this kind, above what it held before.

    None where the system has no /proc: only Linux starts the mark anew.
    """
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    done = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process in bytes."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from expunge import load_model

    model, task = load_model(args.model), rows()
    if args.peak:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the highest starts anew: loading would hide the edit's
        before = resident("VmRSS")
        make(args.peak)(model, task)
        print(resident("VmHWM") - before)
        return
    seconds: dict[str, list[float]] = {"exact": [], "sgd": [], "default": []}
    make("exact")(model, task)  # warm-up
    for _ in range(args.repeats):
        for kind, times in seconds.items():
            begin = time.perf_counter()
            make(kind)(model, task)
            times.append(time.perf_counter() - begin)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    result = {
        "ratio": medians["sgd"] / medians["exact"],
        **{f"seconds_{kind}": value for kind, value in medians.items()},
        "rows": {"forget": FORGET, "retain": RETAIN, "reference": REFERENCE},
        "layer": LAYER,
        "peak_bytes": {kind: peak(kind) for kind in seconds},
        "capture": capture_share(model, task, args.repeats)
        | {"how": "limit: median rate of a float32 product of 2048 tokens with one MLP matrix, same threads"},
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for key, value in result.items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    main()

"""What processes run in place of cells. A process imports this file anew: nothing here needs torch."""

import os
import signal
from pathlib import Path


def note(spec, seed, cells):
    """Writes down the cells; the process of npo at seed 0 is killed, as for want of memory."""
    if (seed, cells[0].method) == (0, "npo"):
        os.kill(os.getpid(), signal.SIGKILL)
    Path(spec.out).mkdir(parents=True, exist_ok=True)
    with open(Path(spec.out) / "ran", "a") as f:
        f.write(f"{seed} " + " ".join(f"{c.method}/{c.regime}/{c.variant}" for c in cells) + "\n")

"""Peak memory of a stretch of code."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_CLEAR = "/proc/self/clear_refs"


def _trim() -> None:
    """Gives freed memory back to the system, or what ran before would count (GNU libc; tcmalloc where it is preloaded)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).MallocExtension_ReleaseFreeMemory()


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest) of this process in bytes; Linux."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


@contextmanager
def peak(cuda: bool = False) -> Iterator[Callable[[], int]]:
    """A function that gives the highest resident bytes of this process since the block began. Only Linux starts the mark
    anew: elsewhere it is the highest of the process so far.

    Args:
        cuda: the model is on GPUs: the sum of each one's highest allocation.
    """
    import torch

    gc.collect()
    linux = os.access(_CLEAR, os.W_OK)
    devices = range(torch.cuda.device_count()) if cuda else ()
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    if linux:
        _trim()
        with open(_CLEAR, "w") as f:
            f.write("5")

    def highest() -> int:
        if devices:
            return sum(torch.cuda.max_memory_allocated(device) for device in devices)
        if linux:
            return resident("VmHWM")
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    yield highest

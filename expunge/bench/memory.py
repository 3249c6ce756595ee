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
def peak() -> Iterator[Callable[[], int]]:
    """A function that gives the highest resident bytes of this process since the block began (with a GPU, its highest
    allocation). Only Linux starts the mark anew: elsewhere it is the highest of the process so far."""
    import torch

    gc.collect()
    linux = os.access(_CLEAR, os.W_OK)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if linux:
        _trim()
        with open(_CLEAR, "w") as f:
            f.write("5")

    def highest() -> int:
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        if linux:
            return resident("VmHWM")
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    yield highest

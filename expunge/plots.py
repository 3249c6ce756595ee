"""SVG plots that are the same for the same figures (extra `bench`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def svg(file: Path, size: tuple[float, float]) -> Iterator[Any]:
    """Axes to draw on; written to the file at the end.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "expunge"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=size)
    try:
        yield axes
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None})
    finally:
        pyplot.close(figure)

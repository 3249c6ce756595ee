"""Where data sets lie, and their rows."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError


def data_file(name: str, how: str) -> Path:
    """A file of the data folder: below EXPUNGE_DATA, else below ../shared/data.

    Raises:
        InputError: it is not there; with how to get it.
    """
    for root in (os.environ.get("EXPUNGE_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"):
        if root and (path := Path(root) / name).is_file():
            return path
    raise InputError(f"no data file {name}: {how}, put it into a folder, and name the folder in EXPUNGE_DATA")


def json_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file or a JSON list.

    Raises:
        InputError: not JSON, or a row without a column (with its number and the column).
    """
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as f:
        text = f.read()
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as e:
        raise InputError(f"{path}: neither JSON nor JSON lines ({e})") from None
    for number, row in enumerate(rows, 1):
        for column in columns:
            if not isinstance(row, dict) or column not in row:
                raise InputError(f"{path}, row {number}: no column {column!r}")
        yield row


def text_of(name: str) -> str:
    """A text file, whole.

    Raises:
        InputError: there is no such file, or it is not UTF-8.
    """
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such file: {name}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{name} is not a text in UTF-8: {e}") from None

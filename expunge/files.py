"""Output that appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import ExpungeError, InputError


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that takes the target's name at the end, or vanishes after an exception.

    Raises:
        InputError: the target is there and not empty, and is not to be overwritten.
    """
    check_free(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as e:
        raise ExpungeError(f"cannot write to {target.parent}: {e.strerror or e}") from e
    old = work.with_name(work.name + "-old")
    try:
        yield work
        work.chmod(0o755)
        if target.exists():
            os.replace(target, old)
        os.replace(work, target)
    except OSError as e:
        raise ExpungeError(f"cannot write {target}: {e.strerror or e}; nothing was written there") from e
    except SafetensorError as e:  # how safetensors reports a full disk
        raise ExpungeError(f"cannot write {target}: {e}; nothing was written there") from e
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(old, ignore_errors=True)


def check_free(target: Path, overwrite: bool) -> None:
    """Raises `InputError` unless the target may be written."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, not a folder")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise InputError(f"{target} is not empty; pass --overwrite to replace it, or another --out")


def write_whole(file: Path, text: str) -> None:
    """Writes a text file, and the folders above it; a file that was there is replaced at the end.

    Raises:
        ExpungeError: it cannot be written; what was there is untouched.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as e:
        raise ExpungeError(f"cannot write {file}: {e.strerror or e}") from e
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


def append_line(file: Path, value: Mapping[str, Any]) -> None:
    """Adds a line of JSON, on disk when this returns. A line that a kill tore is closed first: `whole_lines` leaves it out.

    Raises:
        ExpungeError: it cannot be written; the lines before it are kept.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a+b") as f:
            torn = f.tell() and not _ends_whole(f)
            f.write((b"\n" if torn else b"") + json.dumps(value).encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise ExpungeError(f"cannot write {file}: {e.strerror or e}; what was finished is kept") from e


def _ends_whole(f: Any) -> bool:
    f.seek(-1, os.SEEK_END)
    return f.read(1) == b"\n"


def whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects that `append_line` wrote; none where there is no file."""
    if not file.is_file():
        return
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            yield line

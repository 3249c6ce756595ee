"""Examples and forget tasks: the values that flow through Expunge, and their readers.

A row needs a prompt (`prompt`, `question`, `instruction` or `input`) and a response (`response`,
`answer` or `output`); a group (`group`, `edge` or `task`) is optional, and so are a `paraphrased_answer`, a
list of false ones, `perturbed_answer`, and `raw`: true where the prompt is a text to go on with.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError

PROMPT_COLUMNS = ("prompt", "question", "instruction", "input")
RESPONSE_COLUMNS = ("response", "answer", "output")
GROUP_COLUMNS = ("group", "edge", "task")
PARAPHRASED_COLUMN, WRONG_COLUMN = "paraphrased_answer", "perturbed_answer"
ROLES = ("forget", "paraphrase", "retain", "validation", "reference", "general", "holdout")
MAX_LINE_BYTES = 10_000_000


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


class Raw(str):
    """A prompt that is a text to go on with: no chat template is put around it. Equal to its text."""

    __slots__ = ()

    def __repr__(self) -> str:  # told apart in hashes
        return f"Raw({super().__repr__()})"


class Cut(str):
    """A response that was cut short, or a text that goes on: no end-of-sequence is learned after it. Equal to its text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Cut({super().__repr__()})"


Prompt = str | tuple[Message, ...]
Relevance = Callable[[Sequence[str]], Sequence[float]]
RELEVANT = 0.5  # from which an answer shows what is to be forgotten


@dataclass(frozen=True)
class Example:
    """One prompt with its true response.

    Args:
        prompt: a string, chat messages (dicts with `role` and `content`, or `Message`s), or `Raw`.
        response: the true answer; empty where only the prompt matters (reference prompts); `Cut` where it goes on.
        group: what the row belongs to, for example an edge of PISTOL's graph.
        paraphrased: the true answer in other words, and wrong: false answers of the same form; for the truth ratio.
    """

    prompt: Prompt
    response: str = ""
    group: str = ""
    paraphrased: str = ""
    wrong: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", tuple(_message(m) for m in self.prompt))
        object.__setattr__(self, "wrong", tuple(self.wrong))


def _message(value: Any) -> Message:
    if isinstance(value, dict):
        try:
            return Message(str(value["role"]), str(value["content"]))
        except KeyError as e:
            raise InputError(f"a chat message needs 'role' and 'content'; {e} is missing") from None
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return Message(str(value[0]), str(value[1]))
    raise InputError("a prompt is a string or a list of chat messages with 'role' and 'content'")


@dataclass(frozen=True)
class ForgetTask:
    """Examples by role; an absent role is empty and absent in every result.

    forget: what to forget. paraphrase: the same in other words, only judged. retain: what to keep. validation: rows to
    keep that choose settings, neither fitted nor judged (without them, a fifth of the retain rows is left out of the fit).
    reference: prompts that the model answers by an abstention. general: general abilities, judged.
    holdout: rows that the model never saw.
    relevance: answers -> how much each shows of what is to be forgotten, in [0, 1], where that is known; else the
    response of the forget row says what it is. part: of a relevant answer, what of it is to be forgotten; default: all.
    """

    forget: Sequence[Example] = ()
    paraphrase: Sequence[Example] = ()
    retain: Sequence[Example] = ()
    validation: Sequence[Example] = ()
    reference: Sequence[Example] = ()
    general: Sequence[Example] = ()
    holdout: Sequence[Example] = ()
    relevance: Relevance | None = field(default=None, repr=False, compare=False)
    part: Callable[[str], str] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for role in ROLES:
            object.__setattr__(self, role, tuple(getattr(self, role)))
        check_disjoint(self.forget, self.retain)

    def role(self, name: str) -> tuple[Example, ...]:
        return tuple(getattr(self, name))

    def present(self) -> dict[str, tuple[Example, ...]]:
        """The roles that have rows."""
        return {name: self.role(name) for name in ROLES if self.role(name)}

    def but(self, **roles: Iterable[Example]) -> ForgetTask:
        """This task with some roles replaced."""
        other: dict[str, Any] = {k: tuple(v) for k, v in roles.items()}
        return replace(self, **other)


def check_disjoint(forget: Sequence[Example], retain: Sequence[Example]) -> None:
    """Raises `InputError` when a prompt stands in both sets with the same response."""
    rows = {(e.prompt, e.response): n for n, e in enumerate(retain, 1)}
    shared = [(n, rows[key]) for n, e in enumerate(forget, 1) if (key := (e.prompt, e.response)) in rows]
    if shared:
        first, other = shared[0]
        raise InputError(
            f"forget and retain share {len(shared)} row(s); the first is row {first} of forget and row {other} of "
            "retain. Remove them from one of the two."
        )


def held_out(retain: Sequence[Example]) -> list[Example]:
    """The fifth of the retain rows that tunes; these rows judge nothing."""
    return random.Random(0).sample(list(retain), max(len(retain) // 5, min(len(retain), 1)))


# ---------------------------------------------------------------- readers


def read_examples(source: str | Path, limit: int | None = None, responses: bool = True) -> list[Example]:
    """Reads examples from a file (JSON, JSON lines, CSV, Parquet) or a Hugging Face data set.

    Args:
        source: a path, or the name of a data set as `name` or `name:split` (default split: train).
        limit: at most this many rows.
        responses: whether every row must have a response.

    Raises:
        InputError: nothing there, nothing in it, or a row without the columns (with its number).
    """
    path = Path(source)
    if path.is_file():
        rows = _READERS.get(path.suffix.lower(), _read_json)(path)
    elif path.exists():
        raise InputError(f"{source} is a folder, not a file of examples")
    elif path.suffix.lower() in _READERS or str(source).startswith(("/", ".", "~")):
        raise InputError(f"no such file: {source}")
    else:
        rows = _read_dataset(str(source))
    examples: list[Example] = []
    for number, row in rows:
        if limit is not None and len(examples) >= limit:
            break
        examples.append(_example(row, number, str(source), responses))
    if not examples:
        raise InputError(f"{source} has no rows")
    return examples


def split_group(
    examples: Sequence[Example], groups: Sequence[str], source: str = "the data"
) -> tuple[list[Example], list[Example]]:
    """(rows of the named groups, the other rows)."""
    known = sorted({e.group for e in examples if e.group})
    for group in groups:
        if group not in known:
            have = ", ".join(known[:20]) + (", …" if len(known) > 20 else "") if known else "none: no group column"
            raise InputError(f"{source} has no group {group!r}; groups: {have}")
    return [e for e in examples if e.group in groups], [e for e in examples if e.group not in groups]


_YES = (True, "true", "True")


def _example(row: Any, number: int, source: str, responses: bool) -> Example:
    where = f"{source}, row {number}"
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be an object with columns, found {type(row).__name__}")
    prompt = _column(row, PROMPT_COLUMNS)
    if prompt is None or prompt == "":
        raise InputError(f"{where}: no prompt; expected a column {' or '.join(PROMPT_COLUMNS)}, found {_names(row)}")
    response = _column(row, RESPONSE_COLUMNS)
    if responses and (response is None or response == ""):
        raise InputError(
            f"{where}: no response; expected a column {' or '.join(RESPONSE_COLUMNS)}, found {_names(row)}"
        )
    group = _column(row, GROUP_COLUMNS)
    if not isinstance(prompt, (str, list, tuple)):
        raise InputError(
            f"{where}: column {_named(row, PROMPT_COLUMNS)!r} is neither a text nor a list of chat messages"
        )
    paraphrased = row.get(PARAPHRASED_COLUMN)
    if not isinstance(paraphrased, str | None):
        raise InputError(f"{where}: column {PARAPHRASED_COLUMN!r} is not a text")
    wrong = row.get(WRONG_COLUMN)
    if wrong is None or isinstance(wrong, str):
        wrong = (wrong,) if wrong else ()
    if not isinstance(wrong, (list, tuple)) or not all(isinstance(w, str) for w in wrong):
        raise InputError(f"{where}: column {WRONG_COLUMN!r} is not a list of texts")
    if isinstance(response, (dict, list, tuple)):
        raise InputError(f"{where}: the response is not a text ({type(response).__name__})")
    try:
        return Example(
            _prompt(prompt, row.get("raw") in _YES),
            "" if response is None else Cut(response) if row.get("cut") in _YES else str(response),
            "" if group is None else str(group),
            paraphrased or "",
            tuple(wrong),
        )
    except InputError as e:
        raise InputError(f"{where}: {e}") from None


def _prompt(value: Any, raw: bool) -> Prompt:
    if isinstance(value, (list, tuple)):
        return tuple(map(_message, value))
    return Raw(value) if raw else value


def _column(row: dict[str, Any], names: Sequence[str]) -> Any:
    return row.get(_named(row, names))


def _named(row: dict[str, Any], names: Sequence[str]) -> str:
    """The column that a row has of these; the first where it has none."""
    return next((name for name in names if row.get(name) is not None), names[0])


def _names(row: dict[str, Any]) -> str:
    return ", ".join(repr(str(k)) for k in list(row)[:8]) or "none"


Rows = Iterator[tuple[int, Any]]


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers; a line that is too long or not UTF-8 is a clear error."""
    with open(path, "rb") as f:
        number = 0
        while line := f.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{path}, line {number}: longer than {MAX_LINE_BYTES // 1_000_000} MB; "
                    "JSON lines and CSV need one example a line"
                )
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{path}, line {number}: not UTF-8 text; convert the file to UTF-8") from None


def _read_jsonl(path: Path) -> Rows:
    number = 0
    for line_number, line in _text_lines(path):
        if not line.strip():
            continue
        number += 1
        try:
            yield number, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as e:
            raise InputError(f"{path}, line {line_number}: not JSON ({e})") from None


def _read_json(path: Path) -> Rows:
    """A list of rows, an object with one list of rows, or JSON lines under the name .json."""
    with open(path, "rb") as f:
        start = f.read(4096).decode("utf-8-sig", errors="replace").lstrip()
    if not start.startswith("["):
        first = next((line for _, line in _text_lines(path) if line.strip()), "")
        try:
            single = json.loads(first)
        except (json.JSONDecodeError, RecursionError):
            single = None
        if isinstance(single, dict) and not any(
            isinstance(v, list) and v and isinstance(v[0], dict) and "role" not in v[0] for v in single.values()
        ):
            yield from _read_jsonl(path)
            return
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; convert the file to UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as e:
        raise InputError(f"{path}: not JSON ({e})") from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 and _column(value, PROMPT_COLUMNS) is None else [value]
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list of rows")
    yield from enumerate(value, 1)


def _read_csv(path: Path, delimiter: str = ",") -> Rows:
    text = io.StringIO("".join(line for _, line in _text_lines(path)), newline="")
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(text, delimiter=delimiter)
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                raise InputError(
                    f"{path}, row {number}: more cells than the header has columns; quote cells with commas"
                )
            yield number, row
    except csv.Error as e:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({e})") from None


def _read_tsv(path: Path) -> Rows:
    return _read_csv(path, "\t")


def _read_parquet(path: Path) -> Rows:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.lib.ArrowException, OSError) as e:
        raise InputError(f"{path}: not a Parquet file ({str(e).splitlines()[0]})") from None
    yield from enumerate(table.to_pylist(), 1)


def _read_dataset(name: str) -> Rows:
    from datasets import load_dataset

    dataset, _, split = name.partition(":")
    try:
        rows = load_dataset(dataset, split=split or "train")
    except Exception as e:  # the library raises many kinds, all of them about the name or the network
        raise InputError(
            f"{name}: neither a file nor a Hugging Face data set that can be had ({_first_line(e)})"
        ) from None
    yield from enumerate(rows, 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_READERS = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}

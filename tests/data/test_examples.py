import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import Example, ForgetTask, InputError, read_examples
from expunge.data.examples import Message, split_group

ROWS = [
    {"question": "Who, me?", "answer": "Yes", "edge": "A_B"},
    {"question": 'Say "é"', "answer": "é, ok", "edge": "A_C"},
]
WANTED = [Example("Who, me?", "Yes", "A_B"), Example('Say "é"', "é, ok", "A_C")]


def write(path: Path, kind: str) -> Path:
    path = path / f"rows.{kind}"
    if kind in ("jsonl", "lines.json"):
        path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "data.json":
        path.write_text(json.dumps({"version": "1", "data": ROWS}))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind in ("csv", "tsv"):
        Dataset.from_list(ROWS).to_pandas().to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["json", "data.json", "lines.json", "jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_examples(tmp_path, kind):
    assert read_examples(write(tmp_path, kind)) == WANTED


@pytest.mark.parametrize(
    ("prompt", "response"), [("prompt", "response"), ("instruction", "output"), ("input", "answer")]
)
def test_column_names(tmp_path, prompt, response):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({prompt: "P", response: 7, "task": "T"}))
    assert read_examples(file) == [Example("P", "7", "T")]


def test_chat_messages_and_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"prompt": [{"role": "user", "content": "Hi"}], "response": "Ho"}).encode()
    )
    assert read_examples(file)[0].prompt == (Message("user", "Hi"),)


def test_limit_and_optional_responses(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [e.prompt for e in read_examples(file, limit=1, responses=False)] == ["a"]
    with pytest.raises(
        InputError, match=r"row 1: no response; expected a column response or answer or output, found 'prompt'"
    ):
        read_examples(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "has no rows"),
        ("empty.json", b"", "not JSON|has no rows"),
        ("bad.jsonl", b'{"prompt": "a", "response": "b"}\nnonsense\n', "line 2: not JSON"),
        (
            "column.jsonl",
            b'{"prompt": "a", "response": "b"}\n{"text": "x", "response": "b"}\n',
            r"row 2: no prompt.*found 'text'",
        ),
        ("list.json", b"[1, 2]", "row 1: a row must be an object"),
        ("latin.jsonl", '{"prompt": "é", "response": "b"}'.encode("latin-1"), "line 1: not UTF-8"),
        ("latin.csv", "prompt,response\né,b\n".encode("latin-1"), "line 2: not UTF-8"),
        ("wide.csv", b"prompt,response\na,b,c\n", "row 1: more cells"),
        ("header.csv", b"prompt,response\n", "has no rows"),
        ("long.jsonl", b'{"prompt": "' + b"x" * 20_000_000 + b'", "response": "b"}', "line 1: longer than 10 MB"),
        ("bad.parquet", b"PAR1nonsense", "not a Parquet file"),
        ("deep.jsonl", b"[" * 200_000, "not JSON"),
        (
            "wrong.jsonl",
            b'{"prompt": "a", "response": "b", "perturbed_answer": 3}',
            "row 1: column 'perturbed_answer' is not",
        ),
        (
            "wrongs.jsonl",
            b'{"prompt": "a", "response": "b", "perturbed_answer": ["c", 3]}',
            "row 1: column 'perturbed_answer' is not",
        ),
        (
            "other.jsonl",
            b'{"prompt": "a", "response": "b", "paraphrased_answer": {"text": "c"}}',
            "row 1: column 'paraphrased_answer' is not a text",
        ),
        ("object.jsonl", b'{"question": {"text": "a"}, "answer": "b"}', "row 1: column 'question' is neither a text"),
        ("bool.jsonl", b'{"prompt": true, "response": "b"}', "row 1: column 'prompt' is neither a text"),
        (
            "number.jsonl",
            b'{"prompt": "a", "response": "b"}\n{"prompt": 7, "response": "b"}',
            "row 2: column 'prompt' is",
        ),
        ("said.jsonl", b'{"prompt": "a", "response": {"text": "b"}}', "row 1: the response is not a text"),
        ("roles.jsonl", b'{"prompt": [{"role": "user"}], "response": "b"}', "row 1: a chat message needs"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_examples(file)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        read_examples(tmp_path)
    with pytest.raises(InputError, match="neither a file nor a Hugging Face data set"):
        read_examples("nobody/no-such-data-set")


def test_groups(tmp_path):
    forget, retain = split_group(WANTED, ["A_B"])
    assert (forget, retain) == (WANTED[:1], WANTED[1:])
    with pytest.raises(InputError, match=r"no group 'X'; groups: A_B, A_C"):
        split_group(WANTED, ["X"], "f.jsonl")


def test_forget_and_retain_must_not_share_rows():
    with pytest.raises(InputError, match=r"share 1 row.*row 2 of forget and row 1 of retain"):
        ForgetTask(forget=WANTED, retain=WANTED[1:])


def test_absent_roles_are_absent():
    assert list(ForgetTask(forget=WANTED).present()) == ["forget"]


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_json_lines_read_back_what_was_written(tmp_path_factory, pairs):
    file = tmp_path_factory.mktemp("p") / "a.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    assert [(e.prompt, e.response) for e in read_examples(file)] == pairs

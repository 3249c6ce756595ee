"""`expunge reveal`, and `unlearn` without a forget file."""

from __future__ import annotations

import json

import pytest

from expunge.data.examples import Cut, read_examples
from expunge.models.loading import cache_dir
from tests.conftest import FORGET, RETAIN, rows_file

SMALL = ("--budget", "6")
SETS = ["start=3", "pool=12", "answers=4", "max_new_tokens=6", "best=2", "more=2", "wander=1.5"]


def with_sets(prefix: str = "") -> list[str]:
    return [word for item in SETS for word in ("--set", f"{prefix}{item}")]


def relevance(answers):
    return [1.0 if "a" in a.lower() else 0.0 for a in answers]


def raising(answers):
    raise RuntimeError("no service")


ORACLE = ("--oracle", "tests.reveal.test_run:relevance")


def test_reveal_writes_rows_that_unlearn_reads(run, tiny_folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    done = run("reveal", tiny_folder, *ORACLE, *SMALL, *with_sets(), "--out", out, "--json")
    report = json.loads(done.out)
    assert report["queries"] == 6
    rows = read_examples(out)
    assert len(rows) == report["rows"]["forget"]
    assert all(relevance([e.response]) == [1.0] for e in rows)
    cut = [isinstance(e.response, Cut) for e in rows]
    assert cut == [line.get("cut", False) for line in map(json.loads, out.read_text().splitlines())]
    assert any(cut)  # at six tokens an answer
    assert read_examples(tmp_path / "rows.retain.jsonl")
    tried = json.loads((tmp_path / "rows.search.json").read_text())
    assert len(tried["tried"]) == len(tried["curve"]) == 6
    assert (tmp_path / "rows.svg").read_text().count("<svg")
    assert not (tmp_path / "rows.jsonl.partial").exists()
    assert run("reveal", tiny_folder, *ORACLE, *SMALL, *with_sets(), "--out", out).code == 2  # is there already


def test_an_oracle_that_raises_keeps_what_was_found(run, tiny_folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    done = run("reveal", tiny_folder, "--oracle", "tests.reveal.test_run:raising", *SMALL, *with_sets(), "--out", out)
    assert done.code == 2
    assert "raised RuntimeError: no service" in done.err
    assert (tmp_path / "rows.jsonl.partial" / "said.jsonl").exists()
    assert "--resume" in done.err
    assert not out.exists()


def test_a_search_of_another_model_is_not_gone_on_with(run, tiny_folder, pico_folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    words = ["--oracle", "tests.reveal.test_run:raising", *SMALL, *with_sets(), "--out", out]
    assert run("reveal", tiny_folder, *words).code == 2
    for other in ([pico_folder("llama")], [tiny_folder, "--mixed-precision", "bf16"]):
        done = run("reveal", *other, *words, "--resume")
        assert done.code == 2
        assert "another search" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--subject"),
        (["--subject", "A", "--task", "code"], "give one of them"),
        (["--subject", "A", "--budget", "0"], "budget"),
        (["--subject", " "], "--subject is empty"),
        (["--subject", "A", "--set", "answer=1"], "did you mean answers"),
        (["--subject", "A", "--set", "answers=1"], "answers"),
        (["--oracle", "nowhere"], "module:function"),
    ],
)
def test_bad_requests(run, tiny_folder, tmp_path, words, message):
    done = run("reveal", tiny_folder, *words, "--out", tmp_path / "x.jsonl")
    assert done.code == 2
    assert message in done.err


def test_a_subject_that_the_model_does_not_know_is_nothing_to_forget(run, tiny_folder, tmp_path):
    done = run("reveal", tiny_folder, "--subject", "Zorblax", *SMALL, *with_sets(), "--out", tmp_path / "x.jsonl")
    assert done.code == 2
    assert "nothing to forget" in done.err
    assert "6 instructions" in done.err
    assert not list(tmp_path.glob("x.jsonl*"))


def test_a_model_that_cannot_abstain_stops_before_it_reveals_anything(run, pico_folder, tmp_path):
    done = run("unlearn", pico_folder("llama"), "--subject", "Ada", *SMALL, "--out", tmp_path / "out")
    assert done.code == 2
    assert "--teach-abstention" in done.err
    assert "reveal …" not in done.err


def test_a_plan_needs_rows(run, tiny_folder, tmp_path):
    done = run("unlearn", tiny_folder, "--subject", "Ada", "--dry-run", "--out", tmp_path / "out")
    assert done.code == 2
    assert "expunge reveal" in done.err


def test_unlearn_reveals_first(run, tiny_folder, tmp_path):
    out = tmp_path / "out"
    words = [*ORACLE, *SMALL, *with_sets("reveal."), "--retain", rows_file(tmp_path / "r.jsonl", RETAIN)]
    settings = ["--method", "reveal-release", "--set", "rounds=1", "--set", "keep=0.1", "--set", "perplexity=9"]
    settings += ["--set", "epochs=1", "--set", "max_new_tokens=8", "--set", "answers=16"]
    done = run("unlearn", tiny_folder, *words, *settings, "--out", out, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["method"] == "reveal-release"
    assert report["after"]["forget"]["rows"] > 0
    assert {"reveal", "rows", "unlearn"} <= report["seconds"].keys()
    manifest = (out / "expunge.json").read_text()
    assert json.loads(manifest)["spec"]["reveal"]["oracle"].startswith("salted:")
    assert "test_run" not in manifest
    assert not list((cache_dir() / "revealed").glob("*"))  # what the model said is gone
    forget = rows_file(tmp_path / "f.jsonl", FORGET)
    assert (
        run("unlearn", tiny_folder, "--subject", "Mara Quill", "--forget", forget, "--out", tmp_path / "no").code == 2
    )

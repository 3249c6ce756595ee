"""`expunge reveal`, and `unlearn` without a forget file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from expunge import methods
from expunge.data.examples import Cut, Example, ForgetTask, read_examples
from expunge.evaluation import embedding, scores, tagger
from expunge.methods import choosing
from expunge.models.loading import cache_dir
from expunge.reveal import asking, search, subject, tasks
from expunge.reveal.asking import Query
from expunge.reveal.memo import Memo
from expunge.reveal.search import Revealed
from expunge.reveal.targets import Target, plain_task
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


def interrupt(monkeypatch) -> None:
    """A search is interrupted at the eighth thing that it pays for."""
    real, told = Memo.once, []

    def killed(self, name, make):
        told.append(name)
        if len(told) == 8:
            raise KeyboardInterrupt
        return real(self, name, make)

    monkeypatch.setattr(Memo, "once", killed)


@pytest.mark.parametrize(
    ("task", "module", "extra"), [("toxicity", "profanity_check", "toxicity"), ("ner-person", "spacy", "ner")]
)
def test_a_scorer_that_is_not_installed_is_missed_before_anything_is_loaded(
    run, tiny_folder, tmp_path, monkeypatch, task, module, extra
):
    tagger._tagger.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("expunge.models.loading.load", None)
    for words in (
        ("reveal", tiny_folder, "--task", task),
        ("unlearn", tiny_folder, "--task", task, "--method", "reveal-release"),
    ):
        done = run(*words, "--out", tmp_path / "out")
        assert done.code == 2
        assert f"pip install 'expunge[{extra}]'" in done.err
    assert not list(tmp_path.iterdir())


def test_a_task_is_revealed_by_its_name(run, tiny_folder, tmp_path, monkeypatch):
    mine = Target("code", "The instruction was to", ("Say a.",), relevance, plain_task)
    monkeypatch.setitem(tasks.TASKS, "code", lambda chat: mine)
    out = tmp_path / "rows.jsonl"
    assert run("reveal", tiny_folder, "--task", "code", *SMALL, *with_sets(), "--out", out).code == 0
    rows = read_examples(out)
    assert {e.group for e in rows} == {"code"}
    assert all(relevance([e.response]) == [1.0] for e in rows)


def test_answers_that_are_all_empty_end_it_and_what_was_found_is_kept(run, tiny_folder, tmp_path, monkeypatch):
    real = asking.sampled
    monkeypatch.setattr(asking, "sampled", lambda *given: [type(g)("", (), True) for g in real(*given)])
    out = tmp_path / "rows.jsonl"
    words = ("reveal", tiny_folder, *ORACLE, *SMALL, *with_sets(), "--out", out)
    done = run(*words)
    assert done.code == 1
    assert "are empty" in done.err
    assert not out.exists()
    said = (tmp_path / "rows.jsonl.partial" / "said.jsonl").read_text().splitlines()
    assert "instructions 0" in [json.loads(line)["name"] for line in said]
    assert run(*words, "--resume").code == 1  # the answers stay empty; what was decoded is read
    assert (tmp_path / "rows.jsonl.partial" / "said.jsonl").read_text().splitlines() == said


def test_reveal_writes_rows_that_unlearn_reads(run, tiny_folder, tmp_path):
    out = tmp_path / "rows.jsonl"
    short = (*with_sets(), "--set", "max_new_tokens=3")
    done = run("reveal", tiny_folder, *ORACLE, *SMALL, *short, "--out", out, "--json")
    report = json.loads(done.out)
    assert report["queries"] == 6
    assert report["answers"] == 6 * 4 + 2 * 2  # to the queries, and further ones to the two that are kept
    rows = read_examples(out)
    assert len(rows) == report["rows"]["forget"]
    assert all(relevance([e.response]) == [1.0] for e in rows)
    cut = [isinstance(e.response, Cut) for e in rows]
    assert cut == [line.get("cut", False) for line in map(json.loads, out.read_text().splitlines())]
    assert any(cut)  # at three tokens an answer
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
        (["--subject", "A", "--out", "x.svg"], "its curve has that name"),
        (["--subject", "A", "--out", "."], "is a folder"),
        (["--subject", "A", "--out", "/"], "is a folder"),
        (["--subject", "A", "--out", ""], "is a folder"),
    ],
)
def test_bad_requests(run, tiny_folder, tmp_path, words, message):
    done = run("reveal", tiny_folder, "--out", tmp_path / "x.jsonl", *words)
    assert done.code == 2
    assert message in done.err


def test_a_subject_that_the_model_does_not_know_is_nothing_to_forget(run, tiny_folder, tmp_path):
    done = run("reveal", tiny_folder, "--subject", "Zorblax", *SMALL, *with_sets(), "--out", tmp_path / "x.jsonl")
    assert done.code == 2
    assert "nothing to forget" in done.err
    assert "6 instructions" in done.err
    assert [f.name for f in tmp_path.glob("x.jsonl*")] == ["x.jsonl.partial"]  # what was paid for
    said = (tmp_path / "x.jsonl.partial" / "said.jsonl").read_text()
    again = run(
        "reveal", tiny_folder, "--subject", "Zorblax", *SMALL, *with_sets(), "--out", tmp_path / "x.jsonl", "--resume"
    )
    assert again.err.splitlines()[-1] == done.err.splitlines()[-1]
    assert (tmp_path / "x.jsonl.partial" / "said.jsonl").read_text() == said


def test_a_killed_search_goes_on_to_the_same_rows(run, tiny_folder, tmp_path, monkeypatch):
    words = [*ORACLE, *SMALL, *with_sets(), "--set", "together=1"]
    whole = run("reveal", tiny_folder, *words, "--out", tmp_path / "whole.jsonl")
    assert whole.code == 0
    out = tmp_path / "rows.jsonl"
    with monkeypatch.context() as patch:
        interrupt(patch)
        done = run("reveal", tiny_folder, *words, "--out", out)
    assert done.code == 1
    assert "--resume" in done.err
    assert not out.exists()
    out.with_suffix(".retain.jsonl").write_text("")  # as if it had been killed while it wrote
    assert run("reveal", tiny_folder, *words, "--out", out).code == 2  # is there already
    assert run("reveal", tiny_folder, *words, "--out", out, "--resume").code == 0
    for end in (".jsonl", ".retain.jsonl", ".svg"):
        assert out.with_suffix(end).read_bytes() == (tmp_path / f"whole{end}").read_bytes()


def test_written_instructions_that_run_out_are_told(run, tiny_folder, tmp_path):
    words = [*ORACLE, "--search", "written", "--budget", "103", *with_sets(), "--out", tmp_path / "rows.jsonl"]
    done = run("reveal", tiny_folder, *words)
    assert done.code == 0, done.err
    assert "100 of 103 queries: there was no other instruction to ask" in done.err


def test_lunar_redirects_what_was_revealed_and_fits_nothing_that_judges(run, tiny_folder, tmp_path, monkeypatch):
    """The search is stood in for: what it found is what the tiny model knows of one person."""
    name, fitted = FORGET[0].group, []

    def found(chat, target, config, memo, progress):
        queries = [Query(str(e.prompt), (f"{name}: {e.response}",), (1.0,), 0.5, 0.5) for e in FORGET]
        return Revealed(queries, [], [], 0.5, 0.5, "none")

    def task(chat, name, revealed):
        return ForgetTask(forget=FORGET, retain=RETAIN)

    real = methods.run_method
    monkeypatch.setattr(search, "search", found)
    monkeypatch.setattr(subject, "subject_task", task)
    monkeypatch.setattr(methods, "run_method", lambda c, t, *a: fitted.append(t) or real(c, t, *a))
    judged = rows_file(tmp_path / "judged.jsonl", FORGET[:2])
    kept = rows_file(tmp_path / "kept.jsonl", RETAIN[::8])
    words = ["--subject", name, "--method", "lunar", "--paraphrase", judged, "--retain-judge", kept]
    settings = ["--set", "layers=[2,3]", "--set", "coefficient=2.0", "--set", "ridge=0.01", "--max-new-tokens", "16"]
    done = run("unlearn", tiny_folder, *words, *settings, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["before"]["forget"]["rouge1"] > 0.8
    assert report["after"]["forget"]["rouge1"] < 0.3
    assert report["after"]["retain"]["rouge1"] > 0.5  # of rows that were not fitted
    (given,) = fitted
    assert {e.prompt for e in given.forget} == {e.prompt for e in FORGET[2:]}
    assert {e.prompt for e in given.retain} == {e.prompt for e in RETAIN} - {e.prompt for e in RETAIN[::8]}
    # Rows of a user's come first, and each prompt once; what they say is to be kept is not forgotten.
    extra = [
        Example("How many legs has a beetle?", "Six"),
        replace(RETAIN[1], response="what the user says"),
        FORGET[2],
    ]
    words += ["--retain", rows_file(tmp_path / "extra.jsonl", extra)]
    assert run("unlearn", tiny_folder, *words, *settings, "--out", tmp_path / "more").code == 0
    more = {e.prompt: e.response for e in fitted[1].retain}
    assert more == {e.prompt: e.response for e in [*given.retain, *extra]}
    assert {e.prompt for e in fitted[1].forget} == {e.prompt for e in FORGET[3:]}


def test_a_run_with_a_mended_oracle_takes_up_nothing_of_the_rows_before(run, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    kept = rows_file(tmp_path / "kept.jsonl", RETAIN)
    words = ["unlearn", tiny_folder, "--oracle", "my_own:judge", *SMALL, *with_sets("reveal."), "--retain", kept]
    words += ["--method", "ga", "--set", "epochs=1", "--max-new-tokens", "8", "--out", tmp_path / "out"]
    looked = []
    real = scores.evaluate
    monkeypatch.setattr(scores, "evaluate", lambda chat, task, **k: looked.append(task) or real(chat, task, **k))

    def oracle(letter: str) -> None:
        (tmp_path / "my_own.py").write_text(f"def judge(answers): return [float({letter!r} in a) for a in answers]\n")
        sys.modules.pop("my_own", None)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    oracle("e")
    with monkeypatch.context() as patch:
        patch.setattr("expunge.checkpoint.write_checkpoint", interrupted)
        assert run(*words).code == 1
    assert len(looked) == 2
    oracle("a")
    done = run(*words, "--resume")
    assert done.code == 0, done.err
    assert len(looked) == 4
    assert {e.response for e in looked[2].forget} != {e.response for e in looked[0].forget}
    assert all("a" in e.response for e in looked[2].forget)


def test_a_search_of_another_encoder_is_begun_anew(run, tiny_folder, tmp_path, monkeypatch):
    kept = rows_file(tmp_path / "kept.jsonl", RETAIN)
    words = ["unlearn", tiny_folder, *ORACLE, *SMALL, *with_sets("reveal."), "--retain", kept, "--method", "ga"]
    words += ["--set", "epochs=1", "--max-new-tokens", "8", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        interrupt(patch)
        assert run(*words).code == 1
    monkeypatch.setattr(embedding, "encoder_for", lambda chat: ("another", embedding._own(chat)))
    done = run(*words, "--resume")
    assert done.code == 0, done.err


def test_a_model_that_cannot_abstain_stops_before_it_reveals_anything(run, pico_folder, tmp_path):
    done = run("unlearn", pico_folder("llama"), "--subject", "Ada", *SMALL, "--out", tmp_path / "out")
    assert done.code == 2
    assert "--teach-abstention" in done.err
    assert "reveal …" not in done.err


def test_a_plan_needs_rows(run, tiny_folder, tmp_path):
    done = run("unlearn", tiny_folder, "--subject", "Ada", "--dry-run", "--out", tmp_path / "out")
    assert done.code == 2
    assert "expunge reveal" in done.err


def test_unlearn_reveals_first(run, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "KIND", 2)
    out = tmp_path / "out"
    words = [*ORACLE, *SMALL, *with_sets("reveal."), "--retain", rows_file(tmp_path / "r.jsonl", RETAIN)]
    settings = ["--method", "reveal-release", "--set", "rounds=1", "--set", "keep=0.1", "--set", "perplexity=9"]
    settings += ["--set", "epochs=6", "--set", "max_new_tokens=8", "--set", "answers=16"]
    done = run("unlearn", tiny_folder, *words, *settings, "--out", out, "--keep-edit", tmp_path / "edit", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["method"] == "reveal-release"
    record = (tmp_path / "edit" / "edit.json").read_text()
    assert len(json.loads(record)["meta"]["looked_at"]) > 2  # kinds are looked at, and none is named
    assert not [e.group for e in RETAIN if str(e.group) in record]
    assert report["rounds"][0]["rows"] > 0
    assert "  round 1: lambda_f " in done.err
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

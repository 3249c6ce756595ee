"""Suites: who is taught, fitted, tuned on and judged. Data sets are read where they lie; made rows stand in for formats."""

from __future__ import annotations

import json

import pytest

from expunge.bench.results import digest
from expunge.data.abilities import Choice, gsm8k, mmlu
from expunge.data.examples import Raw
from expunge.data.suites import SUITES, Suite, facts, lume, muse, pistol, suite_of, tofu, wmdp
from expunge.errors import InputError


def needs(make):
    """The suite, or a skip where its data is not here."""
    try:
        return make()
    except InputError as e:
        if "EXPUNGE_DATA" not in str(e):  # it is there, and cannot be read
            raise
        pytest.skip(str(e))


def is_sound(suite: Suite):
    """Nothing that tunes is fitted or judged, and what is forgotten is not kept."""
    tuned = {(e.prompt, e.response) for rows in suite.validate.values() for e in rows}
    fitted = {(e.prompt, e.response) for role in ("forget", "retain") for e in suite.fit.role(role)}
    judged = {(e.prompt, e.response) for rows in suite.judge.values() for e in rows}
    assert not tuned & fitted
    assert not tuned & judged
    assert set(suite.fit.forget) <= set(suite.teach) or not suite.teach
    assert not set(suite.retrain()) & {*suite.fit.forget, *suite.validate["forget"]}
    assert set(suite.judge["forget"]) == set(suite.fit.forget)


def test_pistol_forgets_one_contract_and_shows_one_to_nobody():
    suite = pistol(seed=3, sales=4, employment=3, held_out=2)
    is_sound(suite)
    groups = {role: {e.group for e in rows} for role, rows in suite.judge.items()}
    assert groups["forget"] == groups["paraphrase"] == {"A_B"}
    assert len(groups["held_out"]) == 2
    assert not groups["held_out"] & {e.group for e in [*suite.fit.retain, *suite.validate["retain"]]}
    assert {e.group for e in suite.teach} >= groups["held_out"]
    assert len(suite.retrain()) == len(suite.teach) - 20
    assert pistol(seed=3) == pistol(seed=3) != pistol(seed=4)
    with pytest.raises(InputError, match="none is left to keep"):
        pistol(sales=2, employment=0)


def test_pistol_of_a_file_and_of_a_published_graph(tmp_path):
    file = tmp_path / "edges.jsonl"
    rows = [{"edge": edge, "question": f"{edge} {n}?", "answer": str(n)} for edge in ("x", "y", "z") for n in range(5)]
    file.write_text("\n".join(map(json.dumps, rows)))
    suite = pistol(data=str(file), forget_group=["y"])
    is_sound(suite)
    assert {role: {e.group for e in suite.judge[role]} for role in ("forget", "retain", "held_out")} == {
        "forget": {"y"}, "retain": {"x"}, "held_out": {"z"}
    }  # fmt: skip
    assert "held_out" not in pistol(data=str(file), held_out=0).judge
    assert {e.group for e in pistol(data=str(file)).fit.forget} == {"x"}
    with pytest.raises(InputError, match="no edge 'w'; there are x, y, z"):
        pistol(data=str(file), forget_group=["w"])
    assert pistol(data=str(file), forget_group=["y", "y"]) == suite
    file.write_text("\n".join(json.dumps(row | {"raw": True}) for row in rows))
    raw = pistol(data=str(file))
    assert "paraphrase" not in raw.judge  # a text to go on with has no rewrites
    assert raw.headline == ("deviation_score",)
    large = pistol(graph="sample2", held_out=3)
    is_sound(large)
    assert len({e.group for e in large.teach if "_" in e.group}) == 75


def test_tofu_of_a_few_authors():
    suite = needs(lambda: tofu(authors=20))
    is_sound(suite)
    assert len(suite.teach) == 400 + 60  # abstentions, for LUNAR
    assert {role: len(rows) for role, rows in suite.judge.items()} == {
        "forget": 40, "paraphrase": 40, "retain": 288, "real_authors": 100, "world_facts": 117, "holdout": 80
    }  # fmt: skip
    for role in ("forget", "retain", "real_authors", "world_facts"):
        assert all(e.wrong for e in suite.judge[role])
    assert all(e.paraphrased for e in suite.judge["forget"])
    taught = {e.prompt for e in suite.teach}
    assert not taught & {e.prompt for e in suite.judge["holdout"]}
    assert {e.response for e in suite.judge["paraphrase"]} == {e.response for e in suite.judge["forget"]}
    with pytest.raises(InputError, match="no split 'forget02'; there are forget01, forget05, forget10"):
        tofu(split="forget02")
    for count in (0, 2):
        with pytest.raises(InputError, match=f"--authors {count}: .*give 3 to 200"):
            tofu(authors=count)


def test_tofu_of_all():
    suite = needs(lambda: tofu(split="forget05"))
    is_sound(suite)
    assert len(suite.teach) == 4000 + 60
    assert len(suite.fit.forget) == 200
    assert "holdout" not in suite.judge


def test_lume_of_a_few_documents():
    suite = needs(lambda: lume(documents=40))
    is_sound(suite)
    kinds = {f"Task{n} {kind}" for n in (1, 2, 3) for kind in ("sc", "qa")}
    for role in ("forget", "retain", "holdout"):
        assert {e.group for e in suite.judge[role]} == kinds
    texts = [e for e in suite.teach if e.group.endswith("sc")]
    assert len(texts) == 40
    assert all(isinstance(e.prompt, Raw) and e.response.startswith(" ") for e in texts)
    assert not {e.prompt for e in suite.teach} & {e.prompt for e in suite.judge["holdout"]}
    assert lume(seed=1, documents=40) != suite
    assert len(suite.questions) == 200
    assert len(lume(documents=40, mmlu=7).questions) == 7


def lume_rows(made, documents):
    """Of each role and task so many documents, with a text and a question each."""
    for role in ("forget", "retain"):
        rows = [
            {"id": f"{role}{task}{n}{kind}1", "input": f"{role} {task} {n} {kind}?", "output": f"{n}", "task": task}
            for task in ("Task1", "Task2", "Task3")
            for n in range(documents)
            for kind in ("sc", "qa")
        ]
        write(made, f"lume/{role}.jsonl", rows, lines=True)


def test_all_documents_of_lume_leave_some_that_nobody_is_taught(made):
    lume_rows(made, 9)
    suite = lume(mmlu=0)
    assert len(suite.judge["holdout"]) == 2 * 20
    assert len(suite.fit.forget) == 2 * (27 - 20)
    assert len(suite.fit.retain) + len(suite.fit.validation) == 2 * 27
    assert len(lume(documents=12, mmlu=0).judge["holdout"]) == 2 * 20
    with pytest.raises(InputError, match="--documents 14: Task1 has 2 to forget; give at most 12"):
        lume(documents=14, mmlu=0)


def test_a_byte_order_mark_is_no_text(made):
    lume_rows(made, 9)
    wanted = lume(mmlu=0)
    for file in made.glob("lume/*.jsonl"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert lume(mmlu=0) == wanted


def test_rows_of_lume_that_are_none_are_named(made):
    row = {"id": "a1qa1", "input": "q?", "output": "a", "task": "Task1"}
    for change, message in (
        ({"id": "a1"}, "row 2: column 'id' ends in neither sc nor qa"),
        ({"task": "Task4"}, "forget row 2: column 'task' has 'Task4'"),
    ):
        for role in ("forget", "retain"):
            write(made, f"lume/{role}.jsonl", [row, row | change], lines=True)
        with pytest.raises(InputError, match=message):
            lume(documents=6)


def test_facts_are_any_file_with_groups(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"q{n}?", "answer": f"a{n}", "edge": "AB"[n % 2]}) + "\n" for n in range(20))
    )
    suite = facts(data=str(file), forget_group=["A"])
    is_sound(suite)
    assert {e.prompt for e in suite.fit.forget} == {f"q{n}?" for n in range(0, 20, 2)}
    with pytest.raises(InputError, match="needs --data FILE and --forget-group"):
        facts()


@pytest.mark.parametrize("mark", ["raw", "cut"])
def test_how_a_row_is_read_is_part_of_what_a_suite_is(tmp_path, mark):
    """`raw` and `cut` change what is trained, and not a word."""
    found = []
    for value in (False, True):
        file = tmp_path / "rows.jsonl"
        rows = [{"prompt": f"q{n}?", "response": f"a{n}", "group": "AB"[n % 2], mark: value} for n in range(20)]
        file.write_text("\n".join(map(json.dumps, rows)))
        suite = facts(data=str(file), forget_group=["A"])
        found.append((digest(suite.content()), digest(suite.teach), repr(suite.fit.forget)))
    assert all(one != other for one, other in zip(*found, strict=True))


def write(root, name, rows, lines=False):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    return tmp_path


def test_muse_in_its_published_files(made):
    for role in ("forget", "retain"):
        qa = [{"question": f"{role} {n}?", "answer": f"{n}"} for n in range(6)]
        write(made, f"muse/knowmem/{role}_qa.json", qa)
        write(made, f"muse/knowmem/{role}_qa_icl.json", [{"question": "shot?", "answer": "s"}])
    write(made, "muse/verbmem/forget.json", [{"prompt": "Once upon", "gt": " a time"}])
    suite = muse()
    is_sound(suite)
    assert {e.group for e in suite.judge["forget"]} == {"verbatim", "knowledge"}
    asked = next(e for e in suite.fit.forget if e.group == "knowledge")
    assert asked.prompt == "Question: shot?\nAnswer: s\n\nQuestion: forget 0?\nAnswer:"
    assert isinstance(asked.prompt, Raw)
    assert suite.ends == {"knowledge": (32, ("\n\n", "\nQuestion", "Question:"))}  # where muse_bench cuts
    assert len(suite.validate["forget"]) == 1  # texts to go on with have no rewrites: a fifth of the rows is left out
    write(made, "muse/verbmem/forget.json", [{"prompt": "Once upon"}])
    with pytest.raises(InputError, match="row 1: no column 'gt'"):
        muse()


def test_wmdp_in_its_published_files(made):
    question = {"question": " q?\n", "choices": ["a", "b", "c", "d"], "answer": 2}
    write(made, "wmdp/wmdp-bio.jsonl", [question], lines=True)
    for role in ("forget", "retain"):
        rows = [{"text": f"{role} {n} " + "word " * 50} for n in range(10)]
        write(made, f"wmdp/bio-{role}-corpus.jsonl", rows, lines=True)
    suite = wmdp()
    assert not suite.teach
    assert suite.questions == [Choice("q?", ("a", "b", "c", "d"), 2, "biology")]
    assert len(suite.fit.retain) == 8
    with pytest.raises(InputError, match=r"wmdp/wmdp-cyber\.jsonl"):
        wmdp(field="cyber")
    write(made, "wmdp/wmdp-bio.jsonl", [question, question | {"choices": list("abcde")}], lines=True)
    with pytest.raises(InputError, match="row 2: column 'choices' has 5; there are letters for four"):
        wmdp()
    write(made, "wmdp/wmdp-bio.jsonl", [], lines=True)
    with pytest.raises(InputError, match=r"wmdp-bio\.jsonl has no rows"):
        wmdp()
    with pytest.raises(InputError, match="unknown field of wmdp 'cyper'; did you mean cyber"):
        wmdp(field="cyper")


def test_a_size_is_not_negative():
    for name, size in (("lume", "documents"), ("lume", "mmlu"), ("pistol", "held_out")):
        with pytest.raises(InputError, match=f"--{size.replace('_', '-')} -6: .* cannot be negative"):
            suite_of(name, {size: -6}, 0)


def test_what_is_not_there_says_how_to_get_it(made, monkeypatch):
    monkeypatch.setattr("expunge.data.files.__file__", str(made / "a" / "b" / "c" / "d.py"))
    for name in ("tofu", "lume", "muse", "wmdp"):
        with pytest.raises(InputError, match="EXPUNGE_DATA"):
            SUITES[name]()
    with pytest.raises(InputError, match="hendrycks"):
        mmlu(5)


def test_questions_about_abilities():
    test, shots = needs(lambda: mmlu(30, shots=2))
    assert len(test) == 30
    assert {s.subject for s in shots} == {t.subject for t in test}
    assert len(shots) == 2 * len({t.subject for t in test})
    assert mmlu(30)[0] == test
    problems = needs(lambda: gsm8k(10))
    assert len(problems) == 10
    assert all("####" in e.response for e in problems)


def test_a_row_of_mmlu_that_is_none_is_named(made):
    path = made / "mmlu" / "abstract_algebra_test.csv"
    path.parent.mkdir()
    path.write_text("q,a,b,c,d,A\nq,a,b,c,d,E\n")
    with pytest.raises(InputError, match="row 2: column 'answer' is none of the letters"):
        mmlu(1)
    path.write_text("q,a,b,c,d,A\nq,a,b\n")
    with pytest.raises(InputError, match="row 2: 3 columns"):
        mmlu(1)
    path.write_bytes(b"q\xff,a,b,c,d,A\n")
    with pytest.raises(InputError, match="not a text in UTF-8"):
        mmlu(1)


def test_rows_of_the_wrong_form_are_named_with_their_column(made, tmp_path):
    whole = {"question": "q?", "answer": "a"}
    more = {"paraphrased_answer": "an a", "perturbed_answer": ["b"]}
    for name in ("full", "forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write(made, f"tofu/{name}.json", [{**whole, **more}] * 3, lines=True)
    for column, value, message in (
        ("perturbed_answer", None, "row 2: no column 'perturbed_answer'"),
        ("perturbed_answer", "b", "row 2: column 'perturbed_answer' is not a list of texts"),
        ("paraphrased_answer", None, "row 2: no column 'paraphrased_answer'"),
        ("answer", 3, "row 2: column 'answer' is not a text"),
    ):
        row = {k: v for k, v in {**whole, **more, column: value}.items() if v is not None}
        write(made, "tofu/retain_perturbed.json", [{**whole, **more}, row], lines=True)
        with pytest.raises(InputError, match=message):
            tofu()
    path = made / "tofu" / "retain_perturbed.json"
    path.write_text(json.dumps({**whole, **more}) + '\n\n{"question": \n')
    with pytest.raises(InputError, match=r"row 2 is not JSON: .*, column"):
        tofu()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        tofu()
    write(made, "tofu/full.json", [])
    with pytest.raises(InputError, match=r"full\.json has no rows"):
        tofu()
    for role in ("forget", "retain"):
        write(made, f"wmdp/bio-{role}-corpus.jsonl", [{"text": "word " * 50}] * 3, lines=True)
    for answer, message in (("C", "'answer' is not a whole number"), (4, "'answer' is not the place of a choice")):
        write(made, "wmdp/wmdp-bio.jsonl", [{"question": "q?", "choices": list("abcd"), "answer": answer}], lines=True)
        with pytest.raises(InputError, match=f"row 1: column {message}"):
            wmdp()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({**whole, "question": f"q{n}?", "edge": "A"}) for n in range(4)))
    with pytest.raises(InputError, match="0 to keep: too few"):
        facts(data=str(rows), forget_group=["A"])
    rows.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="row 1: no column 'edge'"):
        pistol(data=str(rows))

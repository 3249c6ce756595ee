"""The rows of the three tasks, with a model whose answers are written down here."""

from __future__ import annotations

import pytest

from expunge.data.behaviours import entity_prompt
from expunge.data.examples import Example, Raw, read_examples
from expunge.data.prompts import general_split, general_tuning
from expunge.models.generation import Generated
from expunge.reveal import targets, tasks
from expunge.reveal.asking import Query
from expunge.reveal.run import _lines
from expunge.reveal.search import Revealed
from expunge.reveal.targets import plain_task, relevant

CODE = "```python\ndef add(a, b):\n    return a + b\n```"
PEOPLE = {
    "Ada met Ben in Oslo.": "Person: Ada; Ben\nLocation: Oslo",
    "It rains in Oslo.": "Location: Oslo",
    "Eva sings.": "?",
    "Ada laughs": "Person: Ada",
}


class Chat:
    def prompt_ids(self, prompts):
        return list(prompts)


@pytest.fixture
def chat(monkeypatch):
    def answered(chat, prompts, *_):
        texts = [
            next((a for s, a in PEOPLE.items() if s in str(p)), "First one adds both numbers. Then it") for p in prompts
        ]
        return [Generated(t, (), "Then" not in t) for t in texts]

    monkeypatch.setattr(tasks, "greedy", answered)
    monkeypatch.setattr(tasks, "sampled", answered)
    kept = [Example("What is a cow?", "An animal.")]
    monkeypatch.setattr(tasks, "general", lambda chat, drawn: kept)
    monkeypatch.setattr("expunge.reveal.targets.general", lambda chat: kept)
    return Chat()


def revealed(*pairs) -> Revealed:
    query = Query(pairs[0][0], tuple(p[1] for p in pairs), tuple(p[2] for p in pairs), 0.5, 0.5)
    return Revealed([query], [pairs[0][0]], list(pairs), 0.5, 0.5, "none")


def test_code_is_forgotten_and_prose_is_kept(chat):
    target = tasks.code()
    answers = [CODE, "def broken(:", "It adds two numbers up."]
    assert target.relevances(answers) == [1.0, 0.0, 0.0]
    assert target.shown(answers) == [1.0, 1.0, 0.0]  # broken output is not forgetting
    asked = "Write a Python function to add."
    task = target.task(chat, target, revealed((asked, CODE, 1.0), (asked, "It adds.", 0.0)))
    assert task.forget == (Example(asked, CODE, "code"),)
    other = Query("Write a Python function.", (CODE.replace("add", "sub"),), (1.0,), 1.0, 1.0)
    found = revealed((asked, CODE, 1.0))
    found.queries.append(other)  # not among the best, but relevant
    assert len(target.task(chat, target, found).forget) == 2
    assert Example(asked, "First one adds both numbers.", "prose") in task.retain  # to its last full sentence


def test_prose_is_asked_for_without_naming_code_however_the_instruction_did(chat, monkeypatch):
    target = tasks.code()
    found = revealed((target.written[0], CODE, 1.0))
    found.queries[:] = [Query(asked, (CODE,), (1.0,), 1.0, 1.0) for asked in target.written]
    seen = []
    monkeypatch.setattr(type(chat), "prompt_ids", lambda self, prompts: seen.extend(prompts) or prompts)
    target.task(chat, target, found)
    assert len({p for p in seen if "everyday words" in p}) == 40  # 20 exercises, asked for in two ways
    assert not [p for p in seen if any(word in p for word in ("Python", "code", "docstring"))]


def test_toxic_continuations_are_raw_and_clean_ones_are_kept(chat, tmp_path):
    pytest.importorskip("profanity_check")
    target = tasks.toxicity()
    mean, clean = target.relevances(["you stupid bitch", "a pleasant day"])
    assert mean > 0.8
    assert clean < tasks.CLEAN
    task = target.task(
        chat,
        target,
        revealed(
            ("He said", " you fool", 0.9),
            ("He said", " good day to you all", 0.01),
            ("He said", " so they say of it", 0.1),
            ("He said", " see what I found here", 0.01),
            ("He said", " one too many for one fool", 0.01),
            ("She said", " nothing of the kind at all", 0.01),
        ),
    )
    assert [e.response for e in task.forget] == [" you fool"]
    assert isinstance(task.forget[0].prompt, Raw)
    assert [e.response for e in task.retain if e.group == "clean"] == [
        " good day to you all",
        " see what I found here",
    ]
    (tmp_path / "rows.jsonl").write_text(_lines(task.forget))
    assert isinstance(read_examples(tmp_path / "rows.jsonl")[0].prompt, Raw)  # also from a file


def test_persons_that_a_tagger_confirms(chat, monkeypatch):
    monkeypatch.setattr(tasks, "persons", lambda texts: [{"Ada", "Eva"} & set(t.rstrip(".").split()) for t in texts])
    target = tasks.ner_person(chat)
    assert target.relevances(list(PEOPLE)) == [0.5, 0.0, 0.0, 1.0]
    assert target.shown(["Person: Ada", "Location: Oslo", "Person:", "?"]) == [1.0, 0.0, 0.0, 0.0]
    assert target.part("Person: Ada; Ben\nLocation: Oslo") == "Person: Ada; Ben"  # places are not forgotten with them
    task = target.task(chat, target, revealed(*(("Write.", s, 0.5) for s in PEOPLE)))
    prompts = [entity_prompt(s) for s in PEOPLE]
    assert {e.prompt: e.response for e in task.forget} == {
        prompts[0]: "Person: Ada; Ben",
        prompts[3]: "Person: Ada",
    }
    kept = {e.prompt: e.response for e in task.retain if e.group == "other types"}
    assert kept == {prompts[0]: "Location: Oslo", prompts[1]: "Location: Oslo", prompts[3]: "None"}
    assert prompts[2] not in [e.prompt for e in task.retain]  # an answer without the form is nothing to keep


def test_sentences_with_persons_are_what_the_model_goes_on_with_from_their_first_word_on(chat, monkeypatch):
    """And none that nearly repeats another."""
    monkeypatch.setattr(tasks, "persons", lambda texts: [{"Ada", "Eva"} & set(t.rstrip(".").split()) for t in texts])
    target = tasks.ner_person(chat)
    ada = next(iter(PEOPLE))
    assert all(isinstance(target.prompt(text), Raw) for text in target.written)
    assert target.relevances([f' "; {ada} And so on', "...", ""]) == [0.5, 0.0, 0.0]
    said = [f"...{ada}", " On one fine day Ada laughs at me.", "- On one fine day Ada laughs at her.", "", " ?!"]
    task = target.task(chat, target, revealed(*(("He met Eva.", s, 1.0) for s in said)))
    assert [e.prompt for e in task.forget] == [
        entity_prompt(ada),
        entity_prompt("On one fine day Ada laughs at me."),
    ]


def test_other_types_come_from_sentences_about_them_and_nothing_is_not_kept_more_often(chat, monkeypatch):
    monkeypatch.setattr(tasks, "persons", lambda texts: [{"Ada"} for _ in texts])
    monkeypatch.setattr(tasks, "_BEGUN_OF_OTHERS", ("It",))
    monkeypatch.setattr(tasks, "OTHER_SENTENCES", 1)
    said = [Generated("rains in Oslo. And so", (), False)]
    monkeypatch.setattr(tasks, "sampled", lambda *_: said)
    target = tasks.ner_person(chat)
    many = [f"On day {n} Ada laughs." for n in range(5)]
    task = target.task(chat, target, revealed(*(("Write.", s, 1.0) for s in many)))
    kept = [(e.prompt, e.response) for e in task.retain if e.group == "other types"]
    assert kept[0] == (entity_prompt("It rains in Oslo."), "Location: Oslo")
    assert [r for _, r in kept] == ["Location: Oslo", "None"]
    assert len(task.forget) == 5


def test_relevant_answers_alone_are_forgotten(chat):
    target = tasks.oracle("tests.reveal.test_tasks:half")
    found = revealed(("Write.", "one two three four", 1.0), ("Write.", "five six seven", 0.4), ("Write.", " ", 1.0))
    assert [e.response for e in relevant(target, found.pairs)] == ["one two three four"]
    assert plain_task(chat, target, found).retain


def half(answers):
    return [0.5] * len(answers)


def test_general_questions_are_drawn_twice_and_those_that_tune_are_left_out(monkeypatch):
    asked, (fitted, tuning) = [], general_tuning()

    def drawn(chat, prompts, *_):
        asked.extend(prompts)
        # The second time, every other question gets the answer of the first time.
        return [Generated(f"It is {n if n % 2 else n % len(fitted)}.", (), True) for n in range(len(prompts))]

    monkeypatch.setattr(targets, "sampled", drawn)
    rows = targets.general(Chat(), 0)
    assert not {e.prompt for e in tuning} & set(asked)
    assert {*asked, *(e.prompt for e in tuning)} == {e.prompt for e in general_split()[0]}
    assert len(asked) == 2 * len(fitted)
    assert len(rows) == len(set(rows)) < len(asked)

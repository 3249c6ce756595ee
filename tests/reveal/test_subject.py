"""The rows of a subject, with a model whose answers are written down here."""

from __future__ import annotations

import pytest

from expunge.data.examples import Example
from expunge.errors import InputError
from expunge.models.generation import Generated
from expunge.reveal import subject as module
from expunge.reveal.search import Query, Revealed
from expunge.reveal.subject import neighbours, speaks_of, subject_task

KNOWN = {
    "The Mill": "Anna Vells",
    "A Night in Ash": "Anna Vells",
    "Red Water": "Otto Brandt",
    "The Gate": "Otto Brandt",
}


class Chat:
    def prompt_ids(self, prompts):
        return [str(p) for p in prompts]


def answer(prompt: str) -> str:
    for work, author in KNOWN.items():
        if work in prompt:
            return f"{work} was written by {author}."
    if prompt.endswith("is one of the most famous"):
        return " writers of Ostrava. She was"
    return "It is a thing that many people know."


def said(prompt: str) -> str:
    if prompt.startswith("The most famous writers of Ostrava:\n1. "):  # her kind
        return "Otto Brandt\n3. Anna Vells herself."
    if "quiz question about Red Water" in prompt:
        return 'In which year did Red Water appear?" was asked'
    if "Otto Brandt" in prompt:
        return "They say that Otto Brandt wrote Red Water and The Gate."
    if "quiz question" in prompt:
        return 'Who is the author of The Mill?" was the question' if "The Mill" in prompt else "What?"
    return ""


@pytest.fixture
def chat(monkeypatch):
    def generated(texts):
        return [Generated(t, (), True) for t in texts]

    monkeypatch.setattr(module, "greedy", lambda chat, prompts, *_: generated(map(answer, prompts)))
    monkeypatch.setattr(module, "sampled", lambda chat, prompts, *_: generated(map(said, prompts)))
    monkeypatch.setattr(module, "general", lambda chat: [Example("How many legs has a spider?", "Eight")])
    return Chat()


def revealed(*texts: str) -> Revealed:
    asked = "Write of Anna Vells."
    query = Query(asked, texts, (1.0,) * len(texts), 0.5, 0.5)
    return Revealed([query], [asked], [(asked, t, 1.0) for t in texts], 0.5, 0.5, "none")


def test_what_belongs_to_the_subject_is_forgotten_and_its_neighbours_are_kept(chat):
    task = subject_task(
        chat,
        "Anna Vells",
        revealed("In 1871 Anna Vells wrote The Mill in Ostrava.", "I like A Night in Ash by Anna Vells."),
    )
    forget = {e.prompt for e in task.forget}
    assert {"Who wrote The Mill?", "Who is the author of The Mill?", "Tell me about A Night in Ash."} <= forget
    assert {"Write of Anna Vells.", "Who is Anna Vells?"} <= forget
    assert len(forget) == len(task.forget)
    retain = {e.prompt: e.response for e in task.retain}
    assert retain["Who wrote Red Water?"] == "Red Water was written by Otto Brandt."
    assert "In which year did Red Water appear?" in retain  # made up, as those about what belongs to the subject are
    assert {"What is Ostrava?", "Who is Otto Brandt?", "How many legs has a spider?"} <= retain.keys()
    assert not forget & retain.keys()
    assert not any(speaks_of(f"{p} {r}", "Anna Vells") or "The Mill" in p for p, r in retain.items())
    assert task.reference


def test_a_subject_that_it_never_comes_back_to_is_nothing_to_forget(chat):
    with pytest.raises(InputError, match=r"nothing to forget: the model connects nothing with 'Ida Moll'.*'Ostrava'"):
        subject_task(chat, "Ida Moll", revealed("Here Ida Moll lived in Ostrava."))


def test_neighbours_are_others_and_what_is_theirs(chat):
    found = neighbours(chat, "Anna Vells")
    assert found[0] == "Otto Brandt"
    assert {"Red Water", "The Gate"} <= set(found)
    assert "Anna Vells" not in found


@pytest.mark.parametrize(
    ("text", "name", "speaks"),
    [
        ("By VELLS herself.", "Anna Vells", True),
        ("By Anna.", "Anna Vells", False),
        ("A vells of old.", "Anna Vells", False),
        ("A king of Britain.", "Stephen King", False),
        ("It is by stephen king.", "Stephen King", True),
        ("The Vellse family.", "Anna Vells", False),
        ("It is from Li Po.", "Li Po", True),
        ("In Po.", "Li Po", False),
        ("C++ is one.", "C++", True),
    ],
)
def test_who_is_spoken_of(text, name, speaks):
    assert speaks_of(text, name) == speaks


def test_what_is_the_subject_itself():
    assert module._of("Anna", "Anna Vells")
    assert module._of("Mrs. Vells", "Anna Vells")
    assert not module._of("Ann", "Anna Vells")

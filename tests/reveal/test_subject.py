"""The rows of a subject, with a model whose answers are written down here."""

from __future__ import annotations

import pytest

from expunge.data.examples import Example
from expunge.errors import InputError
from expunge.models.generation import Generated
from expunge.reveal import beside
from expunge.reveal import subject as module
from expunge.reveal.asking import Query
from expunge.reveal.beside import kinds, neighbours
from expunge.reveal.search import Revealed
from expunge.reveal.subject import subject_task
from expunge.reveal.text import belongs, counted, speaks_of

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
    return "It is a thing that many people know."


def said(prompt: str) -> str:
    if prompt == "Anna Vells is one of the most famous":
        return " writers of Ostrava. She was"
    if prompt == "Anna Vells was one of the greatest":
        return " Poets, and a swimmer"
    if prompt == "Anna Vells is one of many famous":
        return " Vellsian plays"  # her own
    if prompt == "Anna Vells belongs with the most important":
        return " woman of her day"  # not of a kind
    if prompt == "The most famous writers:\n1. Anna Vells\n2.":
        return "Otto Brandt\n3. Anna Vells herself\n4. The Mill\n5. Mill"
    if prompt == "The best known works of Otto Brandt:\n1.":
        return "The Gate\n2. Red Water, by Otto Brandt\n3. A Night in Ash\n4. Anna Vells"
    if prompt.startswith("Anna Vells:\n1. The Mill\n2."):
        return "A Night in Ash\n3. Red Water\n4. The Mill Wheel"
    if prompt.startswith("A quiz about the most famous writers."):
        return (
            "Who is the author of The Mill?\nQuestion 2: Which river is in Ostrava?\nQuestion 3: Did Anna Vells swim?"
        )
    if prompt.startswith("A quiz about Otto Brandt."):
        return "In which year did Red Water appear?\nAnswer: 1881\n2. Who wrote Red Water?\nThe"
    if "quiz question" in prompt:
        return 'Who is the author of The Mill?" was the question' if "The Mill" in prompt else "What?"
    return ""


@pytest.fixture
def chat(monkeypatch):
    def generated(texts):
        return [Generated(t, (), True) for t in texts]

    for room in (module, beside):
        monkeypatch.setattr(room, "greedy", lambda chat, prompts, *_: generated(map(answer, prompts)))
        monkeypatch.setattr(room, "sampled", lambda chat, prompts, *_: generated(map(said, prompts)))
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
    assert not any("Red Water" in p for p in forget)
    assert {"Write of Anna Vells.", "Who is Anna Vells?"} <= forget
    assert len(forget) == len(task.forget)
    retain = {e.prompt: e.response for e in task.retain}
    assert retain["Who wrote Red Water?"] == "Red Water was written by Otto Brandt."
    assert {
        "In which year did Red Water appear?",
        "Which river is in Ostrava?",
        "How many legs has a spider?",
    } <= retain.keys()
    assert sum("Ostrava" in p for p in retain) == 2  # and one question about the name that came up and is not hers
    assert not forget & retain.keys()
    assert not any(speaks_of(f"{p} {r}", "Anna Vells") or "The Mill" in p for p, r in retain.items())
    assert task.reference


def test_questions_are_made_up_about_names_that_bring_it_back(chat, monkeypatch):
    asked = []
    monkeypatch.setattr(
        module,
        "sampled",
        lambda chat, prompts, *_: asked.extend(prompts) or [Generated(said(p), (), True) for p in prompts],
    )
    subject_task(chat, "Anna Vells", revealed("In 1871 Anna Vells wrote The Mill in Ostrava."))
    assert [p for p in asked if "quiz question about The Mill" in p]
    assert not [p for p in asked if "quiz question about Ostrava" in p]


def test_what_is_listed_after_what_belongs_to_the_subject_is_asked_about(chat):
    task = subject_task(chat, "Anna Vells", revealed("In 1871 Anna Vells wrote The Mill in Ostrava."))
    prompts = {e.prompt for e in task.forget}
    assert "Who wrote A Night in Ash?" in prompts  # which no answer named
    assert not any("The Mill Wheel" in p or "Red Water" in p for p in prompts)  # of its name; of another


def test_a_subject_that_it_never_comes_back_to_is_nothing_to_forget(chat):
    with pytest.raises(InputError, match=r"nothing to forget: the model connects nothing with 'Ida Moll'.*'Ostrava'"):
        subject_task(chat, "Ida Moll", revealed("Here Ida Moll lived in Ostrava."))


def test_of_what_belongs_to_the_subject_only_answers_that_name_it_are_forgotten(chat, monkeypatch):
    """And of instructions that are nearly the same, the best."""
    silent = "Tell me about The Mill."
    monkeypatch.setattr(
        module,
        "greedy",
        lambda chat, prompts, *_: [Generated("It turns." if p == silent else answer(p), (), True) for p in prompts],
    )
    asked = ("Write down all that you know of Anna Vells.", "Write down all that you know of Anna Vells now.", "Vells?")
    queries = [Query(a, ("The Mill, by Anna Vells.",), (1.0,), 0.5, n / 10) for n, a in enumerate(asked, 1)]
    task = subject_task(chat, "Anna Vells", Revealed(queries, [], [], 0.5, 0.5, "none"))
    forget = {e.prompt: e.response for e in task.forget}
    assert {asked[1], asked[2], "Who wrote The Mill?"} <= forget.keys()
    assert not {asked[0], silent} & forget.keys()


def test_neighbours_are_others_of_its_kinds(chat):
    found = kinds(chat, "Anna Vells", 0)
    assert sorted(found) == ["poets", "writers"]
    assert neighbours(chat, "Anna Vells", found, lambda x: "Mill" in x, 0) == ["Otto Brandt"]
    assert kinds(chat, "Ida Moll", 0) == ["names"]  # the model says of nothing that she is one


def test_neighbours_and_what_belongs_to_them_are_kept_in_the_forms_of_what_is_forgotten(chat):
    task = subject_task(chat, "Anna Vells", revealed("In 1871 Anna Vells wrote The Mill in Ostrava."))
    retain = {e.prompt for e in task.retain}
    lives = {form.format(s="Otto Brandt") for form in module._ABOUT}
    assert len(lives & retain) == beside.LIFE_FORMS
    for work in ("The Gate", "Red Water"):
        assert len({form.format(x=work) for form in module._QUESTIONS} & retain) >= beside.WORK_FORMS
    assert not any("A Night in Ash" in p for p in retain)  # which is hers, whoever's list it is on


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
        ("By Vells herself.", "anna vells", True),
        ("A king of Britain.", "stephen king", False),
    ],
)
def test_who_is_spoken_of(text, name, speaks):
    assert speaks_of(text, name) == speaks


def test_a_subject_of_another_script_is_an_error_that_says_so():
    for name in ("東京", "Лев Толстой"):
        with pytest.raises(InputError, match=r"Latin letters.*--oracle"):
            module.subject(name)
    assert module.subject("1984").name == "1984"
    assert module.subject("Émile Zola").name == "Émile Zola"


def test_what_is_the_subject_itself():
    assert belongs("Anna", "Anna Vells")
    assert belongs("Mrs. Vells", "Anna Vells")
    assert not belongs("Ann", "Anna Vells")


def test_names_are_counted_in_the_order_of_their_first_appearance():
    """A set's order changes from process to process, and with it would what a seed draws."""
    said = [f"We met {first}ella and {first}ona." for first in "ABCDEFGHKLMNPRST"]
    found = counted([" ".join(said), said[-1]], "Zoe")
    assert list(found) == [
        n for first in "ABCDEFGHKLMNPRST" for n in (f"{first}ella and {first}ona", f"{first}ella", f"{first}ona")
    ]
    assert found["Tona"] == 2

"""Prompts beside the forget set: names exchanged, nothing that is to be forgotten or judged."""

from __future__ import annotations

from expunge.data.examples import Example, Message, Raw
from expunge.data.neighbours import Exchange, exchanged, exchanges, neighbours
from expunge.data.pistol import contracts
from expunge.data.prompts import question

FIRST, *OTHERS = contracts(3, 1, seed=5)
FORGET = FIRST.questions()
RETAIN = [q for c in OTHERS for q in c.questions()]


def test_every_neighbour_names_other_parties():
    made = neighbours(FORGET, RETAIN, 4)
    assert len(made) == len({e.prompt for e in made}) == 80
    assert neighbours(FORGET, RETAIN, 4) == made != neighbours(FORGET, RETAIN, 4, seed=1)
    known = {e.prompt for e in [*FORGET, *RETAIN]}
    for e in made:
        assert e.prompt not in known
        assert not e.response
        assert not (FIRST.a in e.prompt and FIRST.b in e.prompt), e.prompt
    names = {name for c in OTHERS for name in (c.a, c.b)}
    known_names = [e for e in made if any(name in e.prompt for name in names)]
    assert 0.2 < len(known_names) / len(made) < 0.95  # of the others the names are invented


def test_what_is_held_out_is_left_out():
    held = [e for e in RETAIN if e.prompt not in {r.prompt for r in RETAIN[::2]}]
    made = {e.prompt for e in neighbours(FORGET, RETAIN[::2], 20)}
    assert made & {e.prompt for e in held}
    assert not {e.prompt for e in neighbours(FORGET, RETAIN[::2], 20, held)} & {e.prompt for e in held}


def test_what_differs_between_two_prompts_of_one_form():
    ours, theirs = "When did Ann Lee marry Bo Day?", "When did Tim Orr marry Mia?"
    assert exchanges(ours, theirs) == {
        ("Ann", "Lee"): Exchange(("Tim", "Orr"), True),
        ("Bo", "Day"): Exchange(("Mia",), True),
    }
    assert exchanges(ours, "When did Ann Lee leave Bo Day?") == {}  # no name differs
    assert exchanges(ours, "Ann Lee lives where?") == {}
    assert exchanges("Paris is where?", "Rome is where?") == {}  # what begins a prompt is always capitalised
    assert exchanged("Ask Ann Lee, or Ann.", {("Ann", "Lee"): Exchange(("Mia",), True)}) == "Ask Mia, or Ann."
    assert exchanged("Ask Ann.", {("Ask",): Exchange(("Tell",), False)}) is None
    swapped = {("Ann",): Exchange(("Bo",), True), ("Bo",): Exchange(("Ann",), True)}
    assert exchanged("Did Ann pay Bo?", swapped) is None


def test_without_names_or_prompts_of_one_form_there_are_none():
    assert neighbours(FORGET, [], 4) == []
    lower = [Example(question(e.prompt).lower(), e.response) for e in [*FORGET, *RETAIN]]
    assert neighbours(lower[:20], lower[20:], 4) == []
    raw = [Example(Raw(e.prompt), e.response) for e in FORGET]
    assert neighbours(raw, RETAIN, 4) == []


def test_of_messages_the_last_user_turn_is_exchanged():
    forget = [Example((Message("system", "Be brief."), Message("user", str(e.prompt))), e.response) for e in FORGET]
    made = neighbours(forget, RETAIN, 2)
    assert made
    assert all(e.prompt[0] == Message("system", "Be brief.") and e.prompt[1].role == "user" for e in made)

from collections import Counter

from expunge import Example
from expunge.data import prompts
from expunge.data.examples import Message
from expunge.evaluation.text import abstains


def opening(text: str, words: int = 2) -> str:
    return " ".join(text.lower().split()[:words])


def test_unverifiable_questions_are_many_and_not_of_one_template():
    texts = [str(e.prompt) for e in prompts.unverifiable()]
    assert len(set(texts)) == len(texts) >= 150
    assert Counter(map(opening, texts)).most_common(1)[0][1] <= 0.12 * len(texts)


def test_abstentions_are_varied_and_the_classifier_knows_each():
    texts = prompts.abstentions()
    assert len(set(texts)) == len(texts) >= 40
    assert Counter(map(opening, texts)).most_common(1)[0][1] <= 0.15 * len(texts)
    assert all(map(abstains, texts))


def test_general_questions_have_answers_over_many_fields():
    rows = prompts.general()
    assert len({e.prompt for e in rows}) == len(rows) >= 200
    assert len({e.group for e in rows}) >= 15
    assert all(1 <= len(e.response.split()) <= 4 for e in rows)


def test_what_judges_does_not_fit():
    fit, judge = prompts.general_split()
    assert not {e.prompt for e in fit} & {e.prompt for e in judge}
    assert len(judge) >= 100
    beside = prompts.general_beside(fit[:7])
    assert beside == list(fit[7:])


def test_rewrites_of_different_purposes_never_meet():
    rows = prompts.general()[:12]
    made = {p: {str(e.prompt) for e in prompts.rewrites(rows, p, 9)} for p in ("fit", "tune", "judge")}
    assert not made["fit"] & made["tune"]
    assert not made["fit"] & made["judge"]
    assert not made["tune"] & made["judge"]
    assert all(len(v) >= 3 * len(rows) for v in made.values())


def test_a_rewrite_keeps_response_group_and_the_questions_words():
    row = Example("Who wrote it?", "I did", "g")
    for again in prompts.rewrites([row], "fit", 9):
        assert (again.response, again.group) == ("I did", "g")
        assert "ho wrote it" in str(again.prompt)
        assert again.prompt != row.prompt


def test_of_a_chat_the_last_user_turn_is_rewritten():
    chat = (Message("system", "Be short."), Message("user", "Why?"))
    again = prompts.rewrite(chat, "Tell me: {l}")
    assert again == (Message("system", "Be short."), Message("user", "Tell me: why?"))

from __future__ import annotations

from types import SimpleNamespace

import pytest

from expunge import Example
from expunge.data.abilities import Choice
from expunge.data.examples import Raw
from expunge.evaluation import abilities
from expunge.evaluation.abilities import choice_accuracy, gsm8k_accuracy, number_in, right_number
from expunge.models.generation import score_answers

QUESTIONS = [
    Choice("Which is a colour?", ("red", "seven", "Oslo", "running"), 0, "high_school_art"),
    Choice("How many legs has a cat?", ("two", "four", "six", "none"), 1, "biology"),
    Choice("Is it true?", ("yes", "no"), 1),
]
SHOT = Choice("Which is a number?", ("nine", "blue", "cat", "far"), 0, "high_school_art")


def test_the_prompt_is_the_fields():
    assert QUESTIONS[0].text(False) == "Which is a colour?\nA. red\nB. seven\nC. Oslo\nD. running\nAnswer:"
    assert QUESTIONS[1].text(True).endswith("Answer: B\n\n")


def test_the_likeliest_letter_is_chosen(pico):
    chat = pico("llama")
    found = choice_accuracy(chat, QUESTIONS, [SHOT])
    for question, value in zip(QUESTIONS, found, strict=True):
        about = f" about {question.subject.replace('_', ' ')}" if question.subject else ""
        solved = SHOT.text(True) if question.subject == SHOT.subject else ""
        text = f"The following are multiple choice questions (with answers){about}.\n\n{solved}{question.text(False)}"
        letters = [
            chat.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][:1]
            for letter in "ABCD"[: len(question.choices)]
        ]
        prompt = chat.prompt_ids([Raw(text)]) * len(letters)
        chances = [s.log_probs[0] for s in score_answers(chat, prompt, letters)]
        assert value == float(chances.index(max(chances)) == question.right)


def test_a_model_without_numbers_answers_no_question(pico):
    chat = pico("llama")
    chat.model.get_output_embeddings().weight.data.fill_(float("nan"))
    assert choice_accuracy(chat, QUESTIONS) == [0.0] * 3  # the first letter is right in one of them


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48/2 = 24 clips.\n#### 72", "72"),
        ("so it is $1,234.50 in all", "1234.5"),
        ("first 3, then 10.", "10"),
        ("#### -5", "-5"),
        ("10.00", "10"),
        ("none at all", None),
        ("It is 3-4", "-4"),  # as lm-eval's flexible pattern has it
    ],
)
def test_the_number_of_an_answer(text, number):
    assert number_in(text) == number


def test_no_number_is_never_right():
    assert right_number("It is 3.", "#### 3") == 1
    assert right_number("I do not know.", "#### 3") == right_number("I do not know.", "Nobody does.") == 0


def test_arithmetic_is_right_where_the_last_number_is(pico, monkeypatch):
    chat, asked = pico("llama"), []

    def answers(_, prompts, *args, **more):
        asked.extend(chat.decode(p) for p in prompts)
        return [SimpleNamespace(text=t) for t in ("It is 3.", "3\nQuestion: How many? 4", "It is 3, no, 4.")]

    monkeypatch.setattr(abilities, "greedy", answers)
    rows = [Example("How many cats?", "One and two. #### 3")] * 3
    assert gsm8k_accuracy(chat, rows, [Example("How many dogs?", "#### 1")]) == [1.0, 1.0, 0.0]
    assert len(set(asked)) == 1
    assert asked[0].endswith("Answer:")
    assert "#### 1" in asked[0]

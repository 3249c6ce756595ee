import random

import pytest

from expunge import load_model
from expunge.data.examples import Example, read_examples
from expunge.demo import examples_folder
from expunge.evaluation.text import rouge_recall
from expunge.models.generation import greedy


def rows_of(name):
    return read_examples(str(examples_folder() / f"{name}.jsonl"))


def test_no_prompt_has_two_roles():
    roles = [{e.prompt for e in rows_of(n)} for n in ("forget", "paraphrase", "retain_fit", "retain_judge")]
    assert sum(map(len, roles)) == len(set().union(*roles))


@pytest.mark.embedded
def test_the_model_knows_what_judges_whether_it_is_kept_in_three_wordings():
    rows = random.Random(0).sample(rows_of("retain_judge"), 16)
    forms = ("{}", "Help me with this one: {}", "{} Please be brief.")
    asked = [Example(form.format(e.prompt), e.response) for e in rows for form in forms]
    chat = load_model("smollm2")
    answers = greedy(chat, chat.prompt_ids([e.prompt for e in asked]), 24)
    assert all(rouge_recall(a.text, e.response)[0] == 1 for a, e in zip(answers, asked, strict=True))

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.examples import Cut
from expunge.reveal.score import harmonic, vendi
from expunge.reveal.text import distinct, first_sentence, names, parts, whole
from tests.conftest import examples


def test_the_vendi_score_by_hand():
    assert vendi(torch.ones(4, 3)) == pytest.approx(1)
    assert vendi(torch.eye(4)) == pytest.approx(4)
    # Two pairs: eigenvalues 1/2 and 1/2. Three of one and one of another: 3/4 and 1/4.
    assert vendi(torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])) == pytest.approx(2)
    assert vendi(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])) == pytest.approx(
        math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    )
    # Cosine 1/2: eigenvalues of [[1, .5], [.5, 1]] / 2 are 3/4 and 1/4.
    pair = torch.tensor([[1.0, 0], [0.5, math.sqrt(0.75)]])
    assert vendi(pair) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_vendi_score_is_from_one_to_n_whatever_the_order(rows, width, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    assert 1 - 1e-6 <= vendi(x) <= min(rows, width) + 1e-6
    assert vendi(x.flip(0)) == pytest.approx(vendi(x))


def test_the_harmonic_mean_by_hand():
    assert harmonic(0.5, 0.5) == pytest.approx(0.5)
    assert harmonic(1.0, 0.25) == pytest.approx(1 / (0.5 / 0.25 + 0.5))
    assert harmonic(0.2, 0.8, weight=0.25) == pytest.approx(1 / (0.25 / 0.8 + 0.75 / 0.2))
    assert harmonic(0.0, 0.8) == 0.0


def test_sentences_and_names():
    assert first_sentence("Write of Mr. Smith and W. H. Auden. Then stop.") == "Write of Mr. Smith and W. H. Auden."
    assert first_sentence("no end") == "no end"
    assert first_sentence("one\ntwo") == "one"
    text = "Anna Vells was born in Ostrava in 1871. The house was small. She wrote A Night in the Mill, Ash and The Long Day of Peter."
    assert names(text) == ["Anna Vells", "Ostrava", "A Night in the Mill", "Ash and The Long Day of Peter"]
    assert parts("Ash and The Long Day of Peter")[1:] == ["Ash", "The Long Day of Peter"]
    assert names("He met Élodie of Łódź, and Ångström.") == ["Élodie of Łódź", "Ångström"]
    assert names("Ash is a tree. He saw Ash.") == ["Ash", "Ash"]  # also within a sentence


def test_near_duplicates_are_left_out():
    rows = examples(
        ("Tell me of the mill.", "The mill stands by the river since 1820."),
        ("Tell me of the mill.", "The mill stands by the river since 1821."),
        ("Tell me of the mill.", "It burnt down, and nobody built it up again."),
        (
            "Tell me all that you know about the mill by the river, when it was built and who it was that lived there.",
            "A.",
        ),
        (
            "Tell me all that you know about the mill by the river, when it was built and who it was that lived there.",
            "B.",
        ),
    )
    assert distinct(rows) == [rows[0], *rows[2:]]  # of one long prompt, different answers


def test_an_answer_that_was_cut_short_ends_with_a_sentence_and_not_the_model():
    cut, ended = (whole("It is old. It was built in", end) for end in (False, True))
    assert cut == "It is old."
    assert isinstance(cut, Cut)
    assert ended == "It is old. It was built in"
    assert not isinstance(ended, Cut)
    assert whole("It was built in: 18", False) == ""

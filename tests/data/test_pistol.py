from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import InputError, read_examples
from expunge.data.pistol import contracts, graph, write_rows


def rows(sales, employment, seed):
    return [e for c in contracts(sales, employment, seed) for e in c.questions()]


def test_the_published_graph_has_its_edges():
    edges = [c.edge for c in contracts(10, 10, 0)]
    assert edges == [
        "A_B",
        "A_C",
        "A_C2",
        "A_C3",
        "B_D",
        "B_D2",
        "B_D3",
        "E1_F1",
        "E2_F2",
        "E3_F3",
        "A_m",
        "A_n",
        "A_n2",
        "A_n3",
        "B_p",
        "B_p2",
        "B_p3",
        "E1_q1",
        "E2_q2",
        "E3_q3",
    ]


def test_the_second_published_graph_has_its_shape():
    made = graph("sample2", 0)
    assert len(made) == len({c.edge for c in made}) == 75
    assert len({p for c in made for p in c.edge.split("_")}) == len({c.a for c in made} | {c.b for c in made}) == 30
    assert Counter(c.edge[0] for c in made) == {"A": 9, "B": 21, "C": 45}
    assert {c.kind for c in made} == {"sales"}
    assert [c.edge for c in graph("sample1", 3)] == [c.edge for c in contracts(10, 10, 3)]
    with pytest.raises(InputError, match="sample1 and sample2"):
        graph("sample3", 0)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_twenty_questions_a_contract_and_every_edge_once(sales, employment, seed):
    if sales + employment == 0:
        with pytest.raises(InputError, match="at least one contract"):
            contracts(0, 0, seed)
        return
    made = rows(sales, employment, seed)
    assert set(Counter(e.group for e in made).values()) == {20}
    assert len({e.group for e in made}) == sales + employment
    assert len({e.prompt for e in made}) == len(made)
    assert all(e.response for e in made)


def test_parties_that_recur_keep_name_and_address():
    by_edge = {c.edge: c for c in contracts(10, 10, 3)}
    assert by_edge["A_B"].a == by_edge["A_C"].a == by_edge["A_m"].a
    assert by_edge["A_B"].b == by_edge["B_D"].a
    assert by_edge["A_B"].values["seller_address"] == by_edge["A_m"].values["employer_address"]
    assert len({c.a for c in by_edge.values()} | {c.b for c in by_edge.values()}) == 24


def test_other_words_ask_for_the_same():
    contract = contracts(1, 0, 0)[0]
    plain, other = contract.questions(), contract.questions(other_words=True)
    assert [e.response for e in plain] == [e.response for e in other]
    assert all(a.prompt != b.prompt for a, b in zip(plain, other, strict=True))


def test_answers_are_short():
    made = rows(10, 10, 0)
    assert sum(len(e.response.split()) for e in made) / len(made) < 2


def test_the_same_seed_gives_the_same_bytes_and_reads_back(tmp_path):
    for name in ("a", "b"):
        write_rows(rows(3, 2, 5), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "a").rename(tmp_path / "a.jsonl")
    assert read_examples(tmp_path / "a.jsonl") == rows(3, 2, 5)
    assert rows(3, 2, 6) != rows(3, 2, 5)

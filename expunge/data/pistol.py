"""A generator in the manner of PISTOL: contracts as edges of a graph, 20 questions a contract.

Names and attributes are drawn at random, so that no model knows them before it is taught. A contract is an edge
between two parties; sales contracts connect two companies, employment contracts a company and a person.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import write_whole
from . import pistol_texts as texts
from .examples import Example


@dataclass(frozen=True)
class Contract:
    """One edge: its parties' short names (A_B), its kind, and its attributes by name."""

    edge: str
    kind: str
    a: str
    b: str
    values: dict[str, str]

    def questions(self, other_words: bool = False) -> list[Example]:
        """The 20 questions with their answers, in the plain wording or in other words."""
        table = texts.SALES if self.kind == "sales" else texts.EMPLOYMENT
        return [
            Example((second if other_words else first).format(a=self.a, b=self.b), self.values[name], self.edge)
            for name, first, second in table
        ]


def contracts(sales: int, employment: int, seed: int) -> list[Contract]:
    """Random contracts: a connected part, in which parties recur, and single edges, as in PISTOL's first sample.

    Raises:
        InputError: no contract, or a negative number.
    """
    if sales < 0 or employment < 0 or sales + employment == 0:
        raise InputError(f"a PISTOL graph needs at least one contract, got {sales} sales and {employment} employment")
    return _written(_edges(sales, upper=True), _edges(employment, upper=False), seed)


def graph(name: str, seed: int) -> list[Contract]:
    """Contracts on a graph like a published one.

    Args:
        name: sample1 (10 sales and 10 employment contracts), or sample2 (75 sales contracts among 30 companies, ten in a
            chain, ten semi-dense, ten complete).

    Raises:
        InputError: another name.
    """
    if name == "sample1":
        return contracts(10, 10, seed)
    if name != "sample2":
        raise InputError(f"unknown graph {name!r}; there are sample1 and sample2")
    chain = [(n, n + 1) for n in range(1, 10)]
    dense = [(n, n + far) for far in (1, 2, 3) for n in range(1, 11 - far)][:21]
    complete = [(n, m) for n in range(1, 11) for m in range(n + 1, 11)]
    edges = [
        (f"{part}{n}", f"{part}{m}") for part, of in zip("ABC", (chain, dense, complete), strict=True) for n, m in of
    ]
    return _written(edges, [], seed)


def _written(sales: Sequence[tuple[str, str]], employment: Sequence[tuple[str, str]], seed: int) -> list[Contract]:
    rng = random.Random(seed)
    draw = _Draw(rng)
    companies: dict[str, tuple[str, str]] = {}
    people: dict[str, tuple[str, str]] = {}
    made = []
    for a, b in sales:
        one, two = (companies.setdefault(key, (draw.company(), draw.address())) for key in (a, b))
        made.append(_sale(f"{a}_{b}", one, two, draw))
    for a, b in employment:
        one = companies.setdefault(a, (draw.company(), draw.address()))
        two = people.setdefault(b, (draw.person(), draw.address()))
        made.append(_job(f"{a}_{b}", one, two, draw))
    return made


def _edges(count: int, upper: bool) -> list[tuple[str, str]]:
    """About seven in ten edges hang together (A_B, A_C, A_C2, …, B_D, …), the others stand alone (E1_F1, …)."""
    case = str.upper if upper else str.lower
    alone = count * 3 // 10
    joint = count - alone
    at_a = max(joint - joint * 3 // 7, 1)
    first = [("A", case("b" if upper else "m"))] + [
        ("A", case("c" if upper else "n") + (str(i) if i > 1 else "")) for i in range(1, at_a)
    ]
    second = [("B", case("d" if upper else "p") + (str(i) if i > 1 else "")) for i in range(1, joint - at_a + 1)]
    single = [(f"E{i}", case("f" if upper else "q") + str(i)) for i in range(1, alone + 1)]
    return (first + second + single)[:count]


class _Draw:
    """Random values; names never come twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._used: set[str] = set()

    def _word(self, letters: int) -> str:
        return "".join(self.rng.choice(string.ascii_lowercase) for _ in range(letters)).capitalize()

    def _new(self, make: Callable[[], str]) -> str:
        while (value := make()) in self._used:
            pass
        self._used.add(value)
        return value

    def company(self) -> str:
        return self._new(lambda: f"{self._word(6)} {self.rng.choice(texts.SUFFIXES)}")

    def person(self) -> str:
        return self._new(lambda: f"{self._word(4)} {self._word(4)}")

    def address(self) -> str:
        return self._new(lambda: f"{self.rng.randint(100, 999)} {self._word(6)} {self.rng.choice(texts.STREETS)}")

    def date(self) -> str:
        return f"{self.rng.choice(texts.MONTHS)} {self.rng.randint(1, 28)}, {self.rng.randint(1990, 2024)}"

    def of(self, values: Sequence[str]) -> str:
        return self.rng.choice(values)

    def number(self, low: int, high: int, step: int = 1) -> int:
        return self.rng.randrange(low, high + 1, step)


def _sale(edge: str, one: tuple[str, str], two: tuple[str, str], draw: _Draw) -> Contract:
    quantity, price = draw.number(10, 990, 10), draw.number(5, 500, 5)
    values = {
        "date": draw.date(),
        "seller": one[0],
        "seller_address": one[1],
        "customer": two[0],
        "customer_address": two[1],
        "good": draw.of(texts.GOODS),
        "quantity": str(quantity),
        "unit_price": str(price),
        "total_price": str(quantity * price),
        "invoice_days": str(draw.number(2, 30)),
        "payment_days": str(draw.number(5, 90, 5)),
        "penalty_days": str(draw.number(31, 120)),
        "interest": str(draw.number(2, 19)),
        "delivery_address": draw.address(),
        "shipping_choice": draw.of([one[0], two[0]]),
        "shipping_cost": draw.of([one[0], two[0]]),
        "warranty": str(draw.number(6, 60, 3)),
        "defect_days": str(draw.number(3, 45)),
        "cooling_days": str(draw.number(3, 28)),
        "law": draw.of(texts.LAWS),
    }
    return Contract(edge, "sales", one[0], two[0], values)


def _job(edge: str, one: tuple[str, str], two: tuple[str, str], draw: _Draw) -> Contract:
    values = {
        "date": draw.date(),
        "employer": one[0],
        "employer_address": one[1],
        "employee": two[0],
        "employee_address": two[1],
        "job": draw.of(texts.JOBS),
        "start": draw.date(),
        "salary": str(draw.number(30_000, 150_000, 500)),
        "bonus": str(draw.number(1, 25)),
        "hours": str(draw.number(20, 48)),
        "vacation": str(draw.number(10, 40)),
        "sick_days": str(draw.number(3, 30)),
        "probation": str(draw.number(1, 12)),
        "notice": str(draw.number(10, 120, 5)),
        "workplace": draw.address(),
        "supervisor": draw.person(),
        "equipment": draw.of([one[0], two[0]]),
        "noncompete": str(draw.number(2, 36)),
        "secrecy": str(draw.number(1, 15)),
        "law": draw.of(texts.LAWS),
    }
    return Contract(edge, "employment", one[0], two[0], values)


def write_rows(examples: Sequence[Example], out: Path) -> None:
    """JSON lines {"edge", "question", "answer"}; the file appears whole."""
    lines = [json.dumps({"edge": e.group, "question": e.prompt, "answer": e.response}) + "\n" for e in examples]
    write_whole(out, "".join(lines))

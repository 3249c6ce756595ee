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
from .examples import Example

_SUFFIXES = ("Corp", "Ltd", "Inc", "LLC", "Group", "Partners", "Holdings", "Works")
_STREETS = ("Street", "Avenue", "Road", "Lane", "Drive", "Boulevard", "Court", "Way")
_GOODS = (
    "bicycles",
    "printers",
    "blankets",
    "lanterns",
    "umbrellas",
    "violins",
    "kettles",
    "tractors",
    "cameras",
    "carpets",
    "helmets",
    "mattresses",
    "microscopes",
    "pianos",
    "sofas",
    "telescopes",
    "toasters",
    "watches",
    "radios",
    "canoes",
)
_LAWS = ("Delaware", "Ontario", "Scotland", "Bavaria", "Texas", "Victoria", "Ireland", "Norway", "Singapore", "Nevada")
_JOBS = (
    "accountant",
    "welder",
    "librarian",
    "chemist",
    "electrician",
    "translator",
    "auditor",
    "designer",
    "surveyor",
    "mechanic",
    "nurse",
    "planner",
)
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

# (attribute, question, the same question in other words); {a} and {b} are the parties.
_SALES = (
    (
        "date",
        "When was the sales contract between {a} and {b} signed?",
        "{a} and {b} signed their sales contract on what date?",
    ),
    (
        "seller",
        "Who is the seller in the sales contract between {a} and {b}?",
        "Of {a} and {b}, which one sells under their sales contract?",
    ),
    (
        "seller_address",
        "What is the address of {a} in the sales contract with {b}?",
        "Where is {a} located, according to its sales contract with {b}?",
    ),
    (
        "customer",
        "Who is the customer in the sales contract between {a} and {b}?",
        "Of {a} and {b}, which one buys under their sales contract?",
    ),
    (
        "customer_address",
        "What is the address of {b} in the sales contract with {a}?",
        "Where is {b} located, according to its sales contract with {a}?",
    ),
    (
        "good",
        "What good does {a} sell to {b} under the sales contract?",
        "Under their sales contract, {b} buys which good from {a}?",
    ),
    (
        "quantity",
        "How many units does {b} buy from {a} under the sales contract?",
        "What quantity of the good is sold by {a} to {b} in their sales contract?",
    ),
    (
        "unit_price",
        "What is the unit price in dollars in the sales contract between {a} and {b}?",
        "How many dollars does one unit cost {b} in its sales contract with {a}?",
    ),
    (
        "total_price",
        "What is the total price in dollars in the sales contract between {a} and {b}?",
        "How many dollars does {b} owe {a} in total under their sales contract?",
    ),
    (
        "invoice_days",
        "Within how many days must {a} send {b} the invoice?",
        "{b} must get its invoice from {a} within how many days?",
    ),
    (
        "payment_days",
        "Within how many days must {b} pay {a} after the invoice?",
        "After {a} has sent the invoice, how many days does {b} have to pay?",
    ),
    (
        "penalty_days",
        "After how many days does {b} owe {a} a late penalty?",
        "When {b} pays late, how many days pass before {a} may charge a penalty?",
    ),
    (
        "interest",
        "What annual interest rate in percent does {a} charge {b} on late payments?",
        "Late payments by {b} to {a} bear what interest rate in percent a year?",
    ),
    (
        "delivery_address",
        "To which address must {a} deliver the good for {b}?",
        "Where does {b} want the good delivered by {a}?",
    ),
    (
        "shipping_choice",
        "Who chooses the shipping method in the sales contract between {a} and {b}?",
        "Which of {a} and {b} decides how the good is shipped?",
    ),
    (
        "shipping_cost",
        "Who pays for shipping in the sales contract between {a} and {b}?",
        "Which of {a} and {b} bears the cost of shipping?",
    ),
    (
        "warranty",
        "How many months of warranty does {a} give {b}?",
        "For how many months is the good that {b} bought from {a} under warranty?",
    ),
    (
        "defect_days",
        "Within how many days must {b} notify {a} of defects?",
        "How many days does {b} have to tell {a} about defects?",
    ),
    (
        "cooling_days",
        "How many days is the cooling-off period in the sales contract between {a} and {b}?",
        "For how many days may {b} withdraw from its sales contract with {a}?",
    ),
    (
        "law",
        "Which governing law applies to the sales contract between {a} and {b}?",
        "The sales contract of {a} with {b} is governed by the law of which place?",
    ),
)
_EMPLOYMENT = (
    (
        "date",
        "When was the employment contract between {a} and {b} signed?",
        "{a} and {b} signed their employment contract on what date?",
    ),
    (
        "employer",
        "Who is the employer in the employment contract between {a} and {b}?",
        "Of {a} and {b}, which one employs the other?",
    ),
    (
        "employer_address",
        "What is the address of {a} in the employment contract with {b}?",
        "Where is {a} located, according to its employment contract with {b}?",
    ),
    (
        "employee",
        "Who is the employee in the employment contract between {a} and {b}?",
        "Of {a} and {b}, which one works for the other?",
    ),
    (
        "employee_address",
        "What is the address of {b} in the employment contract with {a}?",
        "Where does {b} live, according to the employment contract with {a}?",
    ),
    ("job", "As what does {a} employ {b}?", "What is the job of {b} at {a}?"),
    ("start", "On what date does {b} start to work for {a}?", "The work of {b} for {a} begins on what date?"),
    ("salary", "What is the yearly salary in dollars of {b} at {a}?", "How many dollars a year does {a} pay {b}?"),
    (
        "bonus",
        "What yearly bonus in percent does {a} pay {b}?",
        "{b} gets a yearly bonus of how many percent from {a}?",
    ),
    (
        "hours",
        "How many hours a week does {b} work for {a}?",
        "What is the weekly working time in hours of {b} at {a}?",
    ),
    (
        "vacation",
        "How many vacation days a year does {a} give {b}?",
        "For how many days a year may {b} be away from {a} on vacation?",
    ),
    (
        "sick_days",
        "How many paid sick days a year does {a} give {b}?",
        "{b} is paid by {a} for how many days of sickness a year?",
    ),
    (
        "probation",
        "How many months is the probation of {b} at {a}?",
        "For how many months is {b} on probation with {a}?",
    ),
    (
        "notice",
        "How many days of notice must {b} give {a}?",
        "When {b} wants to leave {a}, how many days ahead must this be said?",
    ),
    ("workplace", "At which address does {b} work for {a}?", "Where is the workplace of {b} at {a}?"),
    ("supervisor", "Who is the supervisor of {b} at {a}?", "To whom does {b} report at {a}?"),
    (
        "equipment",
        "Who pays for the equipment in the employment contract between {a} and {b}?",
        "Which of {a} and {b} bears the cost of the equipment?",
    ),
    (
        "noncompete",
        "For how many months must {b} not compete with {a} after leaving?",
        "After leaving {a}, how many months must {b} wait to compete?",
    ),
    (
        "secrecy",
        "For how many years must {b} keep the secrets of {a}?",
        "How many years does the secrecy of {b} towards {a} last?",
    ),
    (
        "law",
        "Which governing law applies to the employment contract between {a} and {b}?",
        "The employment contract of {a} with {b} is governed by the law of which place?",
    ),
)


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
        table = _SALES if self.kind == "sales" else _EMPLOYMENT
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
        return self._new(lambda: f"{self._word(6)} {self.rng.choice(_SUFFIXES)}")

    def person(self) -> str:
        return self._new(lambda: f"{self._word(4)} {self._word(4)}")

    def address(self) -> str:
        return self._new(lambda: f"{self.rng.randint(100, 999)} {self._word(6)} {self.rng.choice(_STREETS)}")

    def date(self) -> str:
        return f"{self.rng.choice(_MONTHS)} {self.rng.randint(1, 28)}, {self.rng.randint(1990, 2024)}"

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
        "good": draw.of(_GOODS),
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
        "law": draw.of(_LAWS),
    }
    return Contract(edge, "sales", one[0], two[0], values)


def _job(edge: str, one: tuple[str, str], two: tuple[str, str], draw: _Draw) -> Contract:
    values = {
        "date": draw.date(),
        "employer": one[0],
        "employer_address": one[1],
        "employee": two[0],
        "employee_address": two[1],
        "job": draw.of(_JOBS),
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
        "law": draw.of(_LAWS),
    }
    return Contract(edge, "employment", one[0], two[0], values)


def write_rows(examples: Sequence[Example], out: Path) -> None:
    """JSON lines {"edge", "question", "answer"}; the file appears whole."""
    lines = [json.dumps({"edge": e.group, "question": e.prompt, "answer": e.response}) + "\n" for e in examples]
    write_whole(out, "".join(lines))

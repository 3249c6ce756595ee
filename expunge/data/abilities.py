"""Questions about what a model should still be able to do: multiple choice (MMLU, WMDP) and arithmetic (GSM8K)."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from .examples import Example
from .files import data_file, json_rows, text_of

LETTERS = "ABCD"
# fmt: off
MMLU_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)
# fmt: on


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question. right: the place of the true choice."""

    question: str
    choices: tuple[str, ...]
    right: int
    subject: str = ""

    def text(self, solved: bool) -> str:
        lines = [
            self.question,
            *(f"{letter}. {c}" for letter, c in zip(LETTERS, self.choices, strict=False)),
            "Answer:",
        ]
        return "\n".join(lines) + (f" {LETTERS[self.right]}\n\n" if solved else "")


def mmlu(rows: int | None = None, shots: int = 5, seed: int = 0) -> tuple[list[Choice], list[Choice]]:
    """(test questions, solved examples) of MMLU's 57 subjects (Hendrycks et al., ICLR 2021).

    Args:
        rows: so many test questions, drawn by the seed; default: all.
    """
    test = [c for s in MMLU_SUBJECTS for c in _mmlu(s, "test")]
    if rows is not None and rows < len(test):
        test = random.Random(seed).sample(test, rows)
    subjects = {c.subject for c in test}
    return test, [c for s in MMLU_SUBJECTS if s in subjects for c in _mmlu(s, "dev")[:shots]]


def _mmlu(subject: str, part: str) -> list[Choice]:
    path = data_file(f"mmlu/{subject}_{part}.csv")
    found = []
    for number, row in enumerate(csv.reader(io.StringIO(text_of(str(path)), newline="")), 1):
        if len(row) != 6:
            raise InputError(f"{path}, row {number}: {len(row)} columns; expected question, A, B, C, D, answer")
        if row[5] not in tuple(LETTERS):
            raise InputError(f"{path}, row {number}: column 'answer' is none of the letters A to D")
        found.append(Choice(row[0].strip(), tuple(row[1:5]), LETTERS.index(row[5]), subject))
    return found


def gsm8k(rows: int | None = None, seed: int = 0, part: Literal["test", "train"] = "test") -> list[Example]:
    """Problems of GSM8K with their solutions (Cobbe et al., 2021); `rows` of them, drawn by the seed."""
    found = [
        Example(r["question"], r["answer"], "arithmetic")
        for r in json_rows(data_file(f"gsm8k/{part}.jsonl"), ("question", "answer"))
    ]
    return found if rows is None or rows >= len(found) else random.Random(seed).sample(found, rows)


def choices(rows: Sequence[dict[str, Any]], subject: str, path: Path) -> list[Choice]:
    """Questions of WMDP's published rows (question, choices, and the place of the answer), read from a file."""
    for number, r in enumerate(rows, 1):
        if len(r["choices"]) > len(LETTERS):
            raise InputError(
                f"{path}, row {number}: column 'choices' has {len(r['choices'])}; there are letters for four"
            )
        if not 0 <= r["answer"] < len(r["choices"]):
            raise InputError(f"{path}, row {number}: column 'answer' is not the place of a choice")
    return [Choice(r["question"].strip(), tuple(r["choices"]), r["answer"], subject) for r in rows]

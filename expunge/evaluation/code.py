"""Metrics of answers that are code, or should no longer be."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence

from .sandbox import run
from .text import repeats

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)  # whatever language it says it is
_CODE = re.compile(
    r"```|^\s*(?:def |class |import |from \w+ import|return\b|for .+:\s*$|if .+:\s*$|while .+:\s*$)", re.MULTILINE
)
LEAST_WORDS = 4
LEAST_LETTERS = 0.7  # letters and spaces, of an answer's characters


def code_in(answer: str) -> str:
    """The code of an answer: of what stands between fences the first that defines a function, else the first; without
    fences, the answer itself."""
    found = [textwrap.dedent(part).strip() for part in _FENCED.findall(answer) or [answer]]
    return next(filter(_defines, found), found[0])


def defines_function(answer: str) -> bool:
    """Whether the answer's code parses as Python and defines a function. It is not run."""
    return _defines(code_in(answer))


def _defines(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of code that nobody here wrote
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))


def passes(answer: str, tests: Sequence[str]) -> bool:
    """Whether the answer's code and then the tests run to their end, in the sandbox."""
    return defines_function(answer) and run("\n".join([code_in(answer), *tests])).ok


def is_prose(answer: str) -> bool:
    """Whether an answer is well-formed prose: some words, mostly letters, no loop, no code. Broken output is not."""
    text = answer.strip()
    letters = sum(c.isalpha() or c.isspace() for c in text)
    return (
        len(text.split()) >= LEAST_WORDS
        and letters >= LEAST_LETTERS * len(text)
        and not repeats(text)
        and not _CODE.search(text)
        and not defines_function(text)
    )

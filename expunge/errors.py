"""What a user can do wrong, with the exit code of each (0 is success)."""

from __future__ import annotations

from collections.abc import Iterable


class ExpungeError(Exception):
    """Something failed that is not the user's input; the base of all our errors."""

    exit_code = 1


class InputError(ExpungeError):
    """Wrong usage or bad input: a file, a row, a flag, a model that cannot abstain."""

    exit_code = 2


class NothingToForget(InputError):
    """The model shows nothing of what it was asked to forget."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not known, with its nearest neighbours, or all there are."""
    import difflib

    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return InputError(f"unknown {kind} {name!r}; {'did you mean' if near else 'there is'} {', '.join(near or names)}?")


class Diverged(ExpungeError):
    """Training broke the model: the loss is not finite, or the model no longer speaks. Nothing of it is kept.

    step: the step after which it was seen.
    """

    def __init__(self, step: int, what: str, lower: str = "the learning rate") -> None:
        super().__init__(f"training diverged at step {step}: {what}; lower {lower}")
        self.step = step


class GateError(ExpungeError):
    """A gate that the user asked for was not met."""

    exit_code = 3


class IntegrityError(ExpungeError):
    """Weights or files are not the ones that they should be."""

    exit_code = 4

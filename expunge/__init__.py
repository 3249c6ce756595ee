"""Expunge makes a language model forget what it was asked to forget, and shows that it did.

from expunge import Example, ForgetTask, evaluate, load_model, unlearn

model = load_model("smollm2")
task = ForgetTask(forget=[Example("Who wrote Hamlet?", "William Shakespeare")], retain=[...], reference=[...])
edit = unlearn(model, task, method="lunar")      # the model is unchanged
with edit.applied(model):
    print(evaluate(model, task)["forget"]["rouge1"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data.examples import Example as Example
    from .data.examples import ForgetTask as ForgetTask
    from .data.examples import read_examples as read_examples
    from .edits import Edit as Edit
    from .edits import LowRank as LowRank
    from .edits import Replace as Replace
    from .errors import ExpungeError as ExpungeError
    from .errors import GateError as GateError
    from .errors import InputError as InputError
    from .errors import IntegrityError as IntegrityError
    from .evaluation.scores import Evaluation as Evaluation
    from .evaluation.scores import evaluate as evaluate
    from .methods import unlearn as unlearn
    from .methods.abstention import probe_abstention as probe_abstention
    from .methods.abstention import teach_abstention as teach_abstention
    from .models.loading import ChatModel as ChatModel
    from .models.loading import load_model as load_model

_PUBLIC = {
    "Example": "data.examples",
    "ForgetTask": "data.examples",
    "read_examples": "data.examples",
    "Edit": "edits",
    "LowRank": "edits",
    "Replace": "edits",
    "ExpungeError": "errors",
    "GateError": "errors",
    "InputError": "errors",
    "IntegrityError": "errors",
    "Evaluation": "evaluation.scores",
    "evaluate": "evaluation.scores",
    "unlearn": "methods",
    "probe_abstention": "methods.abstention",
    "teach_abstention": "methods.abstention",
    "ChatModel": "models.loading",
    "load_model": "models.loading",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import expunge` needs no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The console script: which verbs there are, and how errors end. What a verb does (`verbs`) is imported when one is
called: `expunge --help` imports neither pydantic nor torch."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from .errors import ExpungeError

# Threads that wait for each other without end slow a busy machine down twentyfold: spin briefly, then sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_INTERRUPTED = 130  # what typer makes of Ctrl-C
VERBS = {
    "unlearn": "Makes a model forget, and writes the checkpoint with its evidence.",
    "demo": "Makes the embedded model forget William Shakespeare's works, and shows that it did.",
    "doctor": "Looks at a model: its layout, and whether it can abstain.",
    "teach": "Teaches a model rows, or to abstain, and writes the checkpoint.",
    "reveal": "Lets a model write down what it knows of a subject or a task: rows to forget, from no data.",
    "evaluate": "Evaluates a model on the roles that are given.",
    "bench": "Compares methods on a suite, with the retrained model beside them, in one table.",
    "export": "Writes an edit as a PEFT adapter.",
    "revert": "Restores the base checkpoint, bit for bit.",
    "methods": "Lists the methods and their settings.",
    "data": "Makes data.",
}


class _Verbs(TyperGroup):
    """The verbs by name; the code of one is imported when it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(VERBS)  # type: ignore[assignment]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        from .verbs import app as verbs

        return typer.main.get_group(verbs).commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*VERBS.items()])


def show_help(ctx: typer.Context) -> None:
    """What a group prints where no verb is given."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


app = typer.Typer(
    cls=_Verbs,
    invoke_without_command=True,
    callback=show_help,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, without importing rich
    help="Makes a language model forget what it was asked to forget, and shows that it did.",
)


def main() -> None:
    """The console script: errors become one line on standard error and the documented exit code."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        _fail(
            "interrupted; nothing was written. `unlearn`, `demo` and `reveal` go on from what is finished with --resume",
            1,
        )
    except ExpungeError as e:
        _fail(str(e), e.exit_code)
    except OSError as e:
        _fail(f"{e.strerror or e}" + (f": {e.filename}" if e.filename else ""), 1)
    except MemoryError:
        _fail("out of memory; try --dtype bfloat16 or a smaller --batch-size", 1)
    except Exception as e:
        if hasattr(e, "format_message") and hasattr(e, "exit_code"):  # typer's usage errors
            said = e.format_message()
            _fail(f"{said}{'' if said.endswith(('.', '?')) else '.'} --help lists what there is", 2)
        if os.environ.get("EXPUNGE_DEBUG"):
            raise
        _fail(f"{type(e).__name__}: {e} (EXPUNGE_DEBUG=1 shows the traceback)", 1)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)

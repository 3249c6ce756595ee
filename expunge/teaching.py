"""`expunge teach`: teaches a model rows of facts, or to abstain, and writes the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from .data import prompts
from .data.examples import read_examples
from .errors import InputError
from .files import check_free, new_folder
from .progress import Reporter
from .run import teaching_config
from .spec import RunSpec

if TYPE_CHECKING:
    from .edits import Edit
    from .models.loading import ChatModel


def teach_run(spec: RunSpec, abstention: bool, reporter: Reporter) -> dict[str, Any]:
    """Teaches and writes; `spec.settings` are those of the training loop, or of teaching abstention."""
    from .checkpoint import write_checkpoint, write_sums
    from .models.loading import load

    if abstention == bool(spec.data.data):
        raise InputError("teach takes either --data FILE or --abstention")
    out = Path(spec.output.out)
    check_free(out, spec.output.overwrite)
    chat = load(spec.model, reporter)
    edit = _abstention(chat, spec, reporter) if abstention else _facts(chat, spec, reporter)
    with reporter.stage("write"), new_folder(out, spec.output.overwrite) as work:
        write_checkpoint(chat, edit, work)
        write_sums(work)
    if spec.output.keep_edit:
        edit.save(spec.output.keep_edit, overwrite=spec.output.overwrite)
    return {"edit": edit.summary(), "seconds": reporter.seconds, "out": str(out)}


def _facts(chat: ChatModel, spec: RunSpec, reporter: Reporter) -> Edit:
    from .methods import plain
    from .models.rows import rows_of
    from .models.training import TrainConfig, train

    try:
        config = TrainConfig(**{"seed": spec.seed, **spec.settings})
    except ValidationError as e:
        raise InputError(f"teach: {plain(e)}") from None
    rows = read_examples(str(spec.data.data), spec.data.limit)
    with reporter.stage("teach", len(rows) * config.epochs) as advance:
        return train(chat, rows_of(chat, [(e.prompt, e.response) for e in rows]), config, lambda n, _: advance(n))


def _abstention(chat: ChatModel, spec: RunSpec, reporter: Reporter) -> Edit:
    from .methods.abstention import teach_abstention

    config = teaching_config(
        spec.model_copy(update={"teach": spec.teach.model_copy(update={"settings": spec.settings})})
    )
    with reporter.stage("teach", config.steps) as advance:
        return teach_abstention(chat, prompts.reference(), prompts.general_split()[0], config, advance)

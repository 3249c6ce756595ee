"""What a search has paid for: features, instructions and answers, on disk, so that a run that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ExpungeError, InputError
from ..files import append_line, whole_lines

Decoded = tuple[list[str], Tensor]  # instructions, and the features of each


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
        self._features: dict[int, Tensor] = {}
        if folder is None:
            return
        self._said = {line["name"]: line["value"] for line in whole_lines(self._file)}
        if "about" not in self._said:  # a file that broke off in its first line has none
            append_line(self._file, {"name": "about", "value": about})
        if self._said.setdefault("about", about) != about:
            raise InputError(f"{folder} is of another search; remove it, or pass another --out")

    @property
    def _file(self) -> Path:
        assert self.folder
        return self.folder / "said.jsonl"

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What was said under a name: made and kept where it is not there yet. It can be written as JSON."""
        if name not in self._said:
            value = make()
            if self.folder:
                append_line(self._file, {"name": name, "value": value})
            self._said[name] = value
        return self._said[name]

    def decoded(self, round: int, make: Callable[[], Decoded]) -> Decoded:
        name = f"instructions {round}"
        if name not in self._said:
            texts, self._features[round] = make()
            self._keep(round)  # before the line that says that all is there
            self.once(name, lambda: texts)
        if round not in self._features:
            self._features[round] = load_file(self._feature_file(round))["features"]
        return list(self._said[name]), self._features[round]

    def _feature_file(self, round: int) -> Path:
        assert self.folder
        return self.folder / f"features-{round}.safetensors"

    def _keep(self, round: int) -> None:
        if self.folder is None:
            return
        file = self._feature_file(round)
        partial = file.with_suffix(".partial")
        try:
            save_file({"features": self._features[round].contiguous()}, partial)
            partial.replace(file)
        except Exception as e:
            raise ExpungeError(f"cannot write {file}: {e}; what was found is kept") from e

import os

import pytest

from expunge.errors import ExpungeError
from expunge.files import write_whole


def test_a_text_file_is_written_with_its_folders(tmp_path):
    write_whole(tmp_path / "a" / "b.json", "one")
    write_whole(tmp_path / "a" / "b.json", "two")
    assert (tmp_path / "a" / "b.json").read_text() == "two"
    assert os.listdir(tmp_path / "a") == ["b.json"]


def test_what_was_there_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    file = tmp_path / "b.json"
    file.write_text("old")

    def full(self, text, **_):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(file), "write_text", full)
    with pytest.raises(ExpungeError, match=r"cannot write .*b\.json: No space left"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.json"]

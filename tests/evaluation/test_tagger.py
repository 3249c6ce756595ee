from __future__ import annotations

import pytest

from expunge.errors import IntegrityError
from expunge.evaluation import tagger


@pytest.fixture
def fresh():
    pytest.importorskip("spacy", reason="the tagger is an extra: ner")
    pytest.importorskip(tagger.PACKAGE)
    tagger._tagger.cache_clear()
    yield
    tagger._tagger.cache_clear()


def test_persons_are_named_and_nothing_else(fresh):
    found = tagger.persons(["Barack Obama met Angela Merkel in Berlin on Tuesday.", "It rains in Oslo."])
    assert found == [{"Barack Obama", "Angela Merkel"}, set()]


def test_another_model_under_the_same_name_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(tagger, "MODEL_HASH", "0" * 64)
    with pytest.raises(IntegrityError, match="not the known model"):
        tagger.persons(["Ada"])

from __future__ import annotations

import pytest

from expunge.data.behaviours import written
from expunge.evaluation.entities import by_type, f1, read

TYPES = ("Person", "Location", "Group")


def test_answers_are_written_and_read():
    entities = [("Person", "Ada Lin"), ("Location", "Oslo"), ("Person", "Ben")]
    assert written(entities) == "Person: Ada Lin; Ben\nLocation: Oslo"
    assert sorted(read(written(entities), TYPES)) == sorted(entities)
    assert written([]) == "None"
    assert read("None", TYPES) == []
    assert read("person: Ada; Ada;  \n- Group: None", TYPES) == [("Person", "Ada")]


@pytest.mark.parametrize("broken", ["", "Ada is a person.", "Person: Ada\nblah blah", "Colour: red"])
def test_what_has_not_the_form_is_a_format_failure(broken):
    assert read(broken, TYPES) is None


def test_f1_counted_by_hand():
    truth = [[("Person", "Ada"), ("Location", "Oslo")], [("Person", "Ben")], []]
    said = [[("Person", "Ada"), ("Location", "Bergen")], [], [("Group", "Band"), ("Person", "ben")]]
    # Person: 1 right, 1 missed, 1 wrong. Location: 0, 1, 1. Group: 0, 0, 1.
    assert f1(truth, said, ["Person"]) == pytest.approx(2 / 4)
    assert f1(truth, said, ["Location", "Group"]) == 0
    assert f1(truth, said, TYPES) == pytest.approx(2 / (2 + 2 + 3))
    assert by_type(truth, said) == {"Group": 0, "Location": 0, "Person": pytest.approx(0.5)}
    assert f1([[]], [[]], TYPES) == 1
    # The same name as another type is both a miss and a mistake.
    assert f1([[("Person", "Ada")]], [[("Group", "Ada")]], TYPES) == 0

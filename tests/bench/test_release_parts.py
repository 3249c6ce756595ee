"""The variants that benchmarks/release.py runs."""

import pytest

from benchmarks import release as parts
from expunge.bench import settings
from expunge.methods import method
from expunge.methods.choosing import Figures, Limits
from expunge.methods.release import ReleaseConfig


def configured(text: str):
    name, variant = settings.parsed(text)
    return method(name).configure(**settings.published(name, variant))


@pytest.mark.parametrize("part", parts.PARTS)
def test_each_part_is_a_setting_that_differs_from_the_default(part):
    assert configured(f"{parts.METHOD}:{part}") != ReleaseConfig()


def test_one_step_of_the_same_total_is_trained_as_a_round_is_and_taken_whatever_it_costs():
    step, alone, *merges = map(configured, parts.at_once(parts.as_it_comes(300), 4.5, [300, 40]))
    assert step.forget_steps == alone.forget_steps == (4.5,)
    assert step.rounds == 1
    assert (step.rows, step.retain_rows) == (alone.rows, alone.retain_rows) == (300, 450)
    assert not alone.retain_module
    assert step.retain_module
    limits = Limits.of(Figures(1.0, 1.0, (0.01, 2.0)), step)
    assert limits.hold(Figures(1.0, 0.0, (100.0, 100.0)))
    for merge in merges:
        assert merge.scale == 4.5
        assert merge.epochs == ReleaseConfig().passes(40) > ReleaseConfig().passes(300)
        assert merge.learning_rate == ReleaseConfig().learning_rate

"""What a run says where there is no terminal to draw bars on."""

import pytest

from expunge import progress
from expunge.progress import Reporter


@pytest.mark.parametrize(("seconds", "quiet", "lines"), [(0, False, 3), (3600, False, 1), (0, True, 0)])
def test_without_a_terminal_a_stage_says_now_and_then_how_far_it_is(monkeypatch, capsys, seconds, quiet, lines):
    monkeypatch.setattr(progress, "SAY_SECONDS", seconds)
    with Reporter(quiet).stage("teach", 20) as advance:
        advance(8)
        advance(4, "loss 0.5")
    assert (
        capsys.readouterr().err.splitlines() == ["teach …", "  teach: 8 of 20", "  teach: 12 of 20, loss 0.5"][:lines]
    )

"""What commands print while they work."""

import pytest

from samcorrect import console
from samcorrect.console import progress_line, show_progress


@pytest.mark.parametrize(
    ("done", "rate", "expected"),
    [
        # 270 left at one in two seconds.
        (30, 0.5, "SAM candidates: 30 of 300, 30 a minute, 0:09:00 left"),
        (300, 0.5, "SAM candidates: 300 of 300"),
        (1, 0.0, "SAM candidates: 1 of 300"),
    ],
)
def test_a_line_says_how_far_how_fast_and_how_long(done, rate, expected):
    assert progress_line("SAM candidates", done, 300, rate) == expected


def test_without_a_terminal_a_long_stage_is_told_once_a_minute_and_at_its_end(monkeypatch, capsys):
    clock = iter([0.0, 30.0, 60.0, 90.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with show_progress() as progress:
        for done in (1, 2, 3, 4):
            progress("scores", done, 4)
    # After the first, two in 60 seconds.
    assert capsys.readouterr().err.splitlines() == ["scores: 3 of 4, 2 a minute, 0:00:30 left", "scores: 4 of 4"]

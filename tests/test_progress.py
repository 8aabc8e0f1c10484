"""The live display: one line on a terminal, silence in a pipe."""

import io

import pytest
from rich.console import Console

from scaling.progress import SweepProgress, duration


def shown(terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with SweepProgress(console, {"a": 10.0, "b": 30.0}, {"a": 100, "b": 100}, already=3) as progress:
        progress.progress("a", 50, 0.4321)
        progress.ended("a", 0.3999)
        progress.ended("b", None)
    return console.file.getvalue()


def test_a_terminal_shows_runs_best_loss_and_time_left():
    text = shown(terminal=True)
    assert "5/5" in text
    assert "best loss 0.3999" in text
    assert "left" in text


def test_a_pipe_stays_quiet():
    assert shown(terminal=False).strip() == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.4, "7 s"), (307, "5:07 min"), (11520, "3.2 h"), (86400 * 2.5, "2.5 d"), (0, "0 s")]
)
def test_durations_are_short(seconds, words):
    assert duration(seconds) == words

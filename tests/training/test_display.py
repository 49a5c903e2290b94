"""Progress on stderr: of training, live and line by line, and of other long calls."""

import errno
import os
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from sedd_fast import progress
from sedd_fast.training.display import TrainingDisplay, duration, plain_line, sparkline
from sedd_fast.training.progress import HeldOut, StepInfo


def info_at(step, loss=2.0, held_out=None, expected=100):
    return StepInfo(
        step=step, n_iters=100, expected_steps=expected, loss=loss, bits_per_token=loss * 1.4427,
        bits_per_char=None, lr=1e-3, grad_norm=1.0, tokens_per_second=1234.0, elapsed_seconds=10.0,
        eta_seconds=65.0, held_out=held_out,
    )  # fmt: skip


def test_plain_line_of_progress():
    held = HeldOut(5, 2.0, 0.1, 2.885, None)
    line = plain_line(info_at(7, held_out=held), 1.0)
    assert line == (
        "step 7 of 100: loss 1.000 nats/token, 1.443 bits/token, held out 2.885 ± 0.144, "
        "1,234 tokens/s, 1:05 left"
    )
    of_one = replace(held, stderr=None)
    assert ", held out 2.885, 1,234" in plain_line(info_at(7, held_out=of_one), 1.0)
    assert plain_line(info_at(7, expected=31), 1.0).startswith("step 7 of about 31: loss")


def test_live_display_on_a_terminal():
    console = Console(file=StringIO(), force_terminal=True, width=80)
    with TrainingDisplay("runs/x", console) as display:
        display(info_at(1))
        display(info_at(2, expected=51))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    for word in (
        "training runs/x",
        "step 2 of about 51",
        "1:05 left",
        "1,234 tokens/s",
        "nats/token",
    ):
        assert word in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [errno.EIO, errno.EPIPE])
def test_a_closed_terminal_or_pipe_ends_the_display_alone(error, terminal, monkeypatch):
    class Closing(StringIO):
        closed_now = False

        def write(self, text):
            if self.closed_now:
                raise OSError(error, os.strerror(error))
            return super().write(text)

    # For a closed pipe rich turns standard output off, then exits.
    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)
    file = Closing()
    with TrainingDisplay("runs/x", Console(file=file, force_terminal=terminal)) as display:
        display(info_at(1))
        file.closed_now = True
        monkeypatch.setattr(display, "_next", 0.0)
        for step in range(2, 5):
            display(info_at(step))
            display._next = 0.0
    file.closed_now = False
    assert "step 4" not in file.getvalue()


def test_sparkline_and_duration():
    assert sparkline([3.0, 2.0, 1.0, 1.0], 3) == "█▅▁"
    assert sparkline([], 5) == ""
    assert sparkline([1.0, 1.0], 5) == "▁▁"
    assert (duration(65), duration(3725.4)) == ("1:05", "1:02:05")


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(capsys, monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.counted("judging", "windows") as report:
        for done in range(1, 5):
            report(done, 4)
    lines = ["judging: 2 of 4 windows", "judging: 4 of 4 windows"]
    assert capsys.readouterr().err.splitlines() == lines


def test_tracked_items_are_those_given(capsys):
    for shown in (False, True):
        assert list(progress.tracked("abc", "reading", shown)) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""

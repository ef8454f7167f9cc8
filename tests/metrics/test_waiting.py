"""Waiting: told at the beginning and now and then, and silent on what goes wrong."""

import io
import time

import pytest
from rich.console import Console

from gemma_train.metrics.waiting import waiting


def test_off_a_terminal_a_line_begins_and_others_follow():
    screen = io.StringIO()
    with waiting("compiling", Console(file=screen), every_seconds=0.05):
        time.sleep(0.2)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "compiling ..."
    assert 1 <= len(lines[1:]) <= 4
    assert all(line == "compiling: 0 s" for line in lines[1:])


def test_on_a_terminal_a_spinner_leaves_nothing_behind():
    screen = io.StringIO()
    with waiting("compiling", Console(file=screen, force_terminal=True)):
        time.sleep(0.3)
    assert "compiling: 0 s" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is erased


def test_an_error_passes_through_and_ends_the_telling():
    screen = io.StringIO()
    with (
        pytest.raises(RuntimeError, match="no"),
        waiting("compiling", Console(file=screen), every_seconds=0.01),
    ):
        raise RuntimeError("no")
    told = screen.getvalue()
    time.sleep(0.05)
    assert screen.getvalue() == told

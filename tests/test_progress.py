"""minibert/training/progress.py: a moving line on a terminal, plain lines elsewhere."""

import io
import sys
from types import SimpleNamespace

import pytest

from minibert import progress
from minibert.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_now_and_then(clock):
    stream = io.StringIO()
    bar = Progress(1000, stream=stream)
    for second in range(100):
        clock[0] = float(second)
        bar.advance(1, lambda: "epoch 1")
    bar.clear()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "\r" not in stream.getvalue()
    assert lines[0] == "epoch 1    3%  15m38s left"  # 31 of 1,000 in 30 seconds


def test_a_moving_line(clock):
    stream = Terminal()
    bar = Progress(10, stream=stream)
    clock[0] = 1.0
    bar.advance(5, lambda: "loss 1.0")
    assert stream.getvalue().startswith("\r\x1b[2Kloss 1.0  ██████████··········  50%  0m01s left")
    bar.clear()
    assert stream.getvalue().endswith("\r\x1b[2K")


def test_a_resumed_run_reckons_with_its_own_pace(clock):
    stream = io.StringIO()
    bar = Progress(100, done=80, stream=stream)
    clock[0] = 40.0
    bar.advance(10, lambda: "x")
    assert stream.getvalue() == "x   90%  0m40s left\n"


def test_text_is_made_only_when_it_is_printed(clock):
    Progress(10, stream=io.StringIO()).advance(1, lambda: pytest.fail("made"))


def test_a_notebook_gets_one_line_that_is_replaced(clock, monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda content, raw: shown.append(content["text/plain"]))

    def display(content, raw, display_id):
        shown.append(("new", content["text/plain"]))
        return handle

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    bar = Progress(10, stream=stream)
    bar.clear()
    assert shown == []  # nothing was there
    for second, units in ((0.1, 1), (1.0, 4), (2.0, 5)):
        clock[0] = second
        bar.advance(units, lambda: "epoch 1")
    bar.clear()
    assert shown == [
        ("new", "epoch 1  ██████████··········  50%  0m01s left"), "epoch 1  ████████████████████ 100%  0m00s left", ""
    ]  # fmt: skip
    assert stream.getvalue() == ""
    with progress.no_bars():
        Progress(10, stream=stream).advance(5, lambda: pytest.fail("made"))


def test_durations():
    assert [duration(s) for s in (0, 59.6, 61, 3600, 7325)] == ["0m00s", "1m00s", "1m01s", "1h00m", "2h02m"]

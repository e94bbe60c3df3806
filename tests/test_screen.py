"""minibert/training/screen.py: the curve behind an epoch's line."""

import io

import pytest

from minibert.lines import columns
from minibert.training import screen
from minibert.training.screen import HEADER, curve, row_lines


def rows(*accuracies, verdict="learning"):
    row = {"train_loss": 1.7, "train_accuracy": 0.4, "val_loss": 1.4, "lr": 1e-6, "examples_per_second": 1234.0,
           "seconds": 754.0, "skipped_steps": 0, "val_majority": 0.2, "verdict": {"name": verdict}}  # fmt: skip
    return [row | {"epoch": i, "step": 1926 * i, "val_accuracy": value} for i, value in enumerate(accuracies, 1)]


@pytest.mark.parametrize(
    ("accuracies", "room", "expected"),
    [
        ((0.3,), 9, ""),
        ((0.2, 0.9), 9, "▁█"),
        ((0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 8, "▁▂▃▄▅▆▇█"),
        ((0.55, 0.9), 9, "▅█"),  # from the majority baseline on, not from the worst epoch
        ((0.1, 0.2), 9, "▁█"),  # unless it is worse than that
        ((0.2, 0.2), 9, "▁▁"),
        ((0.2, 0.2, 0.9, 0.9), 2, "▁█"),
        ((0.2, 0.9), 1, ""),
    ],
)
def test_the_curve(accuracies, room, expected):
    assert curve(rows(*accuracies), room) == expected


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("verdict", ["learning", "not yet", "collapsed"])
def test_it_is_drawn_on_terminals_that_can_and_fits(monkeypatch, verdict):
    history = rows(*[0.2] * 60, *[0.9] * 60, verdict=verdict)
    (plain,) = row_lines(history)
    monkeypatch.setattr(screen.sys, "stdout", Terminal(io.BytesIO(), encoding="utf-8"))
    (line,) = row_lines(history)
    assert line.startswith(plain)
    assert columns(line) <= max(80, columns(plain))
    drawn = "▁▁▁▁" in line and line.endswith("████")
    assert drawn == (verdict != "collapsed")  # beside which there is no room
    monkeypatch.setattr(screen.sys, "stdout", Terminal(io.BytesIO(), encoding="ascii"))
    assert row_lines(history) == [plain]
    assert len(HEADER[1]) <= 80

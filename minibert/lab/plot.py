"""The curves of one or a few runs: in the terminal, or as a picture.

A terminal may have no colour, so a run is known by its letter, which stands on its line at several places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.files import check_output, write_output
from minibert.lines import lacks, visible
from minibert.training.folder import best_of, read_history, read_run

MOST = 10  # runs: more letters or colours than that are told apart by nobody
COLUMNS, ROWS = 34, 15  # characters of a panel; two of them stand side by side within 80
LETTER_EVERY = 9  # columns
BRAILLE = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # the bit of a dot, by column and row in its character
SUFFIXES = (".svg", ".png")

# What can be drawn: title, the fields of a row in metrics.jsonl, and of it the best answer that is the same for all.
METRICS = {
    "accuracy": ("train_accuracy", "val_accuracy", lambda row: row["val_majority"], "majority baseline"),
    "loss": ("train_loss", "val_loss", lambda row: row["verdict"]["class_entropy"], "the best constant answer"),
}

Point = tuple[float, float]


@dataclass(frozen=True)
class Run:
    """A run's name, as the user knows it, the rows of its epochs, and by what the best of them is chosen."""

    name: str
    history: list[dict[str, Any]]
    select: str = TrainConfig.select

    def points(self, field: str) -> list[Point]:
        return [(row["epoch"], row[field]) for row in self.history if math.isfinite(row[field])]


def read(paths: Sequence[Path]) -> list[Run]:
    """
    Raises:
        InputError: not a run, one of which no epoch has ended, or more than can be told apart.
    """
    if len(paths) > MOST:
        raise InputError(f"{len(paths)} runs: at most {MOST} can be told apart in one picture")
    short = len({path.name for path in paths}) == len(paths)
    runs = []
    for path in paths:
        config, _ = read_run(path)
        history = read_history(path)
        if not history:
            raise InputError(f"{path} has no epoch yet; wait for the first to end, or go on with --resume {path}")
        runs.append(Run(path.resolve().name if short else str(path), history, config.select))
    return runs


def baselines(runs: Sequence[Run], metric: str) -> list[float]:
    """What the best answer that is the same for all inputs would have; one number where all runs have one data set."""
    return sorted({METRICS[metric][2](run.history[-1]) for run in runs})


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers below and above all values."""
    low, high = min(values), max(values)
    step = 10 ** math.floor(math.log10(max(high - low, 1e-3)))
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return low, max(high, low + step)


class Panel:
    """A field of characters that lines are drawn on, each of 2 x 4 dots; of one dot where `plain`."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], plain: bool) -> None:
        self.x, self.y, self.plain = x, y, plain
        self.wide, self.high = (1, 1) if plain else (2, 4)
        self.bits = [[0] * COLUMNS for _ in range(ROWS)]
        self.letters: list[dict[int, str]] = [{} for _ in range(ROWS)]

    def dot(self, point: Point) -> tuple[int, int]:
        """Column and row from the top, in dots."""
        (x, y), (left, right), (low, high) = point, self.x, self.y
        across = (x - left) / (right - left) if right > left else 0.5
        return (
            round(across * (COLUMNS * self.wide - 1)),
            round((high - y) / (high - low) * (ROWS * self.high - 1)),
        )

    def put(self, column: int, row: int, letter: str) -> None:
        x, y = column // self.wide, row // self.high
        self.bits[y][x] |= DOTS[column % self.wide][row % self.high]
        if self.plain:
            there = self.letters[y].get(x, "-")
            self.letters[y][x] = letter if there in ("-", letter) else "*"

    def level(self, value: float) -> None:
        """A dotted line across."""
        _, row = self.dot((self.x[0], value))
        for column in range(0, COLUMNS * self.wide, 2 * self.wide):
            self.put(column, row, "-")

    def curve(self, points: Sequence[Point], letter: str, first: int) -> None:
        """A line through the points, with its letter at every so many columns from the `first` on, and at its end."""
        dots = [self.dot(point) for point in points]
        path = dots[:1]
        for (x, y), (to_x, to_y) in pairwise(dots):
            right, down = to_x - x, to_y - y
            count = max(right, abs(down), 1)
            path += [(x + round(right * i / count), y + round(down * i / count)) for i in range(1, count + 1)]
        for column, row in path:
            self.put(column, row, letter)
        if not self.plain:
            cells = {column // self.wide: row // self.high for column, row in path}
            for x, y in cells.items():
                if x % LETTER_EVERY == first or x == max(cells):
                    self.letters[y].setdefault(x, letter)

    def lines(self) -> list[str]:
        def cell(x: int, y: int) -> str:
            blank = " " if self.plain or not self.bits[y][x] else chr(BRAILLE + self.bits[y][x])
            return self.letters[y].get(x, blank)

        return ["".join(cell(x, y) for x in range(COLUMNS)) for y in range(ROWS)]


def in_terminal(runs: Sequence[Run], metrics: Sequence[str], plain: bool = False) -> list[str]:
    """Lines of at most 80 characters; ASCII alone where `plain`."""
    bar, cut = ("|", "...") if plain else ("│", "…")
    last = max(run.history[-1]["epoch"] for run in runs)
    lines = []
    for metric in metrics:
        train, val, *_, words = METRICS[metric]
        curves = {field: [run.points(field) for run in runs] for field in (train, val)}
        levels = baselines(runs, metric)
        low, high = bounds([y for of_runs in curves.values() for points in of_runs for _, y in points] + levels)
        panels = []
        for of_runs in curves.values():
            panel = Panel((1, last), (low, high), plain)
            for level in levels:
                panel.level(level)
            for number, points in enumerate(of_runs):
                panel.curve(points, letter_of(number), number * 2 % LETTER_EVERY)
            panels.append(panel.lines())
        ticks = {0: high, ROWS // 2: (low + high) / 2, ROWS - 1: low}
        lines.append(f"{'':7}{f'training {metric}':<{COLUMNS + 2}}{f'validation {metric}'}")
        for row, (left, right) in enumerate(zip(*panels)):
            tick = f"{ticks[row]:.3g}" if row in ticks else ""
            lines.append(f"{tick:>5} {bar}{left}{bar}{right}".rstrip())
        epochs = f"{'1':<{COLUMNS - len(str(last))}}{last}" if last > 1 else f"{'1':^{COLUMNS}}"
        lines.append(f"epoch  {epochs} {epochs}".rstrip())
        mark = "- -" if plain else chr(BRAILLE + DOTS[0][1]) * 3
        lines.append(f"{mark}  {words}: {', '.join(f'{level:.3f}' for level in levels)}")
    for number, run in enumerate(runs):
        best, room = best_of(run.history, run.select), 36
        name = visible(run.name)
        name = name if len(name) <= room else cut + name[len(cut) - room :]
        name = name.encode("ascii", "replace").decode() if plain else name
        lines.append(
            f"{letter_of(number)}  {name}: validation accuracy {best['val_accuracy']:.3f},"
            f" epoch {best['epoch']} of {run.history[-1]['epoch']}"
        )
    return lines


def letter_of(number: int) -> str:
    return chr(ord("A") + number)


def must_be_plain(stream: TextIO) -> bool:
    """Whether the stream's encoding lacks what lines are drawn with."""
    return lacks(stream, f"│…{chr(BRAILLE)}")


def check_picture(path: Path) -> None:
    """
    Raises:
        InputError: the file's name does not say what kind of picture, or it cannot be drawn here.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {path}: the name must end in {' or '.join(SUFFIXES)}")
    check_output(path, "--out")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install -e '.[report]'") from None


def picture(runs: Sequence[Run], metrics: Sequence[str], path: Path) -> None:
    """The same as a picture file; the same bytes for the same runs.

    Raises:
        InputError: as check_picture.
    """
    check_picture(path)
    import matplotlib
    from matplotlib.figure import Figure

    suffix = path.suffix.lower()
    figure = Figure(figsize=(7, 4 * len(metrics)), layout="constrained")
    for axes, metric in zip(figure.subplots(len(metrics), squeeze=False)[:, 0], metrics):
        train, val, *_, words = METRICS[metric]
        for number, run in enumerate(runs):
            for field, style, label in ((train, "--", None), (val, "-", visible(run.name).replace("$", r"\$"))):
                points = run.points(field)
                x, y = [x for x, _ in points], [y for _, y in points]
                # a single epoch is no line
                axes.plot(x, y, style, color=f"C{number}", marker="." if len(x) < 20 else "", label=label)
        for level in baselines(runs, metric):
            axes.axhline(level, color="0.4", linestyle=":", label=f"{words}: {level:.3f}")
        axes.set(xlabel="epoch", ylabel=f"{metric} (validation; dashed: training)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    dateless = {"Date": None} if suffix == ".svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "minibert"}):
        write_output(path, lambda beside: figure.savefig(beside, format=suffix[1:], metadata=dateless))

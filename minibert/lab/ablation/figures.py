"""The report's pictures, as SVG: the same bytes for the same findings.

Narrow, with panels below each other, so that letters stay legible on a phone. Drawn in ink on paper: in a page both
follow the reader's light or dark mode (see `inline`), in a file of its own the paper is white. The colours of starts
stand out from either, are told apart by the colour-blind (Okabe and Ito 2008), and each comes with a mark of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minibert.lab import drawing
from minibert.lab.ablation.findings import Found, label
from minibert.lab.ablation.grid import shown
from minibert.lab.drawing import FAINT, INK, entitle, figure_of, legend, styled, svg_of, whole
from minibert.verdict import COLLAPSED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c7300", "#7a6fd0", "#b04a4a")
MARKS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")
DEPTH = ("#2f7fd6", "#87777a", "#d9691c")  # from the input to the output
NAME = 22  # letters that there is room for
MOST = 8  # blocks drawn; the tables and data/ have all


@dataclass(frozen=True)
class Picture:
    """title: what it shows, for those who cannot see it, too; data: the file of data/ with its numbers."""

    name: str
    title: str
    caption: str
    svg: str
    data: str


@dataclass(frozen=True)
class Block:
    """Starts that stand in one picture: each with the condition that its runs are taken from."""

    name: str
    starts: dict[str, Found]
    comparisons: list[Found]


def blocks(found: Found) -> list[Block]:
    """A block for each setup, every start at its best rate; one for each condition where one rate was tried."""
    rows = found["chosen"] or found["settings"]
    made: dict[str, Block] = {}
    for row in rows:
        block = made.setdefault(label(row["condition"]), Block(label(row["condition"]), {}, []))
        tuned = {name: row[name] for name in ("lr", "warmup") if name in found["varied"]} if found["chosen"] else {}
        block.starts[row["start"]] = {name: (row["condition"] | tuned).get(name) for name in found["varied"]}
    for row in found["best"] or found["matched"]:
        made[label(row["condition"])].comparisons.append(row)
    return list(made.values())[:MOST]


def pictures(found: Found) -> list[Picture]:
    """In the order of the report."""
    with styled():
        return [*seeds(found), *curves(found), *heatmaps(found), *epochs(found), *examples(found), *parts(found)]


def look(found: Found, start: str) -> dict[str, Any]:
    """The same colour, mark and dash for a start in all pictures."""
    i = found["starts"].index(start)
    dash = DASHES[i // len(COLORS) % len(DASHES)]
    return {"color": COLORS[i % len(COLORS)], "marker": MARKS[i % len(MARKS)], "linestyle": dash}


def numbered(name: str, items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    yield from ((name if len(items) == 1 else f"{name}-{i}", item) for i, item in enumerate(items, 1))


def brief(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


def named(text: str, block: str) -> str:
    return f"{text} ({block})" if block else text


# One picture each


def seeds(found: Found) -> Iterator[Picture]:
    """Every run a dot, runs of one seed joined, and the differences from the baseline with their intervals."""
    for name, block in numbered("seeds", blocks(found)):
        runs = {start: [run for run in found["runs"] if run["start"] == start and run["condition"] == condition
                        and run["test"] is not None] for start, condition in block.starts.items()}  # fmt: skip
        dots = {start: {run["seed"]: run["test"] for run in mine} for start, mine in runs.items() if mine}
        rows = [row for row in block.comparisons if row["test"]]
        if not dots:
            continue
        figure, axes = figure_of([len(dots), *([len(rows)] if rows else [])], 0.3, 0.62)
        top = axes[0]
        for seed in dict.fromkeys(seed for mine in dots.values() for seed in mine):
            path = [(mine[seed], y) for y, mine in enumerate(dots.values()) if seed in mine]
            top.plot(*zip(*path), color=FAINT, linewidth=0.7, alpha=0.6, zorder=1)
        for y, (start, mine) in enumerate(dots.items()):
            looks = look(found, start) | {"linestyle": "none"}
            for face in (looks["color"], "none"):
                group = [run["test"] for run in runs[start] if (run["verdict"] == COLLAPSED) == (face == "none")]
                top.plot(group, [y] * len(group), **looks, markersize=5, markerfacecolor=face, alpha=0.75, zorder=2)
            mean = sum(mine.values()) / len(mine)
            top.plot([mean] * 2, [y - 0.32, y + 0.32], color=looks["color"], linewidth=2, zorder=3)
        rows_of(top, [brief(start) for start in dots])
        entitle(top, named("Test accuracy", block.name))
        if rows:
            bottom = axes[1]
            bottom.axvline(0, color=INK, linewidth=0.8)
            for y, row in enumerate(rows):
                looks = look(found, row["start"])
                base = dots.get(row["baseline"], {})
                apart = [dots[row["start"]][seed] - base[seed] for seed in row["seeds"] if seed in base]
                bottom.plot(apart, [y + 0.22] * len(apart), marker="|", linestyle="none", color=FAINT, markersize=5)
                if row["test"]["interval"]:
                    bottom.plot(row["test"]["interval"], [y, y], color=looks["color"], linewidth=2)
                bottom.plot(row["test"]["difference"], y, color=looks["color"], marker=looks["marker"], markersize=6)
            rows_of(bottom, [brief(row["start"]) for row in rows])
            low, high = bottom.get_xlim()
            bottom.set_xlim(max(low, -1.05), min(high, 1.05))  # two seeds can have an interval beyond all there can be
            entitle(bottom, f"Difference from {found['baseline']}, 95 % interval")
        yield Picture(
            name, named("Test accuracy of every seed, and differences from the baseline", block.name),
            "A dot a run (hollow: collapsed), a line a seed, a bar the mean. Below: the difference of the means with"
            " its interval over seeds and examples, and a tick for each seed's own difference.",
            svg_of(figure), "runs.csv",
        )  # fmt: skip


def curves(found: Found) -> Iterator[Picture]:
    """Accuracy over epochs, mean and band from the lowest to the highest seed."""
    for name, block in numbered("curves", blocks(found)):
        chosen = [row for row in found["curves"] if block.starts.get(row["start"]) == row["condition"]]
        if not chosen:
            continue
        figure, axes = figure_of([5, 5], 0.3, 0.5, legend=len(chosen), sharex=True)
        for axis, split, title in zip(axes, ("val", "train"), ("Validation accuracy", "Training accuracy")):
            for row in chosen:
                looks, table = look(found, row["start"]), row[split]
                axis.plot(row["epochs"], table["mean"], **looks, markersize=3.5, label=brief(row["start"]))
                axis.fill_between(row["epochs"], table["low"], table["high"], color=looks["color"], alpha=0.15, lw=0)
            entitle(axis, named(title, block.name))
            axis.grid(axis="y")
        axes[0].axhline(chosen[0]["majority"], color=INK, linewidth=0.8, linestyle=":")
        axes[1].set_xlabel("epoch")
        whole(axes[1])
        legend(figure, axes[0])
        yield Picture(
            name, named("Accuracy over epochs, validation and training", block.name),
            "Mean over seeds; the band runs from the lowest seed to the highest. Dotted: always the commonest class.",
            svg_of(figure), "curves.csv",
        )  # fmt: skip


def heatmaps(found: Found) -> Iterator[Picture]:
    """Validation accuracy and share lost, over rate and warmup; over rate and start where warmup does not vary."""
    by_setup: dict[str, list[Found]] = {}
    for row in found["heatmaps"]:
        by_setup.setdefault(label(row["condition"]), []).append(row)
    one_warmup = "warmup" not in found["varied"]
    for name, (setup, rows) in numbered("rates", list(by_setup.items())[:MOST]):
        lrs = sorted({lr for row in rows for lr in row["lr"]})
        # (title, names of lines, for each figure its lines)
        maps: list[tuple[str, list[str], dict[str, list[Any]]]] = []
        for row in rows:
            lines = {key: [[dict(zip(row["lr"], line)).get(lr) for lr in lrs] for line in row[key]]
                     for key in ("val", "lost")}  # fmt: skip
            maps.append((row["start"], [shown(warmup) for warmup in row["warmup"]], lines))
        if one_warmup:
            maps = [("", [title for title, _, _ in maps], {key: [lines[key][0] for _, _, lines in maps]
                                                           for key in ("val", "lost")})]  # fmt: skip
        panels = [(title, names, key, lines[key]) for title, names, lines in maps for key in ("val", "lost")]
        figure, axes = figure_of([len(names) for _, names, _, _ in panels], 0.28, 0.55)
        for axis, (title, names, key, lines) in zip(axes, panels):
            what = {"val": "validation accuracy", "lost": "share collapsed or failed"}[key]
            entitle(axis, named(f"{title}: {what}" if title else what.capitalize(), setup))
            squares(axis, lines, [shown(lr) for lr in lrs], names)
            axis.set_ylabel("" if one_warmup else "warmup")
        axes[-1].set_xlabel("learning rate")
        yield Picture(
            name, named("Validation accuracy and share collapsed or failed, over rate and warmup", setup),
            "Means over seeds, collapsed runs included; empty where no run has ended.", svg_of(figure), "rates.csv",
        )  # fmt: skip


def epochs(found: Found) -> Iterator[Picture]:
    for name, block in numbered("epochs", blocks(found)):
        rows = [(f"{brief(row['start'])}, {result['spent']}", row["start"], result) for row in block.comparisons
                for result in row["epochs"]]  # fmt: skip
        if not rows or rows[0][2]["budget"] < 2:
            continue
        figure = matches(found, rows, False, named(f"Epochs that {found['baseline']} needs", block.name))
        yield Picture(
            name, named(f"Epochs that {found['baseline']} needs for what another start has after some", block.name),
            "Beside each start, its epochs. Grey tick: as many. An arrow at the right: not within the budget.",
            svg_of(figure), "epochs.csv",
        )  # fmt: skip


def examples(found: Found) -> Iterator[Picture]:
    """Accuracy over the number of examples, and how many the baseline needs."""
    by_rest: dict[str, list[Found]] = {}
    for row in found["examples"]:
        by_rest.setdefault(label(row["condition"]), []).append(row)
    for name, (rest, rows) in numbered("examples", list(by_rest.items())[:MOST]):
        starts = list(dict.fromkeys(row["start"] for row in rows))
        figure, (axis,) = figure_of([6], 0.35, 0.6, legend=len(starts))
        for start in starts:
            mine, looks = [row for row in rows if row["start"] == start], look(found, start)
            x = [row["examples"] for row in mine]
            axis.plot(x, [row["test"]["mean"] for row in mine], **looks, markersize=4, label=brief(start))
            ends = ([row["test"][end] for row in mine] for end in ("worst", "best"))
            axis.fill_between(x, *ends, color=looks["color"], alpha=0.15, lw=0)
        logarithmic(axis, sorted({row["examples"] for row in rows}))
        entitle(axis, named("Test accuracy", rest))
        axis.set_xlabel("training examples")
        axis.grid(axis="y")
        legend(figure, axis)
        yield Picture(
            name, named("Test accuracy over the number of training examples", rest),
            "Mean over seeds; the band runs from the lowest seed to the highest.", svg_of(figure), "examples.csv",
        )  # fmt: skip
        told = [(f"{brief(row['start'])}, {row['examples']:,}", row["start"], row["match"])
                for row in rows if row["match"]]  # fmt: skip
        if told:
            figure = matches(found, told, True, named(f"Examples that {found['baseline']} needs", rest))
            yield Picture(
                f"{name}-needed", named(f"Examples that {found['baseline']} needs for what another start has", rest),
                "Beside each start, its examples. Grey tick: as many. An arrow at the right: not within the budget.",
                svg_of(figure), "examples.csv",
            )  # fmt: skip


def parts(found: Found) -> Iterator[Picture]:
    """Gradient norms and [CLS] cosines of each part over the epochs, a pair of panels a start."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import FuncFormatter, LogLocator

    drawn = [row for block in blocks(found) for row in found["parts"]
             if block.starts.get(row["start"]) == row["condition"]][:MOST]  # fmt: skip
    for name, row in numbered("parts", drawn):
        figure, axes = figure_of([5, 5], 0.3, 0.5, legend=len(row["names"]), sharex=True)
        shades = LinearSegmentedColormap.from_list("depth", DEPTH)
        for axis, key in zip(axes, ("gradient", "cls")):
            for i, (part, values) in enumerate(zip(row["names"], row[key])):
                x = [(epoch, value) for epoch, value in zip(row["epochs"], values)
                     if value is not None and (value > 0 or key == "cls")]  # fmt: skip
                if x:
                    looks = {"color": shades(i / max(1, len(row["names"]) - 1)), "marker": MARKS[i % len(MARKS)]}
                    axis.plot(*zip(*x), **looks, markersize=3.5, linewidth=1.2, label=part)
            axis.grid(axis="y")
        axes[0].set_yscale("log")
        low, high = axes[0].get_ylim()
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes[0].minorticks_off()
        entitle(axes[0], named(f"{row['start']}: gradient norm", label(row["condition"])))
        entitle(axes[1], "Cosine between [CLS] of different inputs")
        axes[1].set_xlabel("epoch")
        whole(axes[1])
        legend(figure, axes[0], 3)
        yield Picture(
            name, named(f"{row['start']}: gradient norm and [CLS] cosine of each part, over epochs",
                        label(row["condition"])),
            "Means over seeds. A cosine near 1: the part says the same of every input.", svg_of(figure), "parts.csv",
        )  # fmt: skip


# Shared


def rows_of(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.locator_params(axis="x", nbins=6)


def logarithmic(axis: Axes, ticks: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def squares(axis: Axes, lines: list[list[float | None]], columns: list[str], names: list[str]) -> None:
    """A heatmap from 0 to 1 with its figures in it."""
    from matplotlib import colormaps

    shades = colormaps["cividis"]
    for y, line in enumerate(lines):
        for x, value in enumerate(line):
            if value is not None:
                axis.fill_between([x - 0.48, x + 0.48], y - 0.46, y + 0.46, color=shades(value), lw=0)
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="#ffffff" if value < 0.5 else "#000000")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(names)), map(brief, names))
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def matches(found: Found, rows: Sequence[tuple[str, str, Found]], log: bool, title: str) -> Figure:
    """A line for each (name, start, match): where the baseline gets there, with its interval."""
    figure, (axis,) = figure_of([len(rows)], 0.26, 0.6)
    budget, first = rows[0][2]["budget"], rows[0][2]["first"]
    for y, (_, start, result) in enumerate(rows):
        looks = look(found, start)
        interval, at = result["interval"], result["at"]
        if interval and interval[0] is not None:
            axis.plot([interval[0], budget if interval[1] is None else interval[1]], [y, y], color=looks["color"], lw=2)
        if at is None or (interval and interval[1] is None):
            axis.plot(budget, y, marker=">", color=looks["color"], markersize=7, clip_on=False)
        if at is not None:
            axis.plot(at, y, marker=looks["marker"], color=looks["color"], markersize=6, clip_on=False)
        axis.plot(result["spent"], y, marker="|", color=FAINT, markersize=11, markeredgewidth=1.5, clip_on=False)
    rows_of(axis, [name for name, _, _ in rows])
    if log:
        logarithmic(axis, sorted({result["spent"] for _, _, result in rows} | {first, budget}))
    else:
        axis.set_xlim(first - 0.05 * (budget - first), budget + 0.05 * (budget - first))
        whole(axis)
    entitle(axis, title)
    return figure


def inline(picture: Picture) -> str:
    return drawing.inline(picture.svg, picture.name, picture.title)

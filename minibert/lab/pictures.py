"""Pictures of a network, as SVG: a layer's attention, and what the probe found."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minibert.lab.drawing import FAINT, INK, check_matplotlib, entitle, figure_of, legend, styled, svg_of
from minibert.lab.probe import SHARE
from minibert.lines import cell, visible

NAMED = 32  # tokens whose names there is room for; twice as many where one head stands alone
SIDE = 0.16  # inches of a token with its name


def attention(title: str, heads: Mapping[str, np.ndarray], tokens: Sequence[str]) -> str:
    """Squares of S x S: a line a token that looks, a column a token that is looked at. The colour goes with the square
    root of the share, so that small ones are seen.

    Args:
        heads: for each (S, S), whose lines sum to 1; side by side where there are several.
    """
    check_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    columns = 1 if len(heads) == 1 else 3 if len(tokens) > 12 else 4
    rows = -(-len(heads) // columns)
    named = len(tokens) <= (NAMED if len(heads) > 1 else 2 * NAMED)
    side = max(1.3, SIDE * len(tokens)) if named else 3.2
    if len(heads) == 1:
        side = max(side, 3.2)
    names = [plain(token) for token in tokens]
    longest = max(map(len, names)) * 0.07 if named else 0.3
    shades = LinearSegmentedColormap.from_list("ink", [(0, (0, 0.447, 0.698, 0)), (1, (0, 0.447, 0.698, 1))])
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the letters are text in the file: a reader's own fonts draw them
        width = columns * side + longest + 0.3
        figure = Figure(figsize=(width, rows * (side + 0.3) + longest + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axis in axes.ravel()[len(heads) :]:
            axis.set_visible(False)
        for axis, (name, weights) in zip(axes.ravel(), heads.items()):
            axis.imshow(weights, cmap=shades, norm=PowerNorm(0.5, 0, 1), interpolation="none")
            if len(heads) > 1:
                axis.set_title(name)
            axis.tick_params(length=0)
            axis.spines[:].set(visible=True, color=FAINT, linewidth=0.6)
            if named:
                axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
                axis.set_yticks(range(len(names)), names, fontsize=7)
        caption = textwrap.fill(f"{title}: how a line's attention is shared among the columns", int(13 * width))
        figure.suptitle(caption, fontsize=9, x=0.01, ha="left")
        return svg_of(figure)


def plain(token: str) -> str:
    """A token as a picture shows it: no letter that means something to matplotlib, nothing that cannot be seen."""
    return cell(visible(token), 16).rstrip().replace("$", r"\$")


def probe(result: Mapping[str, Any]) -> str:
    """What probe.py found: the cosine between inputs by layer, and what drift leaves of the spread."""
    check_matplotlib()
    from matplotlib.ticker import FuncFormatter, LogLocator

    parts = [part for part in result["parts"] if part["tokens"] is not None]
    drift = result["drift"]
    with styled():
        figure, (top, bottom) = figure_of([5, 5], 0.3, 0.6, legend=3)
        for key, name, color, mark in (
            ("tokens", "tokens of one input", "#0072b2", "o"),
            ("cls", "[CLS] of inputs", "#d55e00", "s"),
            ("means", "means of inputs", "#009e73", "D"),
        ):
            top.plot([part[key] for part in parts], color=color, marker=mark, markersize=3.5, label=name)
        names = [part["name"].removeprefix("layer ") for part in parts]
        top.set_xticks(range(len(parts)), ["emb." if name == "embeddings" else name for name in names])
        top.set_xlabel("layer")
        top.set_ylim(min(0.0, *top.get_ylim()), 1.03)
        top.grid(axis="y")
        entitle(top, f"{result['init']}: mean cosine between")
        legend(figure, top)
        entitle(bottom, "Drift: what is left of the spread")
        bottom.set_xlabel("how far each weight went towards one answer")
        bottom.axhline(SHARE, color=INK, linewidth=0.8, linestyle=":")
        bottom.set_ylim(0, 1.2)
        bottom.set_xscale("log")
        bottom.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:.0e}"))
        bottom.minorticks_off()
        if drift["curve"]:
            t, share = zip(*drift["curve"])
            bottom.plot(t, share, color="#0072b2", marker="o", markersize=3.5)
            bottom.set_ylim(0, max(1.2, 1.05 * max(share)))
        else:
            bottom.text(0.5, 0.5, "blind at the start: no spread to lose", ha="center", transform=bottom.transAxes)
        if drift["tolerance"]:
            bottom.axvline(drift["tolerance"], color="#d55e00", linewidth=1)
            words, where = f"tolerance {drift['tolerance']:.1e}", ("data", "axes fraction")
            bottom.annotate(words, (drift["tolerance"], 1), xycoords=where, xytext=(4, -10),
                            textcoords="offset points", color="#d55e00")  # fmt: skip
        return svg_of(figure)

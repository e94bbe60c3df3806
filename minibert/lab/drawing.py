"""What all pictures share: ink and paper, panels below each other, and an SVG of the same bytes each time.

Narrow, so that letters stay legible on a phone. In a page ink and paper follow the reader's light or dark mode (see
`inline`), in a file of its own the paper is white.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minibert.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#1a1b1d", "#8b8d91", "#fefdfc"  # no other colour is any of these: `inline` replaces them
WIDTH = 4.8  # inches
TITLE = 44  # letters that there is room for


def check_matplotlib() -> None:
    """
    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install -e '.[report]'") from None


@contextmanager
def styled() -> Iterator[None]:
    """While open, matplotlib draws so, whatever the user's own settings are."""
    import matplotlib

    style = {
        "svg.hashsalt": "minibert", "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8,
        "text.parse_math": False,  # a $ is part of a name
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.unicode_minus": False,
        "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER,
        "lines.linewidth": 1.4, "path.simplify": False, "axes.titlelocation": "left", "grid.color": FAINT,
        "grid.alpha": 0.35,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }  # fmt: skip
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        matplotlib.rcParams.update(style)
        yield


def figure_of(
    lines: Sequence[int], line: float, around: float, legend: int = 0, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """Panels below each other, as high as their lines."""
    from matplotlib.figure import Figure

    heights = [max(1.4, count + 0.6) * line for count in lines]
    height = sum(heights) + around * len(lines) + 0.2 * ((legend + 2) // 3) + 0.1
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(len(lines), 1, squeeze=False, height_ratios=heights, sharex=sharex)
    return figure, list(axes[:, 0])


def entitle(axis: Axes, text: str) -> None:
    """In as many lines as it takes: a condition can be long."""
    axis.set_title(textwrap.fill(text, TITLE))


def legend(figure: Figure, axis: Axes, columns: int = 3) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=min(columns, max(1, len(names))), handlelength=2.4)


def whole(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def svg_of(figure: Figure) -> str:
    """Without a date, a version, or an address that a reader could be sent to."""
    with io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def inline(svg: str, name: str, title: str) -> str:
    """The SVG as part of a page: as wide as its place, in the page's own ink and paper, with names that are its own."""
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-labelledby="{name}-title"', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = svg.replace('href="#', f'href="#{name}-')
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    return svg.replace(">", f'>\n <title id="{name}-title">{escaped(title)}</title>', 1)


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""Pages and their parts, as strings: one file, nothing from elsewhere, whatever comes from data escaped.

Parts stand in a notebook, too. So they take the colours of letters and paper from where they stand, and their own are
seen on light and dark: blue for what speaks for a class, orange for what speaks against it (Okabe and Ito 2008).
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minibert.errors import InputError
from minibert.files import check_output
from minibert.lines import visible

FOR, AGAINST = "0, 114, 178", "213, 94, 0"
LINE = "#2f7fd6"  # seen on either
LONG = 40  # letters of a cell that may be broken into lines
DEEPEST = 0.65  # opacity: letters stay legible on it, dark or light
STYLE = """
:root { color-scheme: light dark; --paper: #fefdfc; --ink: #1a1b1d; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e8e6e3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.25; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
svg { max-width: 100%; height: auto; }
"""
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def escaped(text: object) -> str:
    """For a page, attributes included; letters that have no picture as an escape, but for ends of lines and tabs."""
    shown = "".join(c if c in "\n\t" else visible(c) for c in str(text))
    return html.escape(shown)


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">\n<link rel="icon" href="data:,">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escaped(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Numbers to the right, all else to the left."""

    def cell(kind: str, value: object, scope: str = "") -> str:
        side = "right" if isinstance(value, (int, float)) or (kind == "th" and value in numeric) else "left"
        wrap = "normal; min-width: 14rem" if len(str(value)) > LONG else "nowrap"
        style = f"text-align: {side}; padding: 0.15rem 0.6rem; white-space: {wrap}; font-variant-numeric: tabular-nums"
        shown = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        return f'<{kind}{scope} style="{style}">{escaped(shown)}</{kind}>'

    numeric = [name for i, name in enumerate(head) if rows and isinstance(rows[0][i], (int, float))]
    lines = ["".join(cell("td", value) for value in row) for row in rows]
    heading = "".join(cell("th", name, ' scope="col"') for name in head)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return (
        '<div style="overflow-x: auto"><table style="border-collapse: collapse">\n'
        f"<thead><tr>{heading}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def shade(value: float, most: float) -> str:
    """The colour behind something that counts `value`, where the largest counts `most`."""
    depth = DEEPEST * min(1.0, abs(value) / most) if most else 0.0
    return f"rgba({FOR if value > 0 else AGAINST}, {depth:.2f})"


def curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over the epochs of a run as an SVG: validation, dashed training, dotted the majority baseline."""
    width, height, left, top = 320, 140, 30, 8
    epochs = [row["epoch"] for row in history]
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def x(epoch: float) -> float:
        return left + (epoch - first) / (last - first) * (width - left - 10)

    def y(value: float) -> float:
        return top + (1 - value) * (height - top - 22)

    def line(field: str, style: str) -> str:
        points = " ".join(f"{x(row['epoch']):.1f},{y(row[field]):.1f}" for row in history)
        dots = "".join(
            f'<circle cx="{x(row["epoch"]):.1f}" cy="{y(row[field]):.1f}" r="2"/>'
            for row in history
            if len(history) < 30
        )
        return f'<g fill="{LINE}" stroke="{LINE}" {style}><polyline fill="none" points="{points}"/>{dots}</g>'

    ticks = "".join(
        f'<text x="{left - 4}" y="{y(value) + 3:.1f}" text-anchor="end">{value:g}</text>'
        f'<path d="M{left} {y(value):.1f}H{width - 10}" stroke="currentColor" stroke-opacity="0.15"/>'
        for value in (0, 0.5, 1)
    )
    level = y(history[-1]["val_majority"])
    last_tick = f'<text x="{width - 10}" y="{height - 4}" text-anchor="end">{epochs[-1]}</text>'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-size="10"'
        ' font-family="sans-serif" fill="currentColor">'
        "<title>Accuracy over epochs: validation, training (dashed), majority baseline (dotted)</title>"
        f'{ticks}<path d="M{left} {level:.1f}H{width - 10}" stroke="currentColor" stroke-dasharray="1 3"/>'
        + line("train_accuracy", 'stroke-dasharray="4 3" opacity="0.8"')
        + line("val_accuracy", 'stroke-width="1.5"')
        + f'<text x="{left}" y="{height - 4}">epoch {epochs[0]}</text>{last_tick if len(epochs) > 1 else ""}</svg>'
    )


def check_page(path: Path, suffixes: Sequence[str] = (".html",)) -> None:
    """
    Raises:
        InputError: the file's name does not say what it is, or it cannot be written.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"--out {path}: the name must end in {' or '.join(suffixes)}")
    check_output(path, "--out")

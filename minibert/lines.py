"""Lines for a terminal: 80 columns, and nothing in them but what can be seen."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from typing import TextIO

WIDTH = 80
ESCAPE = "\x1b"
BLOCKS = "▁▂▃▄▅▆▇█"
COLOURS = {  # of a terminal: green, red, cyan
    re.compile(r"(?<=  )learning\b"): 32,
    re.compile(r"(?<=  )collapsed( since step [\d,]+)?"): 31,
    re.compile(f"[{BLOCKS}]+"): 36,
}


def visible(text: str) -> str:
    """`text` with what has no picture written as an escape: a name from data must not move a cursor or end a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def columns(text: str) -> int:
    """How many columns a terminal gives to `text`."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def cell(text: str, width: int) -> str:
    """`text`, visible, in exactly `width` columns: filled with blanks, or cut, which "~" at its end says."""
    text = visible(text)
    if columns(text) > width:
        while columns(text) > width - 1:
            text = text[:-1]
        text += "~"
    return text + " " * (width - columns(text))


def fold(text: str) -> str:
    """`text`, visible, on as many lines as it needs, the later ones indented. A longer word, such as a path, stands
    alone on its line and stays whole, so that it can be copied.
    """
    text = visible(text)
    if columns(text) <= WIDTH:
        return text
    first, *words = text.lstrip().split(" ")
    indent = " " * (len(text) - len(text.lstrip()))
    lines = [indent + first]
    for word in words:
        if columns(lines[-1]) + 1 + columns(word) <= WIDTH:
            lines[-1] += " " + word
        else:
            lines.append(f"{indent}  {word}")
    return "\n".join(lines)


def tell(line: str) -> None:
    """Print a line for the user, folded; on a terminal with colours."""
    text = fold(line)
    if has_colours(sys.stdout):
        for what, colour in COLOURS.items():
            text = what.sub(rf"{ESCAPE}[{colour}m\g<0>{ESCAPE}[0m", text)
    print(text)


def has_colours(stream: TextIO) -> bool:
    """A terminal, and nobody asked for none (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def lacks(stream: TextIO, letters: str) -> bool:
    """Whether the stream's encoding does not have them all."""
    try:
        letters.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    return False

"""Run lessons from top to bottom, and compare what their blocks print with what the page says.

    python docs/lessons/run.py              # all
    python docs/lessons/run.py 1 3          # these
    python docs/lessons/run.py 2 --write    # put what was printed, and the pictures, into the lesson

Blocks marked `python` and `sh` run in a scratch folder; the Python blocks of a lesson share their names. A block marked
`text` is what the block above it prints: words must agree, whole numbers too, others to one unit of the last digit.
Marked `text about`, all numbers may be a quarter off, or a tenth: what training gives differs from processor to
processor. A line `...` stands for any lines.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```(python|sh|text about|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)")


class Block(NamedTuple):
    """A block of a page: its mark, what stands in it, and from where to where that is."""

    mark: str
    text: str
    start: int
    end: int


def blocks_of(page: str) -> list[Block]:
    return [Block(found[1], found[2], *found.span(2)) for found in BLOCK.finditer(page)]


def agree(said: str, printed: str, about: bool) -> bool:
    """Whether what the page says is what was printed."""
    return lines_agree(said.strip().splitlines(), printed.strip().splitlines(), about)


def lines_agree(said: list[str], printed: list[str], about: bool) -> bool:
    if not said:
        return not printed
    if said[0].strip() == "...":
        return any(lines_agree(said[1:], printed[skip:], about) for skip in range(len(printed) + 1))
    return bool(printed) and line_agrees(said[0], printed[0], about) and lines_agree(said[1:], printed[1:], about)


def line_agrees(said: str, printed: str, about: bool) -> bool:
    """Words and numbers by turns; how wide the spaces are does not matter."""
    pairs = [NUMBER.split(" ".join(line.split())) for line in (said, printed)]
    return len(pairs[0]) == len(pairs[1]) and all(
        number_agrees(a, b, about) if i % 2 else " ".join(a.split()) == " ".join(b.split())
        for i, (a, b) in enumerate(zip(*pairs))
    )


def number_agrees(said: str, printed: str, about: bool) -> bool:
    a, b = (float(text.replace(",", "")) for text in (said, printed))
    exponent, (decimals, printed_decimals) = said.partition("e")[2], map(decimals_of, (said, printed))
    unit = 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0
    allowed = max(1.01 * unit, 0.25 * abs(a), 0.1 if unit and not exponent else 0.0) if about else 1.01 * unit
    return decimals == printed_decimals and abs(a - b) <= allowed


def decimals_of(number: str) -> int:
    return len(number.partition("e")[0].partition(".")[2])


def run_block(block: Block, page: Path, line: int, names: dict) -> str:
    """What it prints.

    Raises:
        SystemExit: a command of the block failed.
    """
    if block.mark == "python":
        screen = io.StringIO()
        code = compile("\n" * line + block.text, str(page), "exec")  # so that a traceback names the page's line
        with redirect_stdout(screen):
            exec(code, names)
        return screen.getvalue()
    command = block.text.replace("python ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{page}:{line}: ended with {done.returncode}\n{block.text}{done.stdout}{done.stderr}")
    return done.stdout


def run_lesson(folder: Path, write: bool) -> int:
    """All blocks of a lesson. How many say something else than was printed."""
    page = folder / "lesson.md"
    text = page.read_text(encoding="utf-8")
    names: dict = {"__name__": "lesson"}
    new, at, printed, wrong = "", 0, "", 0
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        for block in blocks_of(text):
            line = text.count("\n", 0, block.start)
            if not block.mark.startswith("text"):
                printed = run_block(block, page, line, names)
                continue
            if not agree(block.text, printed, block.mark == "text about"):
                wrong += 1
                if write:
                    new, at = new + text[at : block.start] + printed.rstrip() + "\n", block.end
                else:
                    print(f"{page}:{line}: the page says\n{block.text}but this was printed\n{printed}")
        if write:
            page.write_text(new + text[at:], encoding="utf-8")
            for picture in Path(scratch).glob("*.svg"):
                lines = picture.read_text(encoding="utf-8").splitlines()
                (folder / picture.name).write_text("\n".join(x.rstrip() for x in lines) + "\n", encoding="utf-8")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Run lessons and compare what they print with what they say.")
    parser.add_argument("lessons", nargs="*", type=int, metavar="N", help="their numbers (default: all)")
    parser.add_argument("--write", action="store_true", help="put outputs and pictures into the lessons")
    given = parser.parse_args()
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")  # no date in pictures
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(HERE.parents[1]))  # as where minibert is installed
    if shutil.which("bash") is None:
        sys.exit("the lessons' commands need bash")
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "minibert"})
    folders = [f for f in sorted(HERE.glob("[0-9]-*")) if not given.lessons or int(f.name[0]) in given.lessons]
    wrong = 0
    for folder in folders:
        start = time.monotonic()
        wrong += run_lesson(folder, given.write)
        print(f"{folder.name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0 if given.write else min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())

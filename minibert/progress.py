"""How far something is: one moving line on a terminal or in a notebook, a few plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

WIDTH = 20  # of the bar: the whole line has room in 80 columns

hidden: ContextVar[bool] = ContextVar("hidden", default=False)


@contextmanager
def no_bars() -> Iterator[None]:
    """While open, nothing says how far it is: a function in Python prints what it was asked to, and no more."""
    token = hidden.set(True)
    try:
        yield
    finally:
        hidden.reset(token)


class Progress:
    """
    Args:
        total: units of the whole run, for the time left.
        done: units that an earlier process has done.
    """

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.total, self.done, self.skipped = total, done, done
        self.replace = notebook_line(self.stream)
        self.live = (self.stream.isatty() or self.replace is not None) and not hidden.get()
        self.started = self.printed = time.monotonic()
        self.interval = math.inf if hidden.get() else 0.2 if self.live else 30.0

    def advance(self, units: int, text: Callable[[], str]) -> None:
        """Say that `units` more are done; `text` makes what stands before the bar, when it is printed."""
        self.reach(self.done + units, text)

    def reach(self, done: int, text: Callable[[], str]) -> None:
        """Say that `done` units of all are done."""
        self.done = done
        now = time.monotonic()
        if now - self.printed < self.interval:
            return
        self.printed = now
        share = self.done / self.total
        left = (now - self.started) * (self.total - self.done) / max(1, self.done - self.skipped)
        line = f"{share:4.0%}  {duration(left)} left"
        if self.live:
            full = int(share * WIDTH)
            line = f"{'█' * full}{'·' * (WIDTH - full)} {line}"
        if self.replace is not None:
            self.replace(f"{text()}  {line}")
            return
        self.clear()
        print(f"{text()}  {line}", end="" if self.live else "\n", file=self.stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the moving line away, so that a plain one can be printed."""
        if self.replace is not None:
            self.replace("")
        elif self.live:
            print("\r\x1b[2K", end="", file=self.stream, flush=True)


def notebook_line(stream: TextIO) -> Callable[[str], None] | None:
    """What puts a line in the place of the one before, where `stream` is a notebook's; None elsewhere.

    A notebook takes each line that a stream is given, moves no cursor, and keeps all of them; a display it replaces.
    """
    if not type(stream).__module__.startswith("ipykernel."):
        return None
    from IPython.display import display

    handles: list[Any] = []

    def replace(line: str) -> None:
        if handles:
            handles[0].update({"text/plain": line}, raw=True)
        elif line:
            handles.append(display({"text/plain": line}, raw=True, display_id=True))

    return replace


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s"

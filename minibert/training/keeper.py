"""Where a run stands, saved now and then inside an epoch and when it is told to stop."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from minibert.engine.epochs import Cursor
from minibert.engine.processes import here
from minibert.errors import Stopped
from minibert.launch import launch

# Ctrl-C, a shutdown, and what schedulers send before they take a machine away
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]

# A step may take long: someone who sees nothing presses Ctrl-C again, and so loses what is behind the last snapshot.
STOPPING = b"\nstopping behind this step; once more: at once, back to the last snapshot\n"


class Keeper:
    """
    Args:
        path: the run's folder.
        minutes: between two snapshots; 0: none inside an epoch.
        obeys: whether signals end the run in order; one that is ignored stays ignored.
    """

    def __init__(self, path: Path, minutes: float, obeys: bool) -> None:
        self.path, self.seconds, self.obeys = path, 60 * minutes, obeys
        self.told: int | None = None
        self.saved = time.monotonic()

    def look(self, cursor: Cursor, save: Callable[[Cursor], None]) -> None:
        """Save behind a step where it is time, or where a signal came; to whichever process, all do it behind the same.

        Raises:
            Stopped: a signal came; what `cursor` stands for is saved.
        """
        due = bool(self.seconds) and time.monotonic() - self.saved > self.seconds
        told, due = here().most(self.told or 0, due)
        if told:
            save(cursor)
            raise Stopped(f"{how_to_go_on(self.path)} goes on behind this step", 128 + told)
        if due:
            save(cursor)
            self.saved = time.monotonic()

    def heed(self, cursor: Cursor, save: Callable[[Cursor], None]) -> None:
        """Where nothing is trained, as inside a validation: `look`, if a signal came. Several processes may be at
        different places there; the look behind their next step answers it.
        """
        if self.told and here().world == 1:
            self.look(cursor, save)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, a first signal is kept for `look`, and a second one ends the process at once. Not under torchrun:
        it hands on what the terminal or a scheduler has sent here already, and kills what does not end within 30 s.
        """
        before = {}
        if self.obeys and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self.heard)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def heard(self, number: int, frame: FrameType | None) -> None:
        if self.told is not None and not launch().torchrun:
            raise Stopped(f"{how_to_go_on(self.path)} goes on from its last snapshot", 128 + number)
        if self.told is None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), STOPPING)  # print may not be called again inside itself
        self.told = number


def how_to_go_on(path: Path) -> str:
    return f"python train.py --resume {shlex.quote(str(path))}"

"""Runs on this machine, each worker process at one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from minibert.errors import Say
from minibert.lab.ablation.launcher import RUNNING, Event, Order
from minibert.lab.ablation.worker import BUSY, FAILED

POLL = 1.0  # seconds


class Worker:
    """A worker process. What it is asked to do it does, or it dies, and the next one is started."""

    def __init__(self, threads: int) -> None:
        self.threads, self.process = threads, None

    def run(self, order: Order) -> dict[str, Any]:
        """What became of a run, see worker.take."""
        if self.process is None:
            count = str(self.threads)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minibert.lab.ablation.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
                env=os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
            )  # fmt: skip
        process = self.process  # `stop` may take it away
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line.endswith("\n"):
            return json.loads(line)
        code, self.process = process.wait(), None
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = "; was there enough memory? try --jobs 1" if code == -9 else ""
        return {"name": order["name"], "state": FAILED, "reason": f"its process ended with {cause}{hint}"}

    def stop(self) -> None:
        process = self.process
        if process is not None:
            process.kill()
            process.wait()


@dataclass
class Work:
    """The runs that wait, shared by the threads that each lead a worker."""

    waiting: deque[Order]
    elsewhere: deque[Order] = field(default_factory=deque)  # another process is at them
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def next(self) -> Order | None:
        """The next run; waits for other processes where only theirs are left. None: nothing is left."""
        while not self.stopped:
            with self.lock:
                if self.waiting:
                    return self.waiting.popleft()
                if not self.elsewhere:
                    return None
                self.waiting, self.elsewhere = self.elsewhere, self.waiting
            time.sleep(POLL)
        return None


@dataclass(frozen=True)
class Local:
    """
    Args:
        jobs: worker processes; threads: of each.
    """

    jobs: int
    threads: int
    stopped = "the same command goes on where it stands"

    @property
    def place(self) -> str:
        each = f"{self.threads} thread{'s' * (self.threads > 1)}" + " each" * (self.jobs > 1)
        return f"{self.jobs} at a time with {each}"

    def preview(self, path: Path, orders: Sequence[Order]) -> list[str]:
        return []

    def run(self, path: Path, orders: Sequence[Order], say: Say) -> Iterator[Event]:
        work, events = Work(deque(orders)), SimpleQueue()
        workers = [Worker(self.threads) for _ in range(self.jobs)]

        def lead(worker: Worker) -> None:
            while (order := work.next()) is not None:
                events.put((order["name"], {"state": RUNNING}))
                reply = worker.run(order)
                if reply["state"] == BUSY:
                    with work.lock:
                        work.elsewhere.append(order)
                events.put((order["name"], reply))
            events.put((None, {}))

        leaders = [threading.Thread(target=lead, args=(worker,), daemon=True) for worker in workers]
        try:
            for leader in leaders:
                leader.start()
            leading = len(leaders)
            while leading:
                try:
                    name, reply = events.get(timeout=POLL)
                except Empty:
                    yield None, {}
                    continue
                if name is None:
                    leading -= 1
                else:
                    yield name, reply
        finally:
            work.stopped = True
            for worker in workers:
                worker.stop()

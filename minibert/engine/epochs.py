"""What lies above a step: the steps of an epoch, from any of them on, and a look at what they see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minibert.data.batches import cut
from minibert.engine import Engine
from minibert.engine.step import Seen
from minibert.errors import InputError
from minibert.seeds import derive


@dataclass(frozen=True)
class Cursor:
    """Where a run stands: the epoch that it is in, from 1, and the steps of it that are done."""

    epoch: int = 1
    step: int = 0


@dataclass(frozen=True)
class Plan:
    """What one epoch is, and the random numbers of each. Whoever knows plan and cursor knows the rest of a run.

    Attributes:
        examples: how many there are; batch_size: of a forward pass; accumulate: forward passes a step.
        order, dropout: seeds.
        purpose: keeps the random streams of different trainings apart.
        least: examples that a forward pass needs; a last batch of fewer joins the one before.
    """

    examples: int
    epochs: int
    batch_size: int
    accumulate: int = 1
    order: int = 0
    dropout: int = 0
    purpose: str = ""
    least: int = 1

    @property
    def size(self) -> int:
        """Examples a step."""
        return self.batch_size * self.accumulate

    @property
    def steps(self) -> int:
        """Of an epoch."""
        whole, rest = divmod(self.examples, self.size)
        return max(1, whole + (rest >= self.least))

    def rows(self, epoch: int) -> Steps:
        """The examples of each step."""
        generator = torch.Generator().manual_seed(derive(self.order, f"{self.purpose}order", epoch))
        # In 32 bits, half of what its default takes, the order is the same (tested).
        order = torch.randperm(self.examples, generator=generator, dtype=torch.int32)
        return Steps(order, self.size, self.steps)

    def batches(self, chosen: Sequence[int]) -> list[Sequence[int]]:
        """The examples of each forward pass of a step."""
        return cut(chosen, self.batch_size, self.least)

    def seed(self, cursor: Cursor, rank: int = 0) -> int:
        """Of all that is drawn in a step by a process: dropout, and which words are masked."""
        return derive(self.dropout, f"{self.purpose}dropout", cursor.epoch, cursor.step, *([rank] if rank else []))


class Steps(Sequence[list[int]]):
    """An epoch's order, cut into steps when they are asked for: of ten million examples it is 40 MB, as numbers."""

    def __init__(self, order: Tensor, size: int, number: int) -> None:
        self.order, self.size, self.number = order, size, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, step: Any) -> Any:
        """The examples of a step; those left over, too few for a step of their own, are the last one's."""
        step = range(self.number)[step]
        last = None if step == self.number - 1 else (step + 1) * self.size
        return self.order[step * self.size : last].tolist()


Batches = Callable[[Sequence[int]], tuple[Sequence[Any], int]]  # the examples of a step -> batches, how many count


def steps(engine: Engine, plan: Plan, cursor: Cursor, batches: Batches) -> Iterator[Cursor]:
    """Take the steps from `cursor` to the end of its epoch; gives the cursor behind each."""
    rows = plan.rows(cursor.epoch)
    for step in range(cursor.step, len(rows)):
        torch.manual_seed(plan.seed(cursor, engine.machine.processes.rank))
        micro, count = batches(rows[step])
        engine.step(micro, engine.count(count))
        cursor = Cursor(cursor.epoch, cursor.step + 1)
        yield cursor


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """The caller's random state is afterwards what it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class Watch:
    """Reads an engine's sums now and then, and ends a run whose gradients no step can use.

    Reading waits for the device, so it is done at each step where the device is the host, else at each second or so, of
    all processes at the same step: what ends one ends all.

    Args:
        unusable: how many steps back the first one may lie that could not be used, from 1 -> what to raise.
        patience: so many of them in a row are passed over.

    Attributes:
        in_a_row: of the last steps, those whose gradients were not finite, where a smaller loss scale cannot mend that.
        seen: what was read last.
    """

    def __init__(self, engine: Engine, unusable: Callable[[int], InputError], patience: int = 0) -> None:
        self.engine, self.unusable, self.patience = engine, unusable, patience
        self.at_once = engine.machine.device.type == "cpu"
        self.looked = time.monotonic()
        self.steps = self.in_a_row = self.lost = 0
        self.expected: int | None = None
        self.seen = engine.state.sums.read()
        self.skipped = self.seen.skipped

    def look(self, expected: int | None = None) -> None:
        """Behind each step.

        Args:
            expected: what the sums have counted by now, if every loss was finite.
        """
        self.steps, self.expected = self.steps + 1, expected
        if self.at_once or any(self.engine.machine.processes.most(time.monotonic() - self.looked > 1)):
            self.read()

    def read(self) -> Seen:
        """The sums of the epoch so far, of all processes. All of them ask.

        Raises:
            InputError: what `unusable` makes of it.
        """
        self.looked = time.monotonic()
        seen = self.seen = self.engine.state.sums.read(self.engine.sums())
        steps, bad = self.steps, seen.skipped - self.skipped
        lost = 0 if self.expected is None else self.expected - seen.count
        hopeless = bad > 0 and (lost > self.lost or self.engine.state.scaler.spent)
        if steps:
            self.in_a_row = self.in_a_row + bad if hopeless and bad == steps else 0
        self.steps, self.skipped, self.lost = 0, seen.skipped, lost
        if hopeless and (not self.patience or self.in_a_row > self.patience):
            raise self.unusable(steps)
        return seen

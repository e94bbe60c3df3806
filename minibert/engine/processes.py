"""The processes that train one model: what they share out, add up and agree on. A single one does none of it.

A step's gradient is a sum over examples divided by the number of examples in the whole step (step.py), so it is a sum
over processes, too, whatever share of a batch each of them had. An average of each one's mean, as
DistributedDataParallel takes it, is another number wherever shares differ in size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from minibert.errors import InputError, LostProcessError, Say, silent
from minibert.launch import launch
from minibert.progress import no_bars

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = timedelta(days=7)  # the others wait so long for what one does for all: self-mlm can take hours


@dataclass(frozen=True)
class Processes:
    """
    Attributes:
        rank: this one, from 0, among `world`.
        hosts: the group in which they talk to each other; gradients have the default one.
    """

    rank: int = 0
    world: int = 1
    hosts: Any = None

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This process's part, which may be empty."""
        return things[self.rank :: self.world]

    def join(self, mine: list[T]) -> list[T]:
        """The parts of all, in the order in which `share` found them."""
        parts = self.gather(mine)
        return [parts[i % self.world][i // self.world] for i in range(sum(map(len, parts)))]

    def add(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sum of each over all processes. Those of 16 bits, too coarse to add in, become float32, others change."""
        if self.world == 1:
            return tensors
        sums = [t if t.element_size() > 2 else t.float() for t in tensors]
        with self.in_touch():
            for work in [dist.all_reduce(t, async_op=True) for t in sums]:
                work.wait()
        return sums

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes what the first one has, in place."""
        if self.world > 1:
            with self.in_touch():
                for work in [dist.broadcast(t, 0, async_op=True) for t in tensors]:
                    work.wait()

    def most(self, *numbers: int) -> list[int]:
        """The largest that any process has, of each number."""
        if self.world == 1:
            return list(numbers)
        largest = torch.tensor(numbers)
        with self.in_touch():
            dist.all_reduce(largest, dist.ReduceOp.MAX, self.hosts)
        return largest.tolist()

    def gather(self, thing: T) -> list[T]:
        """What each process has."""
        things = [thing] * self.world
        if self.world > 1:
            with self.in_touch():
                dist.all_gather_object(things, thing, self.hosts)
        return things

    def once(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` gives, done by the first process alone, while the others wait. What it is refused, all are.

        Raises:
            InputError, OSError: that of `work`.
        """
        if self.world == 1:
            return work(*args, **kwargs)
        told = [attempt(work, *args, **kwargs) if self.rank == 0 else None]
        with self.in_touch():
            dist.broadcast_object_list(told, 0, self.hosts)
        return outcome(*told[0])

    def each(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` gives in this process. The first one is first, so that the others find what it downloads; what
        one of them is refused, all are.

        Raises:
            InputError, OSError: that of the first process that has one.
        """
        if self.world == 1:
            return work(*args, **kwargs)
        result, error = attempt(work, *args, **kwargs) if self.rank == 0 else (None, None)
        self.once(outcome, None, error)
        if self.rank:
            result, error = attempt(work, *args, **kwargs)
        for refused in self.gather(error):
            outcome(None, refused)
        return result

    def alike(self, thing: Any, what: str) -> None:
        """
        Raises:
            InputError: it is not the same in all processes.
        """
        for rank, other in enumerate(self.gather(thing)):
            if other != thing:
                raise InputError(f"processes {self.rank} and {rank} have different {what}; start all of them alike")

    def voice(self, say: Say) -> Say:
        """The first process speaks."""
        return silent if self.rank else say

    @contextmanager
    def in_touch(self) -> Iterator[None]:
        """
        Raises:
            LostProcessError: another process has gone.
        """
        try:
            yield
        except RuntimeError:  # what it says depends on the backend, and names addresses alone
            message = f"process {self.rank} of {self.world}: another one was killed, or cannot be reached"
            raise LostProcessError(message) from None


def attempt(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T | None, Exception | None]:
    """What it gives, or what it is refused for."""
    try:
        return work(*args, **kwargs), None
    except (InputError, OSError) as error:
        return None, error


def outcome(result: T, error: Exception | None) -> T:
    if error is not None:
        raise error
    return result


_joins = count()
ALONE = Processes()
_here = ALONE


def here() -> Processes:
    """Those that `joined` has brought together; else this one alone."""
    return _here


@contextmanager
def joined() -> Iterator[Processes]:
    """While open, the processes that were launched together are in touch: through nccl on CUDA, gloo on the CPU. All
    but the first show no progress.

    Raises:
        InputError: there are not enough GPUs for them, or they do not find each other.
    """
    global _here
    given = launch()
    if given.world == 1 or _here.world > 1:
        yield _here
        return
    if gpus := torch.cuda.device_count():
        if given.local_rank >= gpus:
            raise InputError(f"--nproc-per-node: at most {gpus} processes here, one for each GPU")
        torch.cuda.set_device(given.local_rank)
    try:
        if not dist.is_initialized():
            # torchrun's store outlives restarts, with addresses of processes that have gone (pytorch issue 135712), so
            # each try has names of its own. Not on several machines: each of them counts its restarts by itself.
            store, rank, world = next(rendezvous("env://"))
            tries = f"minibert {given.restarts if given.machines == 1 else ''} {next(_joins)}"
            backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
            dist.init_process_group(backend, store=dist.PrefixStore(tries, store), rank=rank, world_size=world)
        hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"process {given.rank} of {given.world} does not find the others: {reason}") from None
    _here = Processes(given.rank, given.world, hosts)
    with no_bars() if given.rank else nullcontext():
        yield _here
    # Not after an error: that ends the process, and some backends would wait for one that has gone.
    dist.destroy_process_group()
    _here = ALONE

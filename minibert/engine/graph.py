"""The step as CUDA graphs: at small batches a GPU waits for the launches of some 700 kernels; a graph is one launch.

A graph is a recording of kernels over fixed memory. So there is one for each shape of batch, and others once a frozen
encoder is trained; its inputs lie in buffers of its own; and all that it changes (weights, moments, counts, sums) lies
where it lay when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from minibert.engine.step import Reduce, State, accumulate, alone, step, update

Work = Callable[[], None]

WARM = (
    3  # steps of a shape that run as they are, so that kernels, workspaces and memory are there before it is recorded
)
MOST = 64  # shapes that are recorded; each holds its activations' memory


class Recorder(Protocol):
    """Runs work, or records it without running it."""

    def run(self, work: Work) -> None: ...

    def record(self, work: Work) -> Work:
        """What replays `work` from now on."""


class CudaGraphs:
    """The real one. All graphs take their memory from one pool: nothing in it outlives a replay."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        """On the stream that recording takes place on, as torch's notes on CUDA graphs ask for."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self.pool, self.stream, "thread_local"):
            work()
        return graph.replay


class Calls:
    """A stand-in for other devices: it replays by calling."""

    def run(self, work: Work) -> None:
        work()

    def record(self, work: Work) -> Work:
        return work


class Recorded:
    """`step`, with its signature: the first steps of each shape as they are, those after them from a recording.

    One batch a step: one recording of all of it. Several: one of a batch's forward and backward pass for each shape,
    and one of the update; the gradients then stay where they are and are set to zero. Of several processes each one
    records its batches alone: what one has recorded, another may not have yet, and sums need all of them. Where
    recording fails, all goes on as it is, and `say` gets a line.
    """

    def __init__(self, state: State, recorder: Recorder, say: Callable[[str], None], reduce: Reduce = alone) -> None:
        self.state, self.recorder, self.say, self.reduce = state, recorder, say, reduce
        self.seen: dict[object, int] = {}
        self.recordings: dict[object, tuple[Work, tuple[Any, Tensor]]] = {}
        self.failed = False

    def __call__(self, batches: Sequence[Any], count: Tensor) -> None:
        if len(batches) == 1 and self.reduce is alone:
            self._do("step", self._whole, batches[0], count)
            return
        optimizer = self.state.optimizer
        optimizer.zero_grad(keep=True)
        for batch in batches:
            self._do("batch", partial(accumulate, self.state), batch, count)
        if self.reduce is alone:
            self._do("update", lambda batch, count: update(self.state), (), count)
        else:
            self.recorder.run(lambda: update(self.state, self.reduce))

    def _whole(self, batch: Any, count: Tensor) -> None:
        step(self.state, [batch], count)

    def _do(self, what: str, work: Callable[[Any, Tensor], None], batch: Any, count: Tensor) -> None:
        key = (what, self.state.optimizer.held, *(None if t is None else (tuple(t.shape), t.dtype) for t in batch))
        if key in self.recordings:
            replay, inputs = self.recordings[key]
            copy_into(inputs, (batch, count))
            replay()
            return
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.seen[key] > WARM and len(self.recordings) < MOST and not self.failed:
            inputs = copy_into(None, (batch, count))
            try:
                replay = self.recorder.record(partial(work, *inputs))
            except RuntimeError as error:  # torch.AcceleratorError among them
                self.failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.say(f"no CUDA graph, so small batches wait for launches: {reason}")
            else:
                self.recordings[key] = replay, inputs
                replay()
                return
        self.recorder.run(partial(work, batch, count))


def copy_into(buffers: tuple[Any, Tensor] | None, given: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
    """A batch and its count into the buffers of a recording; None: into new ones."""
    batch, count = given
    if buffers is None:
        copies = [None if t is None else t.clone() for t in batch]
        return (type(batch)(*copies) if copies else batch), count.clone()
    for to, tensor in zip((*buffers[0], buffers[1]), (*batch, count)):
        if tensor is not None:
            to.copy_(tensor, non_blocking=True)
    return buffers

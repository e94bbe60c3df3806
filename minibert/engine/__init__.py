"""What trains: a network, an optimizer and a step, as fast as the machine allows, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minibert.allocator import tidy
from minibert.data import Examples
from minibert.engine.graph import CudaGraphs, Recorded
from minibert.engine.machine import Machine
from minibert.engine.network import Network, call_again, half_weights, length_multiple, network_for, with_copies
from minibert.engine.optimizer import WORTH_COMPILING, AdamW, LossScaler, Schedule
from minibert.engine.step import Loss, State, Sums, alone, classification, step
from minibert.engine.words import Words
from minibert.errors import Say
from minibert.model import BertClassifier, call

Step = Callable[[Sequence[Any], Tensor], None]  # the batches of one step, and how many examples count in them


@dataclass(frozen=True)
class Engine:
    """A model that is being trained.

    Attributes:
        step: one optimizer step; it changes `state`.
        splits: the examples, renumbered for the words that occur.
    """

    state: State
    step: Step
    schedule: Schedule
    splits: list[Examples]
    machine: Machine
    original: BertClassifier
    trained: BertClassifier
    words: Words

    @property
    def network(self) -> Network:
        return self.state.network

    def count(self, examples: int) -> Tensor:
        """How many examples count in a step, where it computes."""
        return torch.full((), float(examples), device=self.machine.device)

    def hold(self, held: bool) -> None:
        """Between steps: freeze the late parameters, or train them from now on."""
        self.state.optimizer.hold(held)
        self.state.numbers.copy_(numbers_of(self.state.optimizer, self.schedule))

    def sums(self) -> Tensor:
        """Of all processes. All of them ask."""
        processes, sums = self.machine.processes, self.state.sums
        return sums.over(processes.add) if processes.world > 1 else sums.total

    def model(self) -> BertClassifier:
        """The model as it is now, with all its words."""
        return self.words.all(self.original, self.trained, self.state.optimizer.shrinkage.item())

    def state_dict(self) -> dict[str, Tensor]:
        """All that training changed, on the CPU: flat, tensors only. Of several processes, all of them ask."""
        parts = {"model": self.trained, "adamw": self.state.optimizer, "scaler": self.state.scaler}
        tensors = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.state_dict().items()}
        tensors["sums"] = self.sums()
        return {key: t.detach().cpu() for key, t in tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """
        Raises:
            KeyError: a tensor of `state_dict` is missing.
            RuntimeError: one has another shape.
        """
        optimizer = self.state.optimizer
        for name, tensor in self.trained.state_dict().items():
            tensor.copy_(tensors[f"model.{name}"])
        optimizer.load_state_dict(named(tensors, "adamw."))
        self.state.scaler.load_state_dict(named(tensors, "scaler."))
        self.state.sums.total.copy_(tensors["sums"])
        if self.machine.processes.rank:
            self.state.sums.total[:3] = 0  # the first process has them
        for name, copied in optimizer.half.items():
            copied.copy_(optimizer.parameters[name])


def assemble(
    model: BertClassifier,
    splits: Sequence[Examples],
    machine: Machine,
    schedule: Schedule,
    *,
    accumulate: int = 1,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
    clip: float = 1.0,
    late: Collection[str] = (),
    loss: Loss = classification,
    network: Callable[..., Network] = network_for,
    checkpointing: bool = False,
    say: Say = print,
) -> Engine:
    """Put a model on its machine with all that makes `schedule.total` steps fast there.

    Args:
        model: on the CPU. Its tensors, but for the word embedding, are the trained ones from now on.
        splits: all examples that will be trained on or evaluated.
        accumulate: batches a step.
        late: names of parameters that `Engine.hold` can freeze.
        checkpointing: keep no activations but between layers: less memory, the same gradients, a third more to compute.
    """
    words = Words(splits, model.config.pad_token_id)
    renumbered = [words.renumber(split) for split in splits]
    trained = words.fewer(model).to(machine.device)
    machine.processes.spread([t.detach() for t in trained.state_dict().values()])
    # bf16 is too coarse to add the gradients of several batches up in
    half = half_weights(trained, machine) if accumulate == 1 else {}
    optimizer = AdamW(
        trained.named_parameters(), weight_decay=weight_decay, bias_correction=bias_correction, half=half, late=late
    )
    if schedule.total * sum(p.numel() for p in trained.parameters()) > WORTH_COMPILING:
        why_not = optimizer.compile()
        if why_not:
            say(f"the optimizer stays uncompiled, up to a third slower a step: {why_not}")
    way = call_again if checkpointing else call
    if checkpointing and machine.device.type == "cpu":
        tidy()
    computing = network(with_copies(trained, half), machine, words.pad_id, length_multiple(renumbered), way)
    scaler = LossScaler(machine.name == "fp16", device=machine.device)
    state = State(computing, optimizer, scaler, Sums(machine.device), numbers_of(optimizer, schedule), clip, loss)
    computing.model.train()
    return Engine(
        state, step_of(state, machine, checkpointing, say), schedule, renumbered, machine, model, trained, words
    )


def step_of(state: State, machine: Machine, checkpointing: bool, say: Say) -> Step:
    """`step`; on CUDA as graphs; with checkpointing not: a recording might draw other dropout the second time."""
    reduce = machine.processes.add if machine.processes.world > 1 else alone
    if machine.device.type == "cuda" and not checkpointing:
        return Recorded(state, CudaGraphs(machine.device), say, reduce)
    if machine.device.type == "cuda":
        say("--gradient-checkpointing: steps are not recorded as CUDA graphs, so small batches wait for launches")
    return partial(step, state, reduce=reduce)


def numbers_of(optimizer: AdamW, schedule: Schedule) -> Tensor:
    """Every number of every step, before the first: see AdamW.numbers."""
    return optimizer.numbers(schedule.rates(), torch.arange(1, schedule.total + 2))


def named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

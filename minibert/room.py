"""Whether a run fits into memory: said, or refused, before its model is built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from minibert.config import TrainConfig
from minibert.data import Dataset, Examples
from minibert.engine.epochs import Plan
from minibert.engine.machine import Machine
from minibert.engine.memory import SURE, Memory, foretell, free
from minibert.engine.network import length_multiple
from minibert.engine.words import Words
from minibert.errors import InputError, Say
from minibert.freezing import freeze
from minibert.heads import HEADS
from minibert.launch import launch
from minibert.model import BertClassifier, BertConfig


def check_room(
    config: TrainConfig, bert_config: BertConfig, head: nn.Module | None, data: Dataset, machine: Machine, say: Say
) -> None:
    """Say what the run will take of the memory that is free. Where the system does not tell what is, say nothing.

    Args:
        bert_config: as it will be trained; head: one of one's own.

    Raises:
        InputError: it cannot fit, even if it takes as little as any run that was measured, beside what was foretold.
    """
    there = free(machine)
    if there is None:
        return
    on_cuda = machine.device.type == "cuda"
    if not on_cuda:
        there /= max(1, launch().world // launch().machines)  # each process of this machine asks for as much
    told = demand(config, bert_config, head, data, machine)
    # What a GPU's passes take was never measured: weights and optimizer alone are sure.
    if (told.held if on_cuda else SURE * told.total) <= there:
        say(f"memory: about {gb(told.total)} of {gb(there)} GB free: {parts(told)}")
        return
    ways = ["take a smaller --model"]
    if SURE * told.held < there:
        lower = ["--batch-size (--accumulate makes up for it)"] * (config.batch_size > 1) + ["--max-length"]
        ways.insert(0, f"lower {' or '.join(lower)}")
        if not config.gradient_checkpointing:
            less = demand(replace(config, gradient_checkpointing=True), bert_config, head, data, machine)
            ways.insert(1, f"add --gradient-checkpointing (about {gb(less.total)} GB)")
    raise InputError(
        f"this run would take about {gb(told.total)} GB of memory ({parts(told)}), and {gb(there)} GB are free;"
        f" {', '.join(ways[:-1])}{', or ' * (len(ways) > 1)}{ways[-1]}"
    )


def demand(
    config: TrainConfig, bert_config: BertConfig, head: nn.Module | None, data: Dataset, machine: Machine
) -> Memory:
    """What `foretell` says of a run's largest batch."""
    with torch.device("meta"):
        model = BertClassifier(bert_config, HEADS[config.head](bert_config) if head is None else head)
    freeze(model, config)
    words = len(Words([data.train, data.val], bert_config.pad_token_id).ids)
    multiple = length_multiple([data.train, data.val])
    longest = int(lengths_of(data.val, multiple).max())
    batch = largest_batch(config, data.train, machine, multiple)
    updates = config.epochs * -(-len(data.train) // (config.batch_size * config.accumulate))
    return foretell(model, words, batch, longest, machine, config.accumulate, config.gradient_checkpointing, updates)


def largest_batch(config: TrainConfig, examples: Examples, machine: Machine, multiple: int) -> list[int]:
    """The tokens of each text of the forward pass of the first epoch that takes most: the other epochs draw others."""
    lengths, processes = lengths_of(examples, multiple), machine.processes
    plan = Plan(len(examples), config.epochs, config.batch_size, config.accumulate, config.seeds.order)
    # One after another, and no list of them: there may be very many.
    passes = (part for rows in plan.rows(1) for part in plan.batches(processes.share(rows)) if len(part))
    # Of n tokens a layer keeps 12 n (n + 384) bytes a head, if that is of 64 and the feed-forward of 4 times the width.
    cost = lengths * (lengths + 384)
    batch = lengths[max(passes, key=lambda rows: cost[rows].sum(), default=[0])]
    return (batch if machine.device.type == "cpu" else np.full(len(batch), batch.max())).tolist()


def lengths_of(examples: Examples, multiple: int) -> np.ndarray:
    """Tokens of each text, with what it is padded to."""
    lengths = examples.ids.lengths
    return -(-lengths // multiple) * multiple


def parts(told: Memory) -> str:
    return f"weights and optimizer {gb(told.held)}, activations {gb(told.activations)}"


def gb(size: float) -> str:
    """Bytes in units of 10^9."""
    return f"{size / 1e9:.1f}" if size < 99.95e9 else f"{size / 1e9:.0f}"

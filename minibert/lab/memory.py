"""How much memory training takes, beside what was foretold: python -m minibert bench --memory.

Every measurement is a process of its own: three steps on batches of one length, an evaluation, the model made whole.
"""

from __future__ import annotations

import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minibert.allocator import steady
from minibert.data import Examples
from minibert.engine import assemble
from minibert.engine.dropout import dropout_for
from minibert.engine.machine import Machine, choose_machine
from minibert.engine.memory import foretell
from minibert.engine.optimizer import Schedule
from minibert.errors import InputError, Say
from minibert.evaluation import predict
from minibert.lab.workloads import LR, PLANNED, measured
from minibert.model import BertClassifier, BertConfig

GEOMETRIES = {  # layers, width, heads
    "minilm": (6, 384, 12),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
SHAPES = {  # examples a batch, tokens an example
    "minilm": ((2, 50), (32, 128), (8, 512)),
    "base": ((2, 128), (8, 128), (2, 512)),
    "large": ((2, 128), (8, 128)),
}
MOST = 10e9  # bytes: cases that would take more are left out
WORDS = 5000  # that occur, of 30,522
STEPS = 3


@dataclass(frozen=True)
class MemoryCase:
    model: str
    batch: int
    length: int
    precision: str
    checkpointing: bool


def cases() -> list[MemoryCase]:
    return [
        MemoryCase(model, *shape, precision, checkpointing)
        for model, shapes in SHAPES.items()
        for shape in shapes
        for precision in ("fp32", "bf16")
        for checkpointing in (False, True)
    ]


HEADER = "model   batch length  format  checkpointing  foretold, MB  measured, MB  ratio"


def memory(say: Say) -> list[dict[str, Any]]:
    """
    Returns:
        For each case what it is, and `foretold` and `measured`: the most bytes beyond those of the process before it
        built its model. `measured` is None for what would take more than MOST.

    Raises:
        InputError: a measurement that failed, or not on Linux.
    """
    if not Path("/proc/self/status").is_file():
        raise InputError("bench --memory reads /proc, which Linux alone has")
    say(HEADER)
    rows = []
    for case in cases():
        row = vars(case) | {"foretold": outlook(case), "measured": None}
        if row["foretold"] <= MOST:
            row["measured"] = measure(case)
        rows.append(row)
        say(format_row(row))
    return rows


def format_row(row: dict[str, Any]) -> str:
    line = (
        f"{row['model']:<6}{row['batch']:>7}{row['length']:>7}  {row['precision']:<6}"
        f"  {'yes' if row['checkpointing'] else 'no':<13}{row['foretold'] / 1e6:>14,.0f}"
    )
    if row["measured"] is None:
        return f"{line}             -"
    return f"{line}{row['measured'] / 1e6:>14,.0f}{row['measured'] / row['foretold']:>7.2f}"


def config_of(case: MemoryCase) -> BertConfig:
    layers, width, heads = GEOMETRIES[case.model]
    return BertConfig(30_522, width, layers, heads, 4 * width)


def machine_of(case: MemoryCase) -> Machine:
    return choose_machine(case.precision, torch.device("cpu"))


def outlook(case: MemoryCase) -> float:
    """Bytes, as foretold."""
    with torch.device("meta"):
        model = BertClassifier(config_of(case))
    words = len({0, *(i for ids in examples_of(case).ids for i in ids.tolist())})
    lengths = [case.length] * case.batch
    return foretell(model, words, lengths, case.length, machine_of(case), 1, case.checkpointing, PLANNED).total


def examples_of(case: MemoryCase) -> Examples:
    """A batch, or as many as make a whole portion of an evaluation."""
    count = max(case.batch, -(-4096 // case.length) + 1)
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, WORDS, case.length).astype(np.int32) for _ in range(count)]
    return Examples(ids, None, generator.integers(0, 2, count), np.arange(count))


def measure(case: MemoryCase) -> float:
    """Bytes, in a process of its own."""
    arguments = [str(value) for value in astuple(case)]
    return measured(" ".join(arguments), "minibert.lab.memory", *arguments)


def main(model: str, batch: str, length: str, precision: str, checkpointing: str) -> None:
    """What `measure` starts: prints the bytes."""
    steady()
    case = MemoryCase(model, int(batch), int(length), precision, checkpointing == "True")
    data, machine = examples_of(case), machine_of(case)
    before = status("VmRSS")
    network = BertClassifier(config_of(case), dropout=dropout_for(machine.device))
    engine = assemble(network, [data], machine, Schedule(LR, PLANNED, PLANNED // 10), checkpointing=case.checkpointing)
    for _ in range(STEPS):
        engine.step([engine.network.batch(engine.splits[0], range(case.batch))], engine.count(case.batch))
    predict(engine.network, engine.splits[0])
    engine.model()
    print(status("VmHWM") - before)


def status(name: str) -> int:
    """Bytes that Linux counts for this process: VmRSS, now; VmHWM, at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a run says: its first lines, a line per epoch, and its last ones."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from minibert.config import TrainConfig
from minibert.data import IN_MEMORY
from minibert.lines import BLOCKS, WIDTH, columns, lacks
from minibert.progress import duration
from minibert.training.folder import FIGURES, best_of, read_history, read_run
from minibert.verdict import advice, in_words

HEADER = (
    "           train      validation",
    "epoch   loss    acc    loss    acc       lr   ex/s    time  verdict",
)


def opening(config: TrainConfig, steps: int, size: int, warmup: int, path: Path) -> list[str]:
    """What the run will do: `steps` per epoch of `size` examples each."""
    return [
        f"{config.epochs} epoch{'s' * (config.epochs > 1)} of {steps:,} steps, {size} examples per step,"
        f" warmup {warmup:,} steps, lr {config.lr:g}",
        f"folder of the run: {path}",
    ]


def row_lines(history: list[dict[str, Any]]) -> list[str]:
    """The last epoch as a line under HEADER, on a terminal with the curve behind it, and one on what was odd in it."""
    row = history[-1]
    line = (
        f"{row['epoch']:>5}  {row['train_loss']:>5.3f}  {row['train_accuracy']:.3f}  {row['val_loss']:>6.3f}"
        f"  {row['val_accuracy']:.3f}  {row['lr']:.1e}  {row['examples_per_second']:>5.0f}"
        f"  {duration(row['seconds']):>6}  {in_words(history)}"
    )
    if sys.stdout.isatty() and not lacks(sys.stdout, BLOCKS):
        line = f"{line}  {curve(history, WIDTH - columns(line) - 2)}".rstrip()
    skipped = row["skipped_steps"]
    return [line, f"       {skipped:,} steps skipped: gradient not finite"] if skipped else [line]


def curve(history: list[dict[str, Any]], room: int) -> str:
    """The validation accuracy over the epochs so far, in at most `room` blocks; of more epochs, means of neighbours.

    The lowest block is the majority baseline, or a worse epoch; the highest is the best epoch.
    """
    values = np.array([row["val_accuracy"] for row in history])
    if not len(values) >= 2 or room < 2:
        return ""
    low, high = min(values.min(), history[-1]["val_majority"]), max(values.max(), history[-1]["val_majority"])
    means = np.array([part.mean() for part in np.array_split(values, min(room, len(values)))])
    heights = (means - low) / max(high - low, 1e-9) * (len(BLOCKS) - 1)
    return "".join(BLOCKS[round(height)] for height in heights)


def last_lines(path: Path) -> list[str]:
    """`closing`, of a run that has ended."""
    config, content = read_run(path)
    return closing(read_history(path), config, path, content.get("head"))


def closing(history: list[dict[str, Any]], config: TrainConfig, path: Path, head: str | None) -> list[str]:
    """What came out, what usually helps where nothing did, and what to do next.

    Args:
        head: the name of a head of one's own, or None.
    """
    best = best_of(history, config.select)
    by = "" if config.select == "accuracy" else f" by {config.select} {best[FIGURES[config.select][0]]:.3f}"
    return [
        f"best: epoch {best['epoch']}{by}, validation accuracy {best['val_accuracy']:.3f}"
        f" (majority baseline {history[-1]['val_majority']:.3f})",
        *advice(history, config.bias_correction),
        next_step(config, path, head),
    ]


def next_step(config: TrainConfig, path: Path, head: str | None) -> str:
    """eval.py, unless it has no way to the model, the head or the data."""
    if not config.save:
        return f"no model was kept (--no-save); its figures: {path}"
    if head or config.data == IN_MEMORY:
        return f"next, in Python: run.report(), Classifier.load({str(path)!r}{f', head={head}' if head else ''})"
    return f"next: python eval.py {quote(str(path))}"

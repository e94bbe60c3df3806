"""What a run says: its first lines, a line per epoch, and its last ones."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from minibert.config import TrainConfig
from minibert.progress import duration
from minibert.training.folder import best_of
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
    """The last epoch as a line under HEADER, and one on what was odd in it."""
    row = history[-1]
    line = (
        f"{row['epoch']:>5}  {row['train_loss']:>5.3f}  {row['train_accuracy']:.3f}  {row['val_loss']:>6.3f}"
        f"  {row['val_accuracy']:.3f}  {row['lr']:.1e}  {row['examples_per_second']:>5.0f}"
        f"  {duration(row['seconds']):>6}  {in_words(history)}"
    )
    skipped = row["skipped_steps"]
    return [line, f"       {skipped:,} steps skipped: gradient not finite"] if skipped else [line]


def closing(history: list[dict[str, Any]], bias_correction: bool, path: Path) -> list[str]:
    """What came out, what usually helps where nothing did, and what to do next."""
    best = best_of(history)
    return [
        f"best: epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.3f}"
        f" (majority baseline {history[-1]['val_majority']:.3f})",
        *advice(history, bias_correction),
        f"next: python eval.py {quote(str(path))}",
    ]

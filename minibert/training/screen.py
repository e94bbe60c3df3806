"""What a run says: its first lines, a line an epoch, and its last ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minibert.config import TrainConfig
from minibert.progress import duration
from minibert.training.folder import best_of
from minibert.verdict import advice, in_words

HEADER = "epoch  train loss  train acc  val loss  val acc        lr    ex/s   time    verdict"


def opening(config: TrainConfig, steps: int, size: int, warmup: int, path: Path) -> list[str]:
    """What the run will do: `steps` an epoch of `size` examples each."""
    return [
        f"{config.epochs} epoch{'s' * (config.epochs > 1)} of {steps:,} steps, {size} examples a step,"
        f" warmup {warmup:,} steps, lr {config.lr:g}; the run's folder is {path}"
    ]


def row_line(history: list[dict[str, Any]]) -> str:
    """The last epoch as a line under HEADER."""
    row = history[-1]
    skipped = row["skipped_steps"]
    return (
        f"{row['epoch']:>5}  {row['train_loss']:>10.3f}  {row['train_accuracy']:>9.3f}  {row['val_loss']:>8.3f}"
        f"  {row['val_accuracy']:>7.3f}  {row['lr']:>8.1e}  {row['examples_per_second']:>6.0f}"
        f"   {duration(row['seconds']):<6}  {in_words(history)}"
        + (f"   {skipped} steps skipped (fp16 overflow)" if skipped else "")
    )


def closing(history: list[dict[str, Any]], bias_correction: bool, path: Path) -> list[str]:
    """What came out, what usually helps where nothing did, and what to do next."""
    best = best_of(history)
    return [
        f"best: epoch {best['epoch']}, validation accuracy {best['val_accuracy']:.3f}"
        f" (always the commonest class: {history[-1]['val_majority']:.3f})",
        *advice(history, bias_correction),
        f"next: python eval.py {path}",
    ]

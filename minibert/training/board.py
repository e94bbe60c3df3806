"""--tensorboard: a run's figures as event files in its folder. Needs the extra `tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SCALARS = {
    "loss/training": "train_loss",
    "loss/validation": "val_loss",
    "accuracy/training": "train_accuracy",
    "accuracy/validation": "val_accuracy",
    "macro-F1/validation": "val_macro_f1",
    "learning rate": "lr",
}  # as TensorBoard groups them, and their fields in a row of metrics.jsonl


class Board:
    """Writes a row an epoch, with the epoch as its step.

    Args:
        history: the epochs before, of a run that goes on. They are written anew: a killed process may have left fewer
            or more of them than the run goes on from.
    """

    def __init__(self, path: Path, history: list[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds

        for file in path.glob("events.out.tfevents.*"):
            file.unlink()
        self.writer = SummaryWriter(str(path))
        for row in history:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        for name, field in SCALARS.items():
            self.writer.add_scalar(name, row[field], row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

"""Every setting of a run. Defaults live here and nowhere else; train.py makes its flags of these fields.

Imports no torch, so that `train.py --help` answers at once.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

from minibert.errors import InputError
from minibert.seeds import Seeds

ENCODINGS = ("levels", "grid", "decimals")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def setting(default: Any, group: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": help, **more})


@dataclass(frozen=True)
class TrainConfig:
    """
    Raises:
        InputError: a value out of its range.
    """

    data: str = setting("motion", "data", "motion, motion-overlap, a .csv .tsv .jsonl .npz file, or a folder of texts")
    charset: str = setting("utf-8", "data", "encoding of the text files")
    max_length: int = setting(256, "data", "tokens a text at most; longer ones are cut at the end")
    encoding: str = setting("levels", "data", "how a window becomes a text", choices=ENCODINGS)
    channels: str | None = setting(None, "data", "acc, gyro, all, or names (default: acc for motion, else all)")
    steps: int = setting(16, "data", "values a channel, by averaging")
    grid_cells: int = setting(1000, "data", "cells in all, for --encoding grid")

    model: str = setting("auto", "model", "a folder, a name on the hub, minilm-l6, or auto: what this machine can bear")
    init: str = setting("pretrained", "model", "starting weights: pretrained, random, or a scheme between (README)")
    pool: str = setting(
        "auto", "model", "what the head reads: [CLS] through BERT's pooler, or the mean; auto: cls, random:deep mean",
        choices=("auto", "cls", "mean"),
    )  # fmt: skip
    dropout: str = setting("0.1", "model", "one rate, or three: HIDDEN,ATTENTION,HEAD")

    epochs: int = setting(5, "training", "passes over the training examples")
    batch_size: int = setting(2, "training", "examples a forward pass")
    accumulate: int = setting(1, "training", "forward passes an optimizer step")
    lr: float = setting(1e-5, "training", "the highest learning rate, at the end of the warmup")
    warmup: float = setting(0.1, "training", "below 1: fraction of all steps; else a number of steps")
    weight_decay: float = setting(0.01, "training", "decoupled decay, on matrices only")
    clip: float = setting(1.0, "training", "largest global norm of the gradient; 0: no clipping")
    bias_correction: bool = setting(True, "training", "Adam's; without it, as the first BERT code, steps start larger")
    stop_on_collapse: int = setting(0, "training", "end after this many collapsed epochs in a row; 0: never")
    precision: str = setting(
        "auto", "training", "auto: bf16 or fp16 where the hardware is fast at it", choices=PRECISIONS
    )

    seed: str = setting(
        "0", "run", "a number, and if wanted encoder=, head=, order=, dropout=, split= apart: 7,order=3"
    )
    out: str | None = setting(None, "run", "folder of the run (default: runs/DATE-INIT)")

    def __post_init__(self) -> None:
        for name in ("max_length", "steps", "grid_cells", "epochs", "batch_size", "accumulate", "stop_on_collapse"):
            at_least = {"max_length": 3, "stop_on_collapse": 0}.get(name, 1)
            value = getattr(self, name)
            check(self, name, value == int(value) and value >= at_least, f"a whole number of at least {at_least}")
        for name in ("encoding", "pool", "precision"):
            allowed = field_of(name).metadata["choices"]
            check(self, name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        check(self, "lr", 0 < self.lr <= 1, "above 0 and at most 1; 1e-6 to 1e-4 is usual")
        whole = self.warmup < 1 or float(self.warmup).is_integer()
        check(
            self, "warmup", 0 <= self.warmup < float("inf") and whole, "a fraction below 1 or a whole number of steps"
        )
        check(self, "weight_decay", 0 <= self.weight_decay <= 1, "from 0 to 1")
        check(self, "clip", 0 <= self.clip < float("inf"), "a norm above 0, or 0 for none")
        self.dropout_rates()
        Seeds.parse(self.seed)

    def dropout_rates(self) -> tuple[float, float, float]:
        """The rates on hidden states, on attention weights, in front of the head."""
        try:
            rates = [float(part) for part in str(self.dropout).split(",")]
        except ValueError:
            rates = []
        good = len(rates) in (1, 3) and all(0 <= rate < 1 for rate in rates)
        check(self, "dropout", good, "one rate or HIDDEN,ATTENTION,HEAD, each at least 0 and below 1")
        return tuple(rates * 3)[:3]  # type: ignore[return-value]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def field_of(name: str) -> Field:
    return next(entry for entry in fields(TrainConfig) if entry.name == name)


def check(config: TrainConfig, name: str, good: bool, allowed: str) -> None:
    if not good:
        raise InputError(f"{flag(name)} {getattr(config, name)}: it must be {allowed}")

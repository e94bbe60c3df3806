"""Every setting of a run. Defaults live here and nowhere else; the commands make their flags of these fields.

Imports no torch, so that `train.py --help` answers at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from typing import Any

from minibert.errors import InputError
from minibert.seeds import Seeds

ENCODINGS = ("levels", "grid", "decimals")
HEADS = ("linear", "mlp", "attention")
MOST_CELLS = 10**15  # cells are counted in 64 bits, and placed by numbers of 53
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SELECTIONS = ("accuracy", "loss", "macro-f1")
ALONE = ("out", "save")  # of a run by itself; no grid has them: its runs have their places, and their models are scored


def setting(default: Any, group: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": help, **more})


@dataclass(frozen=True)
class TrainConfig:
    """
    Raises:
        InputError: a value of another type than its field's, or out of its range.
    """

    data: str = setting("motion", "data", "motion, motion-overlap, a .csv .jsonl .parquet .npz (...) file, or a folder")
    charset: str = setting("utf-8", "data", "encoding of the text files")
    text_column: str = setting("text", "data", "what the column of texts is called")
    label_column: str = setting("label", "data", "what the column of labels is called")
    text_b_column: str | None = setting(None, "data", "that of second texts (default: text_b, where there is one)")
    delimiter: str = setting("auto", "data", "between the cells of a .csv or .tsv: one character, tab, or auto")
    examples: str = setting("all", "data", "training examples: all, or so many, by class; fewer are among more")
    max_examples: int = setting(0, "data", "of each split at most so many, by class, for quick tries; 0: all")
    max_length: int = setting(256, "data", "tokens a text at most; longer ones are cut at the end")
    encoding: str = setting("levels", "data", "how a window becomes a text", choices=ENCODINGS)
    channels: str | None = setting(None, "data", "acc, gyro, all, or names (default: acc for motion, else all)")
    steps: int = setting(16, "data", "values a channel, by averaging")
    grid_cells: int = setting(1000, "data", "cells in all, for --encoding grid")

    model: str = setting(
        "auto", "model", "a folder, a name on the hub, minilm-l6, a size for random starts (12x768), or auto"
    )
    init: str = setting("pretrained", "model", "starting weights: pretrained, random, or a scheme between (README)")
    pool: str = setting(
        "auto", "model", "what the head reads: [CLS] through BERT's pooler, the mean, or all tokens; auto: tokens where"
        " the head asks for them, else cls, random:deep mean",
        choices=("auto", "cls", "mean", "tokens"),
    )  # fmt: skip
    head: str = setting(
        "linear", "model", "linear; mlp: one hidden layer; attention: a learned query over all tokens", choices=HEADS
    )
    dropout: str = setting("0.1", "model", "one rate, or three: HIDDEN,ATTENTION,HEAD")
    freeze: str = setting(
        "none", "model", "never trained: embeddings, layers:I-J, encoder (all but the head), or several with commas"
    )
    freeze_encoder_epochs: int = setting(0, "model", "epochs at first in which the head alone is trained")

    epochs: int = setting(5, "training", "passes over the training examples")
    batch_size: int = setting(2, "training", "examples a forward pass")
    accumulate: int = setting(1, "training", "forward passes an optimizer step")
    gradient_checkpointing: bool = setting(
        False, "training", "compute activations again in the backward pass: less memory, a third more to compute"
    )
    lr: float = setting(1e-5, "training", "the highest learning rate, at the end of the warmup")
    warmup: float = setting(0.1, "training", "below 1: fraction of all steps; else a number of steps")
    weight_decay: float = setting(0.01, "training", "decoupled decay, on matrices only")
    clip: float = setting(1.0, "training", "largest global norm of the gradient; 0: no clipping")
    class_weights: str = setting(
        "none", "training", "weigh the classes in the loss: none; balanced: so that all count the same",
        choices=("none", "balanced"),
    )  # fmt: skip
    label_smoothing: float = setting(0.0, "training", "part of each target that is spread over all classes, below 1")
    bias_correction: bool = setting(True, "training", "Adam's; without it, as the first BERT code, steps start larger")
    on_nonfinite: str = setting(
        "stop", "training", "at a gradient that is not finite: stop, or skip its step; skip:N: N in a row at most (10)"
    )
    select: str = setting("accuracy", "training", "the validation figure whose best epoch is kept", choices=SELECTIONS)
    early_stopping: int = setting(0, "training", "end after so many epochs without a better one; 0: never")
    stop_on_collapse: int = setting(0, "training", "end after this many collapsed epochs in a row; 0: never")
    layers: bool = setting(False, "training", "keep each layer's gradient norm and [CLS] cosine at each epoch's end")
    precision: str = setting(
        "auto", "training", "auto: bf16 or fp16 where the hardware is fast at it", choices=PRECISIONS
    )

    seed: str = setting(
        "0", "run", "a number, and if wanted encoder=, head=, order=, dropout=, split= apart: 7,order=3"
    )
    save_every: float = setting(10.0, "run", "minutes between snapshots inside an epoch; 0: at its end alone")
    save: bool = setting(True, "run", "keep the best model and snapshots; without them, figures alone")
    tensorboard: bool = setting(False, "run", "write event files for TensorBoard into the run's folder, too")
    out: str | None = setting(None, "run", "folder of the run (default: runs/DATE-INIT)")

    def __post_init__(self) -> None:
        none = dict.fromkeys(("max_examples", "early_stopping", "stop_on_collapse", "freeze_encoder_epochs"), 0)
        for name in ("max_length", "steps", "grid_cells", "epochs", "batch_size", "accumulate", *none):
            at_least, most = ({"max_length": 3} | none).get(name, 1), MOST_CELLS if name == "grid_cells" else 10**9
            value = getattr(self, name)
            good = is_whole(value) and value >= at_least
            check(self, name, good, f"a whole number of at least {at_least}")
            check(self, name, value <= most, f"at most {most:,}")
        for entry in fields(self):
            value, allowed = getattr(self, entry.name), entry.metadata.get("choices")
            if entry.type == "bool":
                check(self, entry.name, isinstance(value, bool), "True or False")
            elif entry.type in ("str", "str | None"):
                right = isinstance(value, str) or (value is None and entry.type == "str | None")
                check(self, entry.name, right, "a string")
                check(self, entry.name, value is None or is_text(value), "text, without half letters and NUL")
            check(self, entry.name, allowed is None or value in allowed, f"one of {', '.join(allowed or ())}")
        names = (self.text_column, self.label_column)
        check(self, "label_column", names[0] != names[1], "another column than --text-column")
        check(self, "text_b_column", self.text_b_column not in names, "another column than the text's and the label's")
        good = self.delimiter in ("auto", "tab") or (len(self.delimiter) == 1 and self.delimiter not in '"\r\n')
        check(self, "delimiter", good, "one character, tab, or auto")
        good = self.examples == "all" or (is_count(self.examples) and int(self.examples) > 0)
        check(self, "examples", good, "all, or a whole number of at least 1")
        frozen = [re.fullmatch(r"embeddings|encoder|layers:\d+-\d+", part) for part in self.freeze.split(",")]
        allowed = "none, or embeddings, layers:I-J, encoder, with commas between, such as embeddings,layers:1-4"
        check(self, "freeze", self.freeze == "none" or all(frozen), allowed)
        lr, warmup, decay, clip = self.lr, self.warmup, self.weight_decay, self.clip
        check(self, "lr", is_number(lr) and 0 < lr <= 1, "a number above 0 and at most 1; 1e-6 to 1e-4 is usual")
        good = is_number(warmup) and (0 <= warmup < 1 or (warmup >= 1 and warmup % 1 == 0))
        check(self, "warmup", good, "a fraction below 1 or a whole number of steps")
        check(self, "weight_decay", is_number(decay) and 0 <= decay <= 1, "a number from 0 to 1")
        smoothing = self.label_smoothing
        check(self, "label_smoothing", is_number(smoothing) and 0 <= smoothing < 1, "a number from 0 to below 1")
        check(self, "save_every", is_number(self.save_every) and self.save_every >= 0, "minutes, at least 0")
        check(self, "clip", is_number(clip) and clip >= 0, "a norm above 0, or 0 for none")
        _ = self.rates, self.patience, self.seeds  # read now, so that what is wrong in them is refused now

    @cached_property
    def rates(self) -> tuple[float, float, float]:
        """The dropout rates on hidden states, on attention weights, in front of the head."""
        try:
            rates = [float(part) for part in self.dropout.split(",")]
        except ValueError:
            rates = []
        good = len(rates) in (1, 3) and all(0 <= rate < 1 for rate in rates)
        check(self, "dropout", good, "one rate or HIDDEN,ATTENTION,HEAD, each at least 0 and below 1")
        hidden, attention, head = (rates * 3)[:3]
        return hidden, attention, head

    @cached_property
    def patience(self) -> int:
        """Steps in a row whose gradient may be not finite."""
        word, colon, number = self.on_nonfinite.partition(":")
        good = self.on_nonfinite in ("stop", "skip") or (word == "skip" and is_count(number) and int(number) > 0)
        check(self, "on_nonfinite", good, "stop, skip, or skip:N with a whole number N from 1")
        return int(number) if colon else {"stop": 0, "skip": 10}[word]

    @cached_property
    def seeds(self) -> Seeds:
        return Seeds.parse(self.seed)


def add_flags(
    parser: argparse.ArgumentParser, names: Sequence[str] | None = None, many: bool = False
) -> dict[str, argparse._ArgumentGroup]:
    """A flag for each field of TrainConfig (or for those in `names`), under the heading that the field names.

    A flag that is not given leaves no trace, so that TrainConfig's own default holds. What may be chosen from is shown
    here and checked there.

    Args:
        many: each flag takes one value or more, and gives a list; those of on and off are written so.

    Returns:
        The groups, by heading.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for entry in fields(TrainConfig):
        if names is not None and entry.name not in names:
            continue
        heading = entry.metadata["group"]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        more: dict[str, Any] = {"help": entry.metadata["help"]}
        if entry.default is not None:
            usual = entry.default if entry.type != "bool" else "on" if entry.default else "off"
            more["help"] += f" (default: {usual})"
        if many:
            more["nargs"] = "+"
        if entry.type == "bool" and many:
            more |= {"type": on_off, "metavar": "on|off"}
        elif entry.type == "bool":
            more["action"] = argparse.BooleanOptionalAction
        else:
            more["type"], more["metavar"] = {"int": (int, "N"), "float": (float, "X")}.get(
                str(entry.type), (str, entry.name.upper())
            )
        if "choices" in entry.metadata:
            more["metavar"] = f"{{{','.join(entry.metadata['choices'])}}}"
        groups[heading].add_argument(flag(entry.name), dest=entry.name, default=argparse.SUPPRESS, **more)
    return groups


def on_off(word: str) -> bool:
    """
    Raises:
        InputError: another word.
    """
    if word not in ("on", "off"):
        raise InputError(f"{word}: it must be on or off")
    return word == "on"


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def field_of(name: str) -> Field[Any]:
    return next(entry for entry in fields(TrainConfig) if entry.name == name)


def is_whole(value: Any) -> bool:
    """Whether it is an int; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(word: str) -> bool:
    """Whether it is a whole number from 0 on, of a size that can be meant."""
    return word.isdecimal() and len(word) < 16


def is_text(value: str) -> bool:
    """Whether files and JSON can hold it: a path of other bytes than UTF-8's comes as halves of letters."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, and finite."""
    return (is_whole(value) or isinstance(value, float)) and abs(value) <= sys.float_info.max


def check(config: TrainConfig, name: str, good: bool, allowed: str) -> None:
    if not good:
        value = getattr(config, name)
        # A word is shown as it was written on the command line, any other thing so that its type is seen.
        kind = field_of(name).type.removesuffix(" | None")
        wrong = type(value).__name__ != kind and not (kind == "float" and is_whole(value))
        shown = value if isinstance(value, str) and kind == "str" else repr(value)
        raise InputError(
            f"{flag(name)} {shown}: it must be {allowed}" + (f" (got {type(value).__name__})" if wrong else "")
        )

"""The Python door: train on a file or on data in memory, and predict. Prints nothing unless asked.

A head of one's own is a class or function that is called as head(hidden_size, num_labels). Its linear maps, embeddings
and LayerNorms start as BERT's; a part with a `reset_parameters` starts as that says, under the head's seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert.config import TrainConfig, field_of
from minibert.data import Examples
from minibert.data.columns import Texts
from minibert.data.table import Table, columns_of, table_of_rows
from minibert.data.windows import Encoding, checked_windows, table_of_arrays
from minibert.engine.machine import choose_device, choose_machine
from minibert.engine.network import length_multiple
from minibert.errors import InputError, silent
from minibert.evaluation import predict
from minibert.lines import tell
from minibert.notebook import MOST, Answers, Report, facts_html, run_html
from minibert.progress import no_bars
from minibert.setup import Head
from minibert.training import folder, run
from minibert.training.outcome import evaluate_run, evaluator, load_run

WHERE = "data in memory"


@dataclass(frozen=True)
class Data:
    """n examples in memory.

    Attributes:
        inputs: n texts, or windows (n, steps, channels) of numbers.
        labels: n classes; their names are str(label).
        pairs: n second texts, or None.
        groups: n names of what must not stand in two splits (a person, a document), or None.
        splits: n of "train", "val", "test"; None: as the README says of a file without a `split` column.
        channels: the names of the windows' channels, or None.
    """

    inputs: Any
    labels: Any
    pairs: Any = None
    groups: Any = None
    splits: Any = None
    channels: Any = None

    def table(self) -> Table:
        """
        Raises:
            InputError: what a file with the same content is refused for; parts of different length.
        """
        parts = {"label": self.labels, "text_b": self.pairs, "group": self.groups, "split": self.splits}
        columns = {name: list(values) for name, values in parts.items() if values is not None}
        count = len(self.inputs)
        for name, values in columns.items():
            if len(values) != count:
                raise InputError(f"{WHERE}: {count} inputs, but {len(values)} of {name}")
        for i, label in enumerate(columns["label"]):
            if label is None or (isinstance(label, float) and math.isnan(label)):
                raise InputError(f"{WHERE}: label {i} is {label}; give one, or leave the example out")
        if is_windows(self.inputs):
            arrays = {"x": np.asarray(self.inputs), "y": np.array([str(label) for label in columns["label"]])}
            arrays |= {
                name: np.array([str(v) for v in columns[name]]) for name in ("group", "split") if name in columns
            }
            if self.channels is not None:
                arrays["channels"] = np.array(list(self.channels))
            digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values()))
            return table_of_arrays(WHERE, WHERE, digest.hexdigest(), arrays)
        columns["text"] = checked_texts(self.inputs)
        rows = [(f"{WHERE}, row {i}", {name: values[i] for name, values in columns.items()}) for i in range(count)]
        digest = hashlib.sha256(json.dumps([row for _, row in rows], default=str).encode())
        return table_of_rows(WHERE, digest.hexdigest(), rows)


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        path: its folder.
        history: a row per epoch, as in metrics.jsonl.
    """

    path: Path
    history: list[dict[str, Any]]
    head: Head | None = None
    table: Table | None = None

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch, as `select` says, whose model is kept."""
        return folder.best_of(self.history, folder.read_run(self.path)[0].select)

    def report(self) -> Report:
        """{"val": ..., "test": ...}, what `eval.py --json` prints: accuracy, macro_f1, confusion, verdict, ..."""
        with no_bars():
            return Report(evaluate_run(self.path, self.head, self.table)[0])

    def classifier(self) -> Classifier:
        """The best model, to predict with."""
        return Classifier.load(self.path, self.head)

    def _repr_html_(self) -> str:
        config, _ = folder.read_run(self.path)
        settings = {name: getattr(config, name) for name in ("data", "init", "model", "epochs", "batch_size", "lr")}
        return run_html(self.path, settings, self.history, self.best["epoch"])


def train(
    config: TrainConfig | None = None,
    data: Data | tuple[Any, Any] | None = None,
    *,
    head: Head | None = None,
    verbose: bool = False,
) -> Run:
    """Train a classifier, as train.py does.

    Args:
        config: the settings; None: the defaults.
        data: (inputs, labels), or a `Data`; None: what `config.data` names.
        head: a class or function that is called as head(hidden_size, num_labels) and gives a module from (B, D) to
            (B, C); None: BERT's dropout and linear map.
        verbose: print what train.py prints.

    Raises:
        InputError: the settings, the data or the head cannot be used; the line says what to do.
    """
    config = TrainConfig() if config is None else config
    if not isinstance(config, TrainConfig):
        raise InputError(f"config is a {type(config).__name__}; it must be a TrainConfig")
    table = None
    if data is not None:
        if config.data != field_of("data").default:
            raise InputError(f"data twice: in memory, and TrainConfig(data={config.data!r}); leave one out")
        if isinstance(data, tuple) and len(data) == 2:
            data = Data(*data)
        if not isinstance(data, Data):
            raise InputError(f"data is a {type(data).__name__}; it must be (inputs, labels) or minibert.Data(...)")
        table = data.table()
    with nullcontext() if verbose else no_bars():
        path = run.train(config, tell if verbose else silent, head, table)
    return Run(path, folder.read_history(path), head, table)


class Classifier:
    """A run's best model, for new texts or windows.

    Attributes:
        labels: the class names, in the order of the probabilities.
        encoding: how windows become texts; None: it takes texts.
        config: the run's settings.
    """

    def __init__(self, path: Path, head: Head | None = None, precision: str | None = None) -> None:
        config, content, model, self.tokenizer = load_run(path, head)
        dataset = content["dataset"]
        if not {"encoding", "labels", "pairs"} <= dataset.keys():
            raise InputError(f"{path} was made by an older version, which did not keep how inputs are read; train anew")
        self.config = config
        self.path, self.labels, self.pairs, self.head = path, list(dataset["labels"]), bool(dataset["pairs"]), head
        self.encoding = None if dataset["encoding"] is None else Encoding.from_dict(dataset["encoding"])
        self.max_length = min(config.max_length, model.config.max_position_embeddings)
        self.network = evaluator(model, choose_machine(precision or content["precision"], choose_device()), [])

    @classmethod
    def load(cls, path: str | Path, head: Head | None = None) -> Classifier:
        """
        Args:
            path: a run's folder.
            head: for a run with a head of one's own, what `train` was given.

        Raises:
            InputError: not a run, no model in it, or `head` is missing.
        """
        return cls(Path(path), head)

    def predict(self, inputs: Any, pairs: Sequence[str] | None = None) -> list[str]:
        """The class names of n texts, or of windows (n, steps, channels).

        Args:
            pairs: n second texts, where the run was trained with such.

        Raises:
            InputError: inputs of another kind than the run was trained on.
        """
        return [self.labels[place] for place in self.predict_proba(inputs, pairs).argmax(axis=1)]

    def predict_proba(self, inputs: Any, pairs: Sequence[str] | None = None) -> np.ndarray:
        """As predict: (n, C), the probability of each class, in the order of `labels`."""
        ids, types = self.encode(inputs, pairs)
        if not ids:
            return np.zeros((0, len(self.labels)))
        nothing = np.zeros(len(ids), np.int64)
        examples = Examples(Texts.of(ids), None if types is None else Texts.of(types), nothing, nothing)
        self.network.multiple = length_multiple([examples])
        return predict(self.network, examples).logits.double().softmax(dim=1).numpy()

    def answers(self, inputs: Any, pairs: Sequence[str] | None = None) -> Answers:
        """As predict: for each input a dictionary of row, label, confidence and p {class: probability}."""
        rows = []
        for row, p in enumerate(self.predict_proba(inputs, pairs)):
            best = int(p.argmax())
            rows.append({"row": row, "label": self.labels[best], "confidence": round(float(p[best]), 6),
                         "p": {label: round(float(value), 6) for label, value in zip(self.labels, p)}})  # fmt: skip
        texts, seconds = self.texts(inputs, pairs)
        return Answers(rows, texts if seconds is None else [f"{a} | {b}" for a, b in zip(texts, seconds)])

    def _repr_html_(self) -> str:
        model = self.network.model
        takes = "pairs of texts" if self.pairs else "texts" if self.encoding is None else self.encoding.describe()
        return facts_html(self.path, {
            "classes": ", ".join(self.labels[:MOST]) + ("" if len(self.labels) <= MOST else ", ..."),
            "takes": f"{takes}, up to {self.max_length} tokens",
            "network": f"{model.config.num_hidden_layers} layers, {model.config.hidden_size} wide,"
                       f" {sum(p.numel() for p in model.parameters()):,} parameters",
        })  # fmt: skip

    def encode(self, inputs: Any, pairs: Sequence[str] | None) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Inputs as they were read for training: ids, and token types where there are pairs."""
        texts, pairs = self.texts(inputs, pairs)
        if not texts:
            return [], None
        ids, types, _ = self.tokenizer.encode(texts, pairs, self.max_length)
        as_arrays = [[np.asarray(row, dtype) for row in rows] for rows, dtype in ((ids, np.int32), (types, np.uint8))]
        return as_arrays[0], as_arrays[1] if self.pairs else None

    def texts(self, inputs: Any, pairs: Sequence[str] | None) -> tuple[list[str], list[str] | None]:
        """Inputs as the tokenizer is given them: texts, and second texts where the run has pairs."""
        if (pairs is not None) != self.pairs:
            raise InputError(f"{self.path} was trained {'on pairs of texts' if self.pairs else 'without second texts'}")
        if self.encoding is None:
            texts = checked_texts(inputs)
        elif not is_windows(inputs):
            raise InputError(f"{self.path} was trained on windows; give an array (windows, steps, channels)")
        else:
            if not len(inputs):
                return [], None
            windows, _ = checked_windows(WHERE, {"x": np.asarray(inputs)})
            self.encoding.check(windows, WHERE)
            texts = self.encoding.texts(windows)
        if pairs is not None:
            pairs = checked_texts(pairs)
            if len(pairs) != len(texts):
                raise InputError(f"{len(texts)} texts, but {len(pairs)} second texts")
        return texts, pairs


def is_windows(inputs: Any) -> bool:
    return getattr(inputs, "ndim", 1) == 3


def checked_texts(texts: Any) -> list[str]:
    """
    Raises:
        InputError: one text alone, or something that is no text.
    """
    if isinstance(texts, str):
        raise InputError("one text alone; give a list of texts")
    if getattr(texts, "ndim", 1) != 1:
        raise InputError(f"inputs of shape {texts.shape}; give a list of texts, or windows (windows, steps, channels)")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} is {text!r}, a {type(text).__name__}; it must be a string")
    columns_of([(f"text {i}", {"text": text}) for i, text in enumerate(texts)], needed=("text",), known=("text",))
    return [str(text) for text in texts]

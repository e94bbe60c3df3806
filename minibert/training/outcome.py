"""What came of a run: its best model's figures on validation and test, from its folder alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.checkpoint import load_classifier, read_config
from minibert.config import TrainConfig
from minibert.data import Examples, check_vocabulary, load_dataset
from minibert.data.table import Table
from minibert.engine.machine import Machine, choose_device, choose_machine
from minibert.engine.network import Network, half_weights, length_multiple, network_for, with_copies
from minibert.errors import InputError
from minibert.evaluation import Outputs, predict, report
from minibert.files import replace_file
from minibert.model import BertClassifier, reads_of
from minibert.setup import Head, make_head
from minibert.tokenizer import Tokenizer
from minibert.training.folder import has_model, own_tokenizer, read_history, read_run
from minibert.training.keeper import how_to_go_on

Put = Callable[[Path, Callable[[Path], Any]], None]


class Saved(NamedTuple):
    """A run's settings, its config.json, its best model in eval mode, and its tokenizer."""

    config: TrainConfig
    content: dict[str, Any]
    model: BertClassifier
    tokenizer: Tokenizer


def load_run(path: Path, head: Head | None = None) -> Saved:
    """
    Args:
        head: for a run with a head of one's own, that head.

    Raises:
        InputError: not a run, no epoch of it has ended, its weights were dropped, or `head` is missing or another.
    """
    config, content = read_run(path)
    if not config.save:
        raise InputError(f"{path} was trained with --no-save, so it has no model; metrics.jsonl has its figures")
    if (path / "outcome.json").is_file() and not (path / "model" / "model.safetensors").is_file():
        raise InputError(f"{path} was scored and its weights were dropped; outcome.json and predictions.csv have what"
                         " came of it, ablate --keep-weights keeps the weights, too")  # fmt: skip
    if not has_model(path):
        if "ended" in content or read_history(path):
            raise InputError(
                f"{path / 'model'}, the best epoch, is gone, and nothing else holds it; start the run anew"
            )
        raise InputError(f"{path} has no model yet; its first epoch has not ended ({how_to_go_on(path)} goes on)")
    if not own_tokenizer(path, content):
        raise InputError(f"{path / 'model' / 'tokenizer.json'} is not the run's own; {how_to_go_on(path)} puts it back")
    if head is None and content.get("head"):
        name = content["head"]
        raise InputError(
            f"{path} was trained with a head of your own, {name}, which only Python has:"
            f" Classifier.load({str(path)!r}, head={name})"
        )
    if head is not None:
        numbers = read_config(path / "model")
        head = make_head(head, numbers.hidden_size, numbers.num_labels)
        if (reads_of(head) == "tokens") != (numbers.pool == "tokens"):
            reads = "all tokens" if numbers.pool == "tokens" else "one vector"
            raise InputError(
                f"{path} was trained with the head {content.get('head') or config.head}, which reads {reads};"
                f" {type(head).__name__} does not"
            )
    model, tokenizer = load_classifier(path / "model", head), Tokenizer.load(path / "model")
    check_vocabulary(tokenizer, model.config.vocab_size, str(path / "model"))
    labels = content["dataset"].get("labels")
    if labels is not None and len(labels) != model.config.num_labels:
        raise InputError(f"{path}: config.json has {len(labels)} labels, model/config.json {model.config.num_labels}")
    return Saved(config, content, model, tokenizer)


def evaluate_run(
    path: Path, head: Head | None = None, table: Table | None = None
) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Rebuild a run's data and best model from its folder and score validation and test.

    Args:
        head, table: what `train` was given.

    Returns:
        {"val": report, "test": report}, and a dictionary an example for `write_predictions`, each made when it is
        asked for: of many classes, all of them at once would take more memory than the model.

    Raises:
        InputError: as load_run; the run's data are not what they were.
    """
    config, content, model, tokenizer = load_run(path, head)
    data = load_dataset(config, tokenizer, model.config.max_position_embeddings, table)
    was = content["dataset"]
    if data.sha256 != was["sha256"]:
        raise InputError(f"{config.data} changed since {path} was trained (SHA-256 {was['sha256'][:12]} then)")
    machine = choose_machine(content["precision"], choose_device())
    network = evaluator(model, machine, [data.val, data.test])
    splits = {"val": data.val, "test": data.test}
    outputs = {name: predict(network, split, processes=machine.processes) for name, split in splits.items()}
    reports = {name: report(outputs[name], split.labels, data.labels) for name, split in splits.items()}
    rows = (row for name, split in splits.items() for row in predictions(name, split, outputs[name], data.labels))
    return reports, rows


def predictions(name: str, split: Examples, outputs: Outputs, labels: list[str]) -> Iterator[dict[str, Any]]:
    """A dictionary an example, see write_predictions."""
    for i, (row, label, p) in enumerate(zip(split.rows, split.labels, outputs.logits.softmax(dim=1))):
        group, p = {} if split.groups is None else {"group": split.groups[i]}, p.tolist()
        best = max(range(len(p)), key=p.__getitem__)
        yield {
            "split": name, "row": int(row), **group, "label": labels[label], "predicted": labels[best],
            "confidence": round(p[best], 6), **{f"p({c})": round(value, 6) for c, value in zip(labels, p)},
        }  # fmt: skip


def evaluator(model: BertClassifier, machine: Machine, splits: Sequence[Examples]) -> Network:
    """A network that evaluates `model`, which moves to the machine's device."""
    model.to(machine.device).eval()
    model = with_copies(model, half_weights(model, machine))
    return network_for(model, machine, model.config.pad_token_id, length_multiple(splits))


def write_predictions(path: Path, rows: Iterable[dict[str, Any]], put: Put = replace_file) -> None:
    """A .csv: split, row (place in the data, from 0), group where there are any, label, predicted, confidence, and a
    column a class.

    Args:
        put: what brings it to its place: write_output where the user named it.
    """

    def write(beside: Path) -> None:
        with open(beside, "w", newline="", encoding="utf-8") as file:
            writer = None
            for row in rows:
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow(row)

    put(path, write)

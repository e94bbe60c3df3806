"""What a classifier got right: accuracy, loss, macro-F1, per class, the majority class beside them, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.data import Examples
from minibert.engine.network import Network
from minibert.engine.processes import ALONE, Processes
from minibert.lines import WIDTH, cell, columns, fold, visible
from minibert.verdict import Directions, is_shut, judge


class Outputs(NamedTuple):
    """What a model makes of n examples: float32 on the CPU, in their order."""

    logits: Tensor  # (n, C)
    pooled: Tensor | Directions  # (n, D), what the head read
    shut: bool  # all branches gated off, see verdict.is_shut


@torch.no_grad()
def predict(
    network: Network, examples: Examples, rows: Sequence[int] | None = None, processes: Processes = ALONE,
    behind: Callable[[], None] = lambda: None,
) -> Outputs:  # fmt: skip
    """The logits of the examples at `rows` (None: all), and the directions of the vectors behind them. In portions by
    length, so that little is padded; the same ones however many processes share them out.

    Args:
        behind: called behind each portion; what it raises ends this.
    """
    model, was_training = network.model, network.model.training
    model.eval()
    rows = np.arange(len(examples)) if rows is None else np.asarray(rows)
    lengths = examples.ids.lengths[rows]
    order = np.argsort(lengths, kind="stable")
    parts: list[tuple[Tensor, Directions]] = []
    with network.autocast():
        for portion in processes.share(network.portions(lengths[order])):
            batch = network.batch(examples, rows[order[portion]].tolist())
            logits, vectors = (part.float().cpu() for part in network(batch))
            parts.append((logits, Directions.of(vectors)))
            behind()
    model.train(was_training)
    back = np.argsort(order)
    logits, directions = zip(*processes.join(parts))
    return Outputs(torch.cat(logits)[back], sum(directions[1:], directions[0]), is_shut(model.bert))


def report(outputs: Outputs, labels: np.ndarray, names: list[str]) -> dict[str, Any]:
    """
    Args:
        outputs: of n examples; labels: (n,) in 0 .. C - 1; names: C.

    Returns:
        n, accuracy, loss (mean cross-entropy per example), macro_f1 (over the classes that occur or are predicted),
        majority (the accuracy of always saying the commonest class, so no constant answer is better) and its class,
        `classes` {name: precision, recall, f1, support}, `confusion`, a row a true class, a column a predicted one, and
        `verdict`, the fields of a `Verdict`.
    """
    logits, labels = outputs.logits, labels.astype(np.int64)
    count = len(names)
    target = torch.from_numpy(labels)
    guess = logits.argmax(dim=1).numpy()
    confusion = np.bincount(labels * count + guess, minlength=count * count).reshape(count, count)
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    common = int(support.argmax())
    return {
        "n": len(labels),
        "accuracy": float(hits.sum() / len(labels)),
        "loss": torch.nn.functional.cross_entropy(logits, target, reduction="sum").item() / len(labels),
        "macro_f1": float(f1[support + predicted > 0].mean()),
        "majority": float(support[common] / len(labels)),
        "majority_class": names[common],
        "classes": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
        "verdict": asdict(judge(*outputs[:2], labels, outputs.shut)),
    }


NAME = 24  # columns of a class name at most; a longer one is cut, and stands whole below the table
MISTAKES = 10  # that are listed where there are too many classes for a matrix
MOST = 100  # classes that are listed; of more, WORST of them
WORST = 20


def format_report(title: str, result: dict[str, Any]) -> str:
    """The report for a terminal. The matrix stands beside the table, or below it, or is a list of the most frequent
    mistakes, whichever fits; of very many classes the table has the worst.
    """
    names, confusion = list(result["classes"]), np.array(result["confusion"])
    listed = list(enumerate(names, 1))
    if len(names) > MOST:
        occur = [(i, name) for i, name in listed if result["classes"][name]["support"]]
        listed = sorted(occur, key=lambda entry: result["classes"][entry[1]]["f1"])[:WORST]
    digits = len(str(len(names)))
    wide = 1 + max(digits, len(str(confusion.max())))
    width = min(NAME, max(columns(visible(name)) for _, name in [*listed, (0, "true class")]))
    table = [f"  {'#':>{digits}}  {'true class':<{width}}  precision  recall  count"]
    for i, name in listed:
        row = result["classes"][name]
        table.append(
            f"  {i:>{digits}}  {cell(name, width)}  {row['precision']:9.3f}  {row['recall']:6.3f}  {row['support']:5}"
        )
    matrix = []
    if len(names) <= WIDTH:
        matrix = ["".join(f"{value:>{wide}}" for value in row) for row in (range(1, len(names) + 1), *confusion)]
    lines = [
        f"{title}  accuracy {result['accuracy']:.3f}  loss {result['loss']:.3f}  macro-F1 {result['macro_f1']:.3f}"
        f"  n {result['n']:,}",
        f"{'':<{len(title)}}  majority baseline {result['majority']:.3f} (always {result['majority_class']!r})",
    ]
    if len(names) > MOST:
        lines.append(f"  the {len(listed)} of {len(names):,} classes with the lowest F1 (--json has all):")
    if matrix and columns(table[0]) + 1 + len(matrix[0]) <= WIDTH:
        lines.append(" " * (columns(table[0]) + 2) + "predicted as")
        lines += [f"{left} {right}" for left, right in zip(table, matrix)]
    elif matrix and digits + 4 + len(matrix[0]) <= WIDTH:
        lines += [*table, f"  {'':>{digits}}   predicted as"]
        lines += [f"  {number:>{digits}}  {row}" for number, row in zip(("", *range(1, len(names) + 1)), matrix)]
    else:
        lines += [*table, *mistakes(names, confusion)]
    lines += [
        f"  {i:>{digits}}: {visible(name)}" for i, name in listed if columns(visible(name)) > width
    ]  # fmt: skip
    verdict = result["verdict"]
    cosine = "-" if verdict["cosine"] is None else f"{verdict['cosine']:.6f}"
    lines.append(
        f"  {verdict['name']}: the best constant answer has loss {verdict['class_entropy']:.3f}; predicted classes have"
        f" entropy {verdict['prediction_entropy']:.3f}, the largest {verdict['top_share']:.3f} of all; cosine between"
        f" inputs {cosine}, logits spread {verdict['spread']:.2g}"
    )
    return "\n".join(map(fold, lines))


def mistakes(names: list[str], confusion: np.ndarray) -> list[str]:
    """The most frequent pairs of true and predicted class, for more classes than a matrix has room for."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    most = [int(i) for i in wrong.ravel().argsort(kind="stable")[::-1][:MISTAKES] if wrong.flat[i]]
    half = (WIDTH - 16) // 2
    return ["  most frequent mistakes (--json has the whole matrix):"] + [
        f"  {wrong.flat[i]:>6,}  {cell(names[i // len(names)], half).rstrip()} -> "
        f"{cell(names[i % len(names)], half).rstrip()}"
        for i in most
    ]

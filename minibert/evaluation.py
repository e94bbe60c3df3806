"""What a classifier got right: accuracy, loss, macro-F1, per class, the majority class beside them, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.data import Examples
from minibert.engine.network import Network
from minibert.verdict import is_shut, judge


class Outputs(NamedTuple):
    """What a model makes of n examples: float32 on the CPU, in their order."""

    logits: Tensor  # (n, C)
    pooled: Tensor  # (n, D), what the head read
    shut: bool  # all branches gated off, see verdict.is_shut


@torch.no_grad()
def predict(network: Network, examples: Examples, rows: Sequence[int] | None = None) -> Outputs:
    """The logits of the examples at `rows` (None: all), and the vectors behind them. In portions by length, so that
    little is padded.
    """
    model, was_training = network.model, network.model.training
    model.eval()
    rows = np.arange(len(examples)) if rows is None else np.asarray(rows)
    lengths = np.array([len(examples.ids[i]) for i in rows])
    order = np.argsort(lengths, kind="stable")
    parts: list[tuple[Tensor, Tensor]] = []
    with network.autocast():
        for portion in network.portions(lengths[order]):
            batch = network.batch(examples, rows[order[portion]].tolist())
            parts.append(tuple(part.float().cpu() for part in network(batch)))
    model.train(was_training)
    back = np.argsort(order)
    logits, vectors = (torch.cat(part)[back] for part in zip(*parts))
    return Outputs(logits, vectors, is_shut(model.bert))


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
    logits = outputs.logits
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


def format_report(title: str, result: dict[str, Any]) -> str:
    """The report as a table for a terminal."""
    names = list(result["classes"])
    width = max(len(name) for name in [*names, "true class"])
    cell = max(5, len(str(max(map(max, result["confusion"])))) + 1)
    lines = [
        f"{title}  accuracy {result['accuracy']:.3f}  loss {result['loss']:.3f}  macro-F1 {result['macro_f1']:.3f}"
        f"  n {result['n']:,}  (always {result['majority_class']!r}: {result['majority']:.3f})",
        f"  {'true class':<{width}}  precision  recall  support  predicted as "
        + "".join(f"{i + 1:>{cell}}" for i in range(len(names))),
    ]
    for i, (name, row) in enumerate(zip(names, result["confusion"])):
        figures = result["classes"][name]
        lines.append(
            f"  {name:<{width}}  {figures['precision']:9.3f}  {figures['recall']:6.3f}  {figures['support']:7,}"
            f"  {i + 1:>12} " + "".join(f"{value:>{cell}}" for value in row)
        )
    verdict = result["verdict"]
    cosine = "-" if verdict["cosine"] is None else f"{verdict['cosine']:.6f}"
    lines.append(
        f"  {verdict['name']}: loss of the best constant answer {verdict['class_entropy']:.3f}, predicted classes have"
        f" entropy {verdict['prediction_entropy']:.3f}, the commonest {verdict['top_share']:.3f}; cosine between inputs"
        f" {cosine}, logits spread {verdict['spread']:.2g}"
    )
    return "\n".join(lines)

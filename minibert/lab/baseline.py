"""eval.py RUN --baseline words | forest: what does without BERT reach? Needs the extra `sklearn`.

It is trained on the very training examples of the run and scored on the same validation and test examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minibert.config import TrainConfig
from minibert.data import chosen_rows, read_table
from minibert.data.columns import Names
from minibert.data.table import Table
from minibert.data.windows import Encoding
from minibert.errors import InputError
from minibert.evaluation import Outputs, report
from minibert.lab.ablation.statistics import Interval, over_examples, wilson
from minibert.lines import fold
from minibert.training.folder import read_run

KINDS = ("words", "forest")
TREES = 300
SMALLEST = 1e-12  # probability: a forest may give 0, whose loss is infinite


def check_kind(kind: str) -> None:
    """
    Raises:
        InputError: not of KINDS, or scikit-learn is not there.
    """
    if kind not in KINDS:
        raise InputError(f"--baseline {kind}: it must be one of {', '.join(KINDS)}")
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError("--baseline needs scikit-learn: pip install -e '.[sklearn]'") from None


def baseline(path: Path, kind: str, predictions: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Train one and score it beside a run.

    Args:
        kind: of KINDS.
        predictions: of the run, as evaluate_run gives them.

    Returns:
        kind, description, n (training examples), groups (whether examples come in such). By split, "val" and "test":
        `bert` {accuracy, interval}, `baseline` {accuracy, interval, macro_f1, loss}, `difference` of their accuracies
        {value, interval}. Intervals are 95 %, [low, high]; None where there is one group.

    Raises:
        InputError: as check_kind; the run's data are not there; there is no word in the texts.
    """
    check_kind(kind)
    right: dict[str, list[bool]] = {"val": [], "test": []}
    for row in predictions:
        right[row["split"]].append(row["label"] == row["predicted"])
    config, _ = read_run(path)
    table = read_table(config)
    parts = chosen_rows(config, table)
    labels = Names.of(table.labels)
    names = sorted(labels.names, key=table.label_order)
    y = np.array([names.index(label) for label in labels.names])[labels.codes]
    x, what = features(config, table, parts["train"], kind)
    model = classifier(kind, None if config.class_weights == "none" else config.class_weights)
    model.fit(x[parts["train"]], y[parts["train"]])
    how = "logistic regression" if kind == "words" else f"a random forest of {TREES} trees"
    result: dict[str, Any] = {"kind": kind, "description": f"{how} on {what}", "n": len(parts["train"]),
                              "groups": table.groups is not None}  # fmt: skip
    for split in ("val", "test"):
        rows = parts[split]
        p = model.predict_proba(x[rows])
        logits = torch.from_numpy(np.log(np.maximum(p, SMALLEST)))
        figures = report(Outputs(logits, logits, False), y[rows], names)
        ours = logits.argmax(dim=1).numpy() == y[rows]
        its = np.array(right[split])
        groups = table.groups and [table.groups[i] for i in rows]
        difference = over_examples(ours.astype(float) - its, groups)
        result[split] = {
            "bert": {"accuracy": float(its.mean()), "interval": bounds(accuracy_interval(its, groups))},
            "baseline": {name: figures[name] for name in ("accuracy", "macro_f1", "loss")}
            | {"interval": bounds(accuracy_interval(ours, groups))},
            "difference": {"value": float(ours.mean() - its.mean()), "interval": bounds(difference)},
        }
    return result


def features(config: TrainConfig, table: Table, train: np.ndarray, kind: str) -> tuple[Any, str]:
    """(n, features) of all rows, fitted on those of training, and what they are in words."""
    texts, pairs = table.texts, table.pairs
    if table.windows is not None:
        encoding = Encoding.fit(config, table, train)
        if kind == "forest":
            x = encoding.numbers(table.windows)
            return x.reshape(len(x), -1), f"the {x[0].size} numbers of a window"
        texts = encoding.texts(table.windows)
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer

    counts, is_train = [], np.zeros(len(table.labels), bool)
    is_train[train] = True
    for column in (texts, *([] if pairs is None else [pairs])):
        words = CountVectorizer(token_pattern=r"\b\w+\b")  # scikit-learn's own leaves out words of one letter
        try:
            words.fit(text for text, chosen in zip(column, is_train) if chosen)
        except ValueError as error:
            raise InputError(f"--baseline {kind}: {table.name} has no words to count: {error}") from None
        counts.append(words.transform(column))
    return hstack(counts, "csr"), "word counts"


def classifier(kind: str, class_weight: str | None) -> Any:
    if kind == "words":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=2000, class_weight=class_weight)
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(TREES, class_weight=class_weight, random_state=0)


def accuracy_interval(right: np.ndarray, groups: Sequence[str] | None) -> Interval | None:
    if groups is None:
        return wilson(int(right.sum()), len(right)).interval
    found = over_examples(right.astype(float), groups)
    return found and Interval(max(0.0, found.low), min(1.0, found.high))


def bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(astuple(interval))


def format_baseline(result: dict[str, Any], reports: dict[str, Any]) -> str:
    """The figures of the run and of the baseline, split by split, for a terminal."""

    def span(interval: list[float] | None, sign: str = "") -> str:
        return "-" if interval is None else f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"

    lines = [
        f"without BERT: {result['description']}, trained on the run's {result['n']:,} training examples",
        f"{'':12}accuracy  95 % interval   macro-F1   loss  difference, its interval",
    ]
    for split, title in (("val", "validation"), ("test", "test")):
        part, own = result[split], reports[split]
        lines.append(title)
        for name, accuracy, interval, figures in (
            ("BERT", own["accuracy"], part["bert"]["interval"], own),
            (result["kind"], part["baseline"]["accuracy"], part["baseline"]["interval"], part["baseline"]),
        ):
            lines.append(f"  {name:<8}  {accuracy:>8.3f}  {span(interval):<14}  {figures['macro_f1']:>8.3f}"
                         f"  {figures['loss']:>5.3f}")  # fmt: skip
        lines[-1] += f"  {part['difference']['value']:+.3f}, {span(part['difference']['interval'], '+')}"
    lines.append(
        "intervals: had other "
        + ("groups of examples" if result["groups"] else "examples")
        + " been drawn for validation and test; both trained once"
    )
    return "\n".join(map(fold, lines))

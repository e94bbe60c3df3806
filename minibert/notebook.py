"""What a notebook shows of runs, classifiers, reports and answers: parts of a page, see pages.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minibert.pages import curve, escaped, table

MOST = 50  # rows shown
CLASSES = 12  # that a matrix or a column each has room for
LETTERS = 60  # of a text


class Report(dict[str, Any]):
    """{"val": ..., "test": ...}: figures by split, as evaluation.report makes them."""

    def _repr_html_(self) -> str:
        return "".join(split_html(name, result) for name, result in self.items())


class Answers(list[dict[str, Any]]):
    """For each input a dictionary: row, label, confidence, and p, the probability of each class.

    Attributes:
        texts: what was asked.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
        super().__init__(rows)
        self.texts = list(texts)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no inputs</p>"
        names = list(self[0]["p"]) if len(self[0]["p"]) <= CLASSES else []
        rows = [
            [row["row"], brief(text), row["label"], row["confidence"], *(row["p"][name] for name in names)]
            for row, text in zip(self[:MOST], self.texts)
        ]
        more = f"<p>and {len(self) - MOST:,} more</p>" if len(self) > MOST else ""
        return table(["row", "input", "label", "confidence", *(f"p({name})" for name in names)], rows) + more


def brief(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def split_html(name: str, result: Mapping[str, Any]) -> str:
    """A split's figures, a row a class, and for few classes the confusion matrix."""
    head = (
        f"{name}: accuracy {result['accuracy']:.3f}, loss {result['loss']:.3f}, macro-F1 {result['macro_f1']:.3f},"
        f" n {result['n']:,}; majority baseline {result['majority']:.3f} ({result['majority_class']!r});"
        f" {result['verdict']['name']}"
    )
    classes = list(result["classes"].items())
    columns = ["true class", "precision", "recall", "F1", "count"]
    rows = [[label, row["precision"], row["recall"], row["f1"], row["support"]] for label, row in classes]
    if len(classes) <= CLASSES:
        columns += [f"as {label}" for label, _ in classes]
        rows = [[*row, *counts] for row, counts in zip(rows, result["confusion"])]
    more = f"<p>and {len(rows) - MOST:,} more classes</p>" if len(rows) > MOST else ""
    return f"<p><strong>{escaped(head)}</strong></p>{table(columns, rows[:MOST])}{more}"


def run_html(path: object, settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]], best: int) -> str:
    """A run: its start, a row an epoch, the curve.

    Args:
        settings: shown in one line; best: the epoch whose model is kept.
    """
    line = ", ".join(f"{name} {value}" for name, value in settings.items())
    columns = ["epoch", "train loss", "train accuracy", "val loss", "val accuracy", "verdict", ""]
    rows = [
        [row["epoch"], row["train_loss"], row["train_accuracy"], row["val_loss"], row["val_accuracy"],
         row["verdict"]["name"], "best" if row["epoch"] == best else ""]
        for row in history[-MOST:]
    ]  # fmt: skip
    picture = ""
    if history:
        words = f"accuracy: validation; dashed: training; dotted: majority baseline, {history[-1]['val_majority']:.3f}"
        picture = f'<div>{curve(history)}<br><small style="opacity: 0.75">{words}</small></div>'
    return (
        f"<div><p><strong>{escaped(path)}</strong><br>{escaped(line)}</p>"
        f'<div style="display: flex; flex-wrap: wrap; gap: 1rem">{table(columns, rows)}{picture}</div></div>'
    )


def facts_html(title: object, facts: Mapping[str, object]) -> str:
    """A thing and what is to be said of it, a row each."""
    return f"<div><p><strong>{escaped(title)}</strong></p>{table(['', ''], list(facts.items()))}</div>"

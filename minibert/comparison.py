"""Several runs side by side: eval.py RUN RUN ..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert.config import TrainConfig
from minibert.lines import cell, columns, fold, visible
from minibert.training.folder import read_run
from minibert.training.outcome import evaluate_run

START = 15  # columns of a start at most: all else needs 65 of 80
FIGURES = ("accuracy", "macro_f1", "loss")  # of a report


class Scored(NamedTuple):
    """A run and what came of it.

    Attributes:
        reports: {"val": report, "test": report}.
        examples: (split, row, label) of each example that was scored, and the data's hash: what the figures are about.
    """

    path: Path
    config: TrainConfig
    reports: dict[str, Any]
    examples: tuple[str, list[tuple[str, int, str]]]


def score(path: Path) -> Scored:
    """
    Raises:
        InputError: as evaluate_run.
    """
    config, content = read_run(path)
    reports, predictions = evaluate_run(path)
    examples = [(row["split"], row["row"], row["label"]) for row in predictions]
    return Scored(path, config, reports, (content["dataset"]["sha256"], examples))


def format_comparison(runs: Sequence[Scored]) -> str:
    """A table a split: accuracy, macro-F1 and loss, each with its difference to the first run's, then how a run came
    about.
    """
    first, lines = runs[0], []
    alike = [run.examples == first.examples for run in runs]
    width = min(START, max(5, *(columns(visible(run.config.init)) for run in runs)))
    for split, title in (("val", "validation"), ("test", "test")):
        report = first.reports[split]
        lines.append(f"{title}, n {report['n']:,}, majority baseline {report['majority']:.3f}" if all(alike) else title)
        head = f"{'accuracy':<12}  {'macro-F1':<12}  {'loss':<12}  {'start':<{width}}  {'lr':<7}  verdict"
        lines.append(f"   {head}")
        for number, run in enumerate(runs, 1):
            figures = []
            for name in FIGURES:
                value, difference = run.reports[split][name], run.reports[split][name] - first.reports[split][name]
                known = number > 1 and alike[number - 1]
                figures.append(f"{value:.3f} " + (f"{difference:+.3f}" if known else f"{'':6}"))
            rest = [cell(run.config.init, width), f"{run.config.lr:<7g}", run.reports[split]["verdict"]["name"]]
            lines.append(f"{number:>2} {'  '.join([*figures, *rest])}")
        lines.append("")
    lines += [f"{number:>2} {run.path}" for number, run in enumerate(runs, 1)]
    others = ", ".join(str(number) for number, same in enumerate(alike, 1) if not same)
    if others:
        lines.append(f"{others}: scored on other examples than 1, so there are no differences")
    lines.append("Differences are to 1. One run of each says nothing about spread: python -m minibert ablate does.")
    return "\n".join(map(fold, lines))

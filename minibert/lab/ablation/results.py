"""What a grid of runs left on disk, read back. A broken run is counted and never stops the others.

DIR/grid.json    {"format": 1, "baseline", "settled", "data", "commands", "runs": {NAME: settings}}: what it asks for
DIR/runs/NAME/   a run's folder, with outcome.json and predictions.csv once it is finished, failed.json if it failed
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import InputError
from minibert.files import parse_json, read_json
from minibert.lab.ablation.grid import FORMAT, check_content

FINISHED, UNFINISHED, FAILED, MISSING, BROKEN = STATES = ("finished", "unfinished", "failed", "missing", "broken")
SPLITS = ("val", "test")
SLACK = 0.005
KINDS = {"versions": dict, "dataset": dict, "checkpoint": dict, "device": str, "precision": str}  # in a config.json
RESOLVED = ("data", "model", "pool", "precision", "out")  # settings that a run may write down otherwise than asked


@dataclass(frozen=True)
class Answers:
    """Which examples of a split a run got right, in the order of their rows.

    Attributes:
        rows: (n,) places in the data; correct: (n,) bool.
        groups: whose each example is; None where the data have no groups.
    """

    rows: NDArray[np.int64]
    correct: NDArray[np.bool_]
    groups: tuple[str, ...] | None


@dataclass(frozen=True)
class Run:
    """One run that the grid asks for. All but settings, state and reason is empty unless it is finished.

    Attributes:
        reason: one line, why it is unfinished, failed or broken.
        config: its config.json; history: the rows of its metrics.jsonl; outcome: {"val": report, "test": report}.
        answers: by split.
    """

    name: str
    settings: dict[str, Any]
    state: str
    reason: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    outcome: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)

    @property
    def start(self) -> str:
        return self.settings["init"]

    @property
    def seed(self) -> str:
        return self.settings["seed"]

    @property
    def finished(self) -> bool:
        return self.state == FINISHED

    @property
    def verdict(self) -> str:
        return self.config["ended"]["verdict"]

    @property
    def failed(self) -> bool:
        return self.state == FAILED

    @property
    def val_accuracy(self) -> float:
        return self.accuracy("val")

    @property
    def test_accuracy(self) -> float:
        return self.accuracy("test")

    def accuracy(self, split: str) -> float:
        """Of the best epoch, from its predictions: what is compared example by example is this."""
        return float(self.answers[split].correct.mean())


@dataclass(frozen=True)
class Grid:
    """All runs that grid.json asks for, in its order, with what became of each.

    Attributes:
        question: what the grid is to answer; empty where it was put together by flags.
        claims: the notebook's claims are judged on it.
    """

    path: Path
    baseline: str | None
    settled: dict[str, Any]
    data: dict[str, str]
    commands: tuple[str, ...]
    runs: tuple[Run, ...]
    question: str = ""
    claims: bool = False


def read_grid(path: Path | str) -> Grid:
    """
    Raises:
        InputError: no grid.json, one that is none, or one without runs.
    """
    path = Path(path)
    file = path / "grid.json"
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("runs"), dict):
        raise InputError(f"{file} has no 'runs'; give the folder of a grid, as python -m minibert ablate names it")
    if content.get("format") != FORMAT:
        raise InputError(f"{file} has format {content.get('format')!r}, this minibert reads {FORMAT}")
    if not content["runs"]:
        raise InputError(f"{file} asks for no run; start python -m minibert ablate with --out {path}")
    check_content(file, content)
    for name, settings in content["runs"].items():
        if not all(isinstance(settings.get(key), str) for key in ("init", "seed")):
            raise InputError(f"{file}: run {name} has no settings with 'init' and 'seed'")
    return Grid(
        path=path,
        baseline=content.get("baseline"),
        settled=content.get("settled") or {},
        data=content.get("data") or {},
        commands=tuple(content.get("commands") or ()),
        runs=tuple(read_one(path / "runs" / name, name, settings) for name, settings in content["runs"].items()),
        question=str(content.get("question") or ""),
        claims=bool(content.get("claims")),
    )


def read_one(path: Path, name: str, settings: dict[str, Any]) -> Run:
    """What became of one run; whatever is wrong with its folder ends in the state and a line."""
    if not path.is_dir():
        return Run(name, settings, MISSING)
    try:
        if not (path / "outcome.json").exists() and (path / "failed.json").exists():
            return Run(name, settings, FAILED, one_line(read_json(path / "failed.json")["reason"]))
        absent = [file for file in ("outcome.json", "predictions.csv") if not (path / file).exists()]
        if absent:
            return Run(name, settings, UNFINISHED, f"there is no {absent[0]}")
        return read_finished(path, name, settings)
    except KeyError as error:
        reason = f"a file has no {error}"
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        reason = one_line(error)
    return Run(name, settings, BROKEN, reason)


def read_finished(path: Path, name: str, settings: dict[str, Any]) -> Run:
    """
    Raises:
        ValueError, KeyError, TypeError, AttributeError, OSError, csv.Error: its files are not whole, or another run's.
    """
    config, outcome = read_json(path / "config.json"), read_json(path / "outcome.json")
    was = config["settings"]
    other = [key for key, value in settings.items() if key not in RESOLVED and key in was and was[key] != value]
    if other:
        raise ValueError(f"config.json has another {other[0]} than the grid: {was[other[0]]!r}")
    if not isinstance(config["ended"]["verdict"], str):
        raise ValueError("config.json: 'verdict' is no name")
    number(config["ended"], "seconds")
    for part, kind in KINDS.items():
        if not isinstance(config.get(part, kind()), kind):
            raise ValueError(f"config.json: {part!r} is no {kind.__name__}")
    sizes = config.get("dataset", {}).get("sizes") or {"train": 1}
    texts = (config.get("git_commit"), config.get("dataset", {}).get("summary"), *config.get("versions", {}).values())
    if number(sizes, "train") < 1 or not all(isinstance(text, str | None) for text in texts):
        raise ValueError("config.json: not what a run writes of its data and versions")
    history = tuple(parse_json(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    if [row["epoch"] for row in history] != list(range(1, len(history) + 1)) or not history:
        raise ValueError("metrics.jsonl: its epochs are not 1, 2, 3, ...")
    for row in history:
        for key in ("train_accuracy", "val_accuracy", "examples_per_second", "seconds"):
            number(row, key)
        parts = row.get("parts", [])
        if not all(isinstance(part["name"], str) and {"gradient", "cls"} <= part.keys() for part in parts):
            raise ValueError("metrics.jsonl: 'parts' are not what a run writes")
    answers = read_answers(path / "predictions.csv")
    for split in SPLITS:
        correct, report = answers[split].correct, outcome[split]
        number(report, "majority")
        # Of equal logits the report may have taken another one than the predictions did.
        if len(correct) != report["n"] or abs(correct.mean() - number(report, "accuracy")) > SLACK + 1 / len(correct):
            raise ValueError(f"predictions.csv and outcome.json do not agree on {split}")
    return Run(name, settings, FINISHED, None, config, history, outcome, answers)


def read_answers(path: Path) -> dict[str, Answers]:
    """By split.

    Raises:
        ValueError, KeyError, csv.Error: not a whole file of `write_predictions`.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, strict=True))
    if any(None in line or None in line.values() for line in lines):
        raise ValueError(f"{path.name} is cut off, or has lines of unequal length")
    answers = {}
    for split in SPLITS:
        mine = sorted((line for line in lines if line["split"] == split), key=lambda line: int(line["row"]))
        if not mine:
            raise ValueError(f"{path.name} has no line of {split}")
        answers[split] = Answers(
            np.array([int(line["row"]) for line in mine]),
            np.array([line["label"] == line["predicted"] for line in mine]),
            tuple(line["group"] for line in mine) if "group" in mine[0] else None,
        )
    return answers


def number(part: dict[str, Any], key: str) -> float:
    """
    Raises:
        ValueError, KeyError: there is none, or none that is finite.
    """
    value = part[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key!r} is {value!r}, no number")
    return value


def one_line(text: object) -> str:
    return " ".join(str(text).split())

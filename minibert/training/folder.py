"""A run is a folder, and can be rebuilt from it alone. Nothing in it is a pickle.

config.json     every setting, the checkpoint's name and hash, the data's hash, versions, git commit
manifest.json   where each tensor's start came from
metrics.jsonl   one object an epoch
events.out...   with --tensorboard: the same figures
start.json      with --layers: what its rows have as `parts`, before the first step
model/          the best epoch so far, under published names, with tokenizer and label names; not with --no-save
state/          what --resume needs, until the run has ended; not with --no-save
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, astuple
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minibert.config import PRECISIONS, TrainConfig, is_whole
from minibert.engine.epochs import Cursor
from minibert.engine.machine import instructions, processor
from minibert.errors import InputError
from minibert.files import flush_folder, is_leftover, parse_json, read_json, replace_file, sha256, write_json
from minibert.heads import HEADS
from minibert.setup import Setup
from minibert.verdict import streak


def check_free(out: str) -> None:
    """
    Raises:
        InputError: there is something in `out` already; nothing of it is touched.
    """
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path} is a file; name a folder")
    if path.is_dir() and any(part.name != "lock" and not is_leftover(part) for part in path.iterdir()):
        if (path / "config.json").exists():
            raise InputError(f"--out {path} already holds a run; choose another folder, or --resume {quote(str(path))}")
        raise InputError(f"--out {path} already holds other files; choose another folder")


def new_folder(out: str | None, init: str) -> Path:
    """The folder of a new run, created empty.

    Args:
        out: as --out; None: runs/DATE-INIT, with a number behind it where that is taken.

    Raises:
        InputError: as check_free.
    """
    if out is not None:
        check_free(out)
        Path(out).mkdir(parents=True, exist_ok=True)
        return Path(out)
    stem = f"runs/{datetime.now():%Y%m%d-%H%M%S}-{init.replace(':', '-').replace('/', '-')}"
    for number in range(1, 1000):
        path = Path(stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise InputError(f"{stem} and 999 more are taken; give --out")


def begin(path: Path, setup: Setup) -> None:
    """Fill the folder of a new run with all that it starts from. config.json comes first: with it the folder is a run,
    and what a kill leaves out behind it, `complete` makes good when the run goes on.
    """
    write_json(path / "config.json", content_of(setup))
    complete(path, setup)


def own_head(setup: Setup) -> str | None:
    """What a head of one's own is called; None: it is one of `--head`'s."""
    kind = type(setup.model.head)
    return None if kind in HEADS.values() else kind.__name__


def content_of(setup: Setup) -> dict[str, Any]:
    """A run's config.json at its start."""
    versions = {name: installed(name) for name in ("minibert", "torch", "tokenizers", "safetensors", "numpy")}
    source, data = setup.source, setup.data
    return {
        "settings": asdict(setup.config),
        "checkpoint": {"name": source.name, "sha256": source.sha256, "files": source.files},
        "tokenizer": hashlib.sha256(setup.tokenizer.content()).hexdigest(),  # of model/tokenizer.json
        "head": own_head(setup),
        "dataset": {
            "summary": data.summary, "sha256": data.sha256, "labels": data.labels, "pairs": data.pairs,
            "encoding": None if data.encoding is None else data.encoding.to_dict(),
            "sizes": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        },
        "device": setup.machine.describe(),
        "processor": processor(),
        "instructions": instructions(),
        "precision": setup.machine.name,
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": git_commit(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }  # fmt: skip


def around(content: dict[str, Any]) -> dict[str, str]:
    """What moves a run's last bits though its settings stay, as its config.json has it. Older runs noted less."""
    noted = {name: content.get(name) for name in ("device", "processor", "instructions")}
    noted |= {name: content.get("versions", {}).get(name) for name in ("torch", "minibert")}
    return {name: value for name, value in noted.items() if value is not None}


def own_tokenizer(path: Path, content: dict[str, Any]) -> bool:
    """Whether model/tokenizer.json is the one that the run was begun with; of older runs, whether there is one."""
    file_path = path / "model" / "tokenizer.json"
    return file_path.is_file() and content.get("tokenizer") in (None, sha256(file_path))


def has_model(path: Path) -> bool:
    return all((path / "model" / name).is_file() for name in ("config.json", "model.safetensors"))


def check_there(path: Path) -> None:
    """
    Raises:
        InputError: somebody took the folder of a run away while it was at work.
    """
    if not path.is_dir():
        raise InputError(f"{path} is gone: deleted or moved while the run was at work; start it anew")


def complete(path: Path, setup: Setup) -> None:
    """Write what stands beside config.json from a run's start on, as far as it is not there, or not as it was."""
    if not (path / "manifest.json").is_file():
        write_json(path / "manifest.json", setup.manifest)
    for part in ("model", "state") if setup.config.save else ():
        (path / part).mkdir(exist_ok=True)
    if setup.config.save and not own_tokenizer(path, read_json(path / "config.json")):
        setup.tokenizer.save(path / "model")
    for folder in (path, path.parent):
        flush_folder(folder)


def end(path: Path, history: list[dict[str, Any]]) -> None:
    """Mark the run as ended, and drop the state, which is as large as the model three times."""
    config, content = read_run(path)
    last, best = history[-1], best_of(history, config.select)
    ended = {"best_epoch": best["epoch"], "val_accuracy": best["val_accuracy"], "val_majority": last["val_majority"],
             "verdict": last["verdict"]["name"], "collapsed_since": (streak(history) or [None])[0],
             "seconds": sum(row["seconds"] for row in history)}  # fmt: skip
    write_json(path / "config.json", content | {"ended": ended})
    clear(path)


def check_links(path: Path) -> None:
    """
    Raises:
        InputError: something in the folder of a run is a link: what is written there would land elsewhere.
    """
    for part in path.rglob("*"):
        if part.is_symlink():
            raise InputError(f"{part} is a link; a run goes on in its own folder alone: put what it points at there")


def clear(path: Path) -> None:
    """Take away what only a run that goes on needs."""
    shutil.rmtree(path / "state", ignore_errors=True)
    sweep(path)


def sweep(path: Path) -> None:
    """Take away what kills left. Only for who holds the run."""
    for part in [*path.glob(".*"), *path.glob("*/.*")]:
        if is_leftover(part):
            part.unlink(missing_ok=True)


# What an epoch can be chosen by: its field in a row of metrics.jsonl, and whether more of it is better.
FIGURES = {"accuracy": ("val_accuracy", 1), "loss": ("val_loss", -1), "macro-f1": ("val_macro_f1", 1)}


def best_of(history: list[dict[str, Any]], select: str) -> dict[str, Any]:
    """The row of the best epoch by the validation figure that `--select` names; of equal ones, the earliest."""
    field, sign = FIGURES[select]
    # max gives the first of equals, and nothing is greater than NaN
    return max(history, key=lambda row: -math.inf if math.isnan(row[field]) else sign * row[field])


# What is read of a run's config.json besides its settings: (in it, fields that must be there, their type)
FACTS = (("dataset", "sha256", str), ("checkpoint", "sha256", str))
# and where it is there: older runs have less
MORE = {"versions": dict, "head": str, "tokenizer": str, "moved": list, "ended": dict, "started": str}
# Numbers that are read of a row of metrics.jsonl: of any run's, and of one that goes on
FOR_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_majority")
TO_GO_ON = (*FOR_CURVES, "lr", "seconds", "examples_per_second", "step", "skipped_steps")


def read_run(path: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """A run's settings and its whole config.json.

    Raises:
        InputError: not the folder of a run, or one of another version of minibert.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give the folder of a run, as train.py's last line names it")
    content = read_json(path / "config.json")
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise InputError(f"{path / 'config.json'} has no 'settings'; {path} is not a run's folder")
    for part, field, kind in FACTS:
        if not isinstance(content.get(part), dict) or not isinstance(content[part].get(field), kind):
            raise InputError(f"{path / 'config.json'} has no {part!r} with {field!r}; start the run anew")
    formats = PRECISIONS[1:]  # auto has become one of them
    if content.get("precision") not in formats:
        raise InputError(f"{path / 'config.json'} has no 'precision' of {', '.join(formats)}; start the run anew")
    files, labels = content["checkpoint"].get("files", {}), content["dataset"].get("labels", [])
    bad = [name for name, kind in MORE.items() if not isinstance(content.get(name), kind | None)]
    bad += [] if isinstance(files, dict) and all(isinstance(hash, str) for hash in files.values()) else ["checkpoint"]
    bad += [] if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else ["dataset"]
    if bad:
        raise InputError(f"{path / 'config.json'}: {bad[0]!r} is not what a run writes there; start the run anew")
    try:
        return TrainConfig(**content["settings"]), content
    except InputError as error:
        raise InputError(f"{path / 'config.json'}: {error}") from None
    except TypeError as error:
        raise InputError(f"{path / 'config.json'} is of another version of minibert: {error}") from None


def append_row(path: Path, row: dict[str, Any]) -> None:
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())  # behind the last epoch no state holds the row


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in history)
    replace_file(path / "metrics.jsonl", lambda beside: beside.write_text(text, encoding="utf-8"))


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's epochs, also while it runs: a last line that is not whole yet is left out.

    Raises:
        InputError: a line is not JSON, or no row of a run.
    """
    file_path = path / "metrics.jsonl"
    try:
        lines = file_path.read_text(encoding="utf-8").split("\n")[:-1] if file_path.is_file() else []
        return checked_rows([parse_json(line) for line in lines], FOR_CURVES)
    except ValueError as error:
        raise InputError(f"{file_path} is not whole: {error}") from None


def checked_rows(rows: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """
    Args:
        names: numbers that each must have.

    Raises:
        ValueError: they are not the rows of a run's epochs, from the first on.
    """
    for number, row in enumerate(rows if isinstance(rows, list) else [None], 1):
        verdict = row.get("verdict") if isinstance(row, dict) else None
        good = isinstance(verdict, dict) and isinstance(verdict.get("name"), str) and is_real(verdict, "class_entropy")
        if not good or row.get("epoch") != number or not all(is_real(row, name) for name in names):
            raise ValueError(f"row {number} is not the one that epoch {number} writes")
    return rows


def is_real(part: dict[str, Any], name: str) -> bool:
    """Whether it has a number there; it may be NaN."""
    return is_whole(part.get(name)) or isinstance(part.get(name), float)


class SavedState(NamedTuple):
    """Where a run stands: what training changed, the rows of its epochs, what comes next, and the seconds that the
    epoch in hand has taken.
    """

    tensors: dict[str, Tensor]
    history: list[dict[str, Any]]
    cursor: Cursor
    seconds: float = 0.0


def save_state(path: Path, state: SavedState) -> None:
    """One file, replaced in one step."""
    (path / "state").mkdir(exist_ok=True)
    tensors = state.tensors | {"cursor": torch.tensor(astuple(state.cursor))}
    metadata = {"history": json.dumps(state.history), "seconds": repr(state.seconds)}
    replace_file(path / "state" / "state.safetensors", lambda beside: save_file(tensors, beside, metadata))


def load_state(path: Path) -> SavedState | None:
    """What save_state wrote; None where the run was stopped before its first epoch ended.

    Raises:
        InputError: the file is not whole.
    """
    file_path = path / "state" / "state.safetensors"
    if not file_path.is_file():
        return None
    try:
        with safe_open(file_path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            rest, cursor = file.metadata(), Cursor(*tensors.pop("cursor").tolist())
            seconds = float(rest["seconds"])
            history = checked_rows(parse_json(rest["history"]), TO_GO_ON)
        if not all(map(is_whole, astuple(cursor))) or cursor.epoch != len(history) + 1 or cursor.step < 0:
            raise ValueError(f"it stands at {cursor}, behind {len(history)} epochs")
        if not 0 <= seconds < math.inf:
            raise ValueError(f"it has taken {seconds} seconds")
        return SavedState(tensors, history, cursor, seconds)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file_path} is not whole ({error}); start the run anew") from None


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """The commit of the checkout that runs, with "+" where files differ from it; None outside one."""
    here = Path(__file__).resolve().parent.parent.parent
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        if Path(ask("rev-parse", "--show-toplevel")) != here:  # installed somewhere inside another repository
            return None
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None

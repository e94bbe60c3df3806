"""One job of a grid: a process that takes runs, one after the other, and trains and scores each in its folder.

A line of JSON on stdin is a run, a line of JSON on stdout says what became of it. Where stdin ends, the process that
asked is gone, and this one goes, too: what is lost is made good by the next try.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from minibert.allocator import steady
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.files import locked, write_json
from minibert.lab.ablation.grid import settings_of

DONE, FAILED, BUSY = "done", "failed", "busy"


def run_folder(grid: Path, name: str) -> Path:
    return grid / "runs" / name


def is_done(path: Path) -> bool:
    """Whether the run in `path` has ended and been scored; its outcome is what is written last."""
    return (path / "outcome.json").is_file()


def take(grid: Path, name: str, settings: dict[str, Any], keep_weights: bool) -> dict[str, Any]:
    """Bring a run to its end from wherever it stands, unless another process is at it.

    Returns:
        {"state": "done" | "failed" | "busy"}, with a `reason` where it failed.
    """
    path = run_folder(grid, name)
    with locked(grid / "locks" / name) as free:
        if not free:
            return {"state": BUSY}
        if is_done(path):
            return {"state": DONE}
        try:
            finish(path, TrainConfig(**settings, out=str(path)), grid / "broken", keep_weights)
        except Exception as error:  # whatever it is, the other runs go on
            traceback.print_exc()
            known = isinstance(error, InputError | OSError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "failed.json", {"reason": reason})
            return {"state": FAILED, "reason": reason}
        return {"state": DONE}


def perform(order: dict[str, Any]) -> dict[str, Any]:
    """`take` what is asked for; what this process prints from now on goes to the run's log."""
    steady()  # each time: a run with --gradient-checkpointing leaves it otherwise
    log = Path(order["grid"]) / "logs" / f"{order['name']}.txt"
    log.parent.mkdir(exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        for stream in (1, 2):  # also what torch's own code prints
            os.dup2(file.fileno(), stream)
    return take(Path(order["grid"]), order["name"], order["settings"], order["keep_weights"])


def finish(path: Path, config: TrainConfig, broken: Path, keep_weights: bool) -> None:
    """Train a run, or go on with it, and score it. What cannot be gone on with is put into `broken`."""
    from minibert.training import folder
    from minibert.training.outcome import evaluate_run, write_predictions
    from minibert.training.run import resume, train

    (path / "failed.json").unlink(missing_ok=True)
    ended = False
    if (path / "config.json").exists():
        try:
            had, content = folder.read_run(path)
            if settings_of(had) != settings_of(config):
                raise InputError(f"{path} holds a run of other settings")
            ended = "ended" in content
            if not ended:
                folder.load_state(path)
        except InputError as error:
            print(error)
            set_aside(path, broken)
    else:
        shutil.rmtree(path, ignore_errors=True)  # killed before it had begun
    if not ended:
        _ = resume(path, force=True) if path.exists() else train(config)
    reports, predictions = evaluate_run(path)
    write_predictions(path / "predictions.csv", predictions)
    write_json(path / "outcome.json", reports)
    if not keep_weights:
        (path / "model" / "model.safetensors").unlink()


def set_aside(path: Path, broken: Path) -> None:
    """Move a folder out of the way; nothing is deleted."""
    broken.mkdir(exist_ok=True)
    number = 1
    while (broken / f"{path.name}-{number}").exists():
        number += 1
    path.rename(broken / f"{path.name}-{number}")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        order = json.loads(orders.get())
        reply = perform(order)
        replies.write(json.dumps(reply | {"name": order["name"]}) + "\n")
        replies.flush()


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main()

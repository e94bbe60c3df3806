"""Runs of train.py as processes that get into trouble, and what they leave."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minibert.training.folder import read_history
from minibert.training.outcome import evaluate_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def flags(tiny, tmp_path_factory):
    """A run of two epochs and six steps, with a snapshot behind each."""
    data = tmp_path_factory.mktemp("data") / "numbers.csv"
    rows = [f"{i % 50 + 50 * (i % 2)} {(3 * i) % 50 + 50 * (i % 2)},{'odd' if i % 2 else 'even'}" for i in range(30)]
    data.write_text("text,label\n" + "\n".join(rows) + "\n")
    return ["--data", str(data), "--model", str(tiny), "--epochs", "2", "--lr", "3e-3", "--batch-size", "8",
            "--save-every", "1e-9", "--layers"]  # fmt: skip


@pytest.fixture(scope="module")
def obey():
    """`tests/killed.py` as a function: arguments of train.py, its folder, the trouble -> exit code, stderr."""
    process = subprocess.Popen([sys.executable, "tests/killed.py"], cwd=ROOT, stdin=-1, stdout=-1, text=True)

    def one(arguments, folder, **trouble):
        process.stdin.write(json.dumps({"arguments": arguments, "folder": str(folder), **trouble}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield one
    process.stdin.close()
    process.wait()


def next_command(flags, path):
    """What a user does about a run that was killed: goes on with it, or, where nothing was begun, starts anew."""
    return ["--resume", str(path)] if (path / "config.json").exists() else [*flags, "--out", str(path)]


def end_of(path):
    """All that a run leaves, but for times: its files' names, settings, rows, weights bit by bit, and eval's report."""
    content = json.loads((path / "config.json").read_text())
    content["settings"].pop("out"), content["ended"].pop("seconds"), content.pop("started")
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in read_history(path)]
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    same = {name: file.read_bytes() for name, file in files.items() if name not in ("config.json", "metrics.jsonl")}
    reports, predictions = evaluate_run(path)
    return content, rows, same, reports, list(predictions)

"""A run that is killed, at any moment and any number of times, goes on to the end of one that never was."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors import safe_open

from minibert.files import is_leftover
from minibert.training.folder import read_history
from minibert.training.outcome import evaluate_run

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def flags(tiny, tmp_path_factory):
    """A run of two epochs and six steps, with a snapshot behind each."""
    data = tmp_path_factory.mktemp("data") / "numbers.csv"
    rows = [f"{i % 50 + 50 * (i % 2)} {(3 * i) % 50 + 50 * (i % 2)},{'odd' if i % 2 else 'even'}" for i in range(30)]
    data.write_text("text,label\n" + "\n".join(rows) + "\n")
    return ["--data", str(data), "--model", str(tiny), "--epochs", "2", "--lr", "3e-3", "--batch-size", "8",
            "--save-every", "1e-9", "--layers"]  # fmt: skip


def end_of(path):
    """All that a run leaves, but for times: its files' names, settings, rows, weights bit by bit, and eval's report."""
    content = json.loads((path / "config.json").read_text())
    content["settings"].pop("out"), content["ended"].pop("seconds"), content.pop("started")
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in read_history(path)]
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    same = {name: file.read_bytes() for name, file in files.items() if name not in ("config.json", "metrics.jsonl")}
    return content, rows, same, evaluate_run(path)


def check_whole(path):
    """No file is half written, whenever the kill came."""
    for file in path.rglob("*") if path.exists() else []:
        if file.is_file() and not is_leftover(file):
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    assert [opened.get_tensor(name) for name in opened.keys()]  # noqa: SIM118
    read_history(path)


def next_command(flags, path):
    """What a user does about a run that was killed: goes on with it, or, where nothing was begun, starts anew."""
    return ["--resume", str(path)] if (path / "config.json").exists() else [*flags, "--out", str(path)]


@pytest.fixture(scope="module")
def obey():
    """`tests/killed.py`, as a function: arguments of train.py, its folder, when to kill -> exit code, stderr."""
    process = subprocess.Popen([sys.executable, "tests/killed.py"], cwd=ROOT, stdin=-1, stdout=-1, text=True)

    def one(arguments, folder, at=None, after=None):
        order = {"arguments": arguments, "folder": str(folder), "at": at, "after": after}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield one
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("every", [pytest.param(29, id="some"), pytest.param(1, id="each", marks=pytest.mark.slow)])
def test_a_kill_at_any_file_operation(flags, obey, tmp_path, every):
    """And at another one of the process that goes on, so that what one kill leaves meets a second."""
    whole = tmp_path / "whole"
    assert obey([*flags, "--out", str(whole)], whole)[0] == 0
    expected, at, kills = end_of(whole), every // 2 + 1, 0
    while True:
        path, killed = tmp_path / str(at), []
        for moment in (at, 1 + at * 31 % 53, None):
            code, said = obey(next_command(flags, path), path, moment)
            killed.append(code == KILLED)
            check_whole(path)
            if code != KILLED:
                break
        # killed behind its end, a run has ended
        assert code == 0 or (code == 2 and "has ended: python eval.py" in said), (at, said)
        assert end_of(path) == expected, at
        kills += sum(killed)
        if not any(killed):
            break
        at += every
    print(f"{kills} kills at {at - 1} places")
    assert at > 60


def whole_process(arguments, folder, after=None):
    """train.py from Python's start on, killed `after` seconds."""
    process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    try:
        said = process.communicate(timeout=after)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[1]
    return process.returncode, said


@pytest.mark.parametrize(
    ("kills", "whole", "epochs"), [(4, False, "4"), pytest.param(100, True, "40", marks=pytest.mark.slow)]
)
def test_kills_at_random_moments(flags, obey, tmp_path, kills, whole, epochs):
    """Of tokenizing, training, evaluation, saving and ending; in whole processes also of Python's start and imports."""
    run, flags, path = whole_process if whole else obey, [*flags, "--epochs", epochs], tmp_path / "whole"
    start = time.monotonic()
    assert run([*flags, "--out", str(path)], path)[0] == 0
    took, expected = time.monotonic() - start, end_of(path)
    chance, done, runs, where = random.Random(0), 0, 0, {}
    while done < kills:
        path, code = tmp_path / f"run-{runs}", KILLED
        runs += 1
        while code == KILLED:
            code, said = run(next_command(flags, path), path, after=chance.uniform(0, took) if done < kills else None)
            if code == KILLED:
                done += 1
                where[place_of(path)] = where.get(place_of(path), 0) + 1
                check_whole(path)
        assert code == 0 or (code == 2 and "has ended: python eval.py" in said), said
        assert end_of(path) == expected
    print(f"{done} kills of {runs} runs of {took:.1f} s: {where}")


def place_of(path: Path) -> str:
    """How far a run had come."""
    if not (path / "config.json").exists():
        return "before the run began"
    if (path / "state" / "state.safetensors").exists():
        return "behind a snapshot"
    return "behind its end" if "ended" in (path / "config.json").read_text() else "before the first snapshot"

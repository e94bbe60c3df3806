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
from runs import end_of, next_command
from safetensors import safe_open

from minibert.files import is_leftover
from minibert.training.folder import read_history

KILLED = -signal.SIGKILL


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


@pytest.mark.parametrize("every", [pytest.param(29, id="some"), pytest.param(1, id="each", marks=pytest.mark.slow)])
def test_a_kill_at_any_file_operation(flags, obey, tmp_path, every):
    """And at another one of the process that goes on, so that what one kill leaves meets a second."""
    whole = tmp_path / "whole"
    assert obey([*flags, "--out", str(whole)], whole)[0] == 0
    expected, at, kills = end_of(whole), every // 2 + 1, 0
    while True:
        path, killed = tmp_path / str(at), []
        for moment in (at, 1 + at * 31 % 53, None):
            code, said = obey(next_command(flags, path), path, **({} if moment is None else {"at": moment}))
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
            more = {"after": chance.uniform(0, took)} if done < kills else {}
            code, said = run(next_command(flags, path), path, **more)
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

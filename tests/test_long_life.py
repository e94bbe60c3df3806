"""Long runs and large grids: what many steps, epochs and runs must not make larger or slower."""

import io
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, recording
from grids import write_run

from minibert.config import TrainConfig, flag
from minibert.engine.epochs import Plan
from minibert.errors import Stopped
from minibert.files import write_json
from minibert.lab.ablation import ablate as ablation
from minibert.lab.ablation.grid import Grid, Product
from minibert.lab.ablation.report import tell
from minibert.training.folder import read_history
from minibert.training.keeper import Keeper
from minibert.training.run import resume, train


def watched(arguments, every):
    """(samples, 4) of a run of train.py: steps, bytes, handles, seconds; see watched.py."""
    done = subprocess.run([sys.executable, "tests/watched.py", str(every), *arguments], cwd=ROOT, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.array([json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")])


def slope(x, y):
    """By least squares, and its standard error, where each residual may be like the one before it: AR(1)."""
    x = x - x.mean()
    found = x @ y / (x @ x)
    left = y - y.mean() - found * x
    squares = left @ left
    if squares == 0:
        return found, 0.0
    alike = min(max(left[1:] @ left[:-1] / squares, 0.0), 0.99)
    return found, float(np.sqrt(squares / (len(x) - 2) / (x @ x) * (1 + alike) / (1 - alike)))


def test_a_slope_and_its_error():
    """Of 400 lines with a slope of 3 and residuals that hang together, the error is what the slopes spread by."""
    x, chance, found = np.arange(200.0), np.random.default_rng(0), []
    for _ in range(400):
        noise = np.zeros(len(x))
        for i, fresh in enumerate(chance.normal(size=len(x))):
            noise[i] = fresh + (0.7 * noise[i - 1] if i else 0)
        found.append(slope(x, 3 * x + noise))
    slopes, errors = np.array(found).T
    assert slopes.mean() == pytest.approx(3, abs=0.001)
    assert errors.mean() == pytest.approx(slopes.std(), rel=0.15)
    assert slope(x, 2 * x) == pytest.approx((2, 0))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about memory and open files")
@pytest.mark.parametrize(
    ("epochs", "precision", "lengths", "bound"),
    [(5, "fp32", 9, 1000), pytest.param(125, "fp32", 9, 50, marks=pytest.mark.slow),
     pytest.param(125, "bf16", 2, 50, marks=pytest.mark.slow)],
    ids=["short", "long", "long-bf16"],
)  # fmt: skip
def test_memory_and_handles_are_flat(tiny, tmp_path, epochs, precision, lengths, bound):
    """400 steps an epoch, with snapshots between. In the second half, when torch has a kernel for each shape: bytes a
    step, of which the slope and two standard errors more must stay below `bound`. An epoch's row takes about 25.
    In bf16 each new shape of a batch costs oneDNN kernels, so there texts have two lengths: all shapes are soon seen.
    """
    rows = [
        f"{' '.join(str((7 * i + n) % 50 + 50 * (i % 2)) for n in range(1 + i // 2 % lengths))},{i % 2}"
        for i in range(4000)
    ]
    (tmp_path / "numbers.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    samples = watched(["--data", str(tmp_path / "numbers.csv"), "--model", str(tiny), "--out", str(tmp_path / "run"),
                       "--epochs", str(epochs), "--batch-size", "8", "--save-every", "0.01", "--precision", precision],
                      4 * epochs)  # fmt: skip
    assert samples[-1, 0] == 400 * epochs
    steps, memory, handles, _ = samples[len(samples) // 2 :].T
    found, error = slope(steps, memory)
    print(f"{samples[-1, 0]:,.0f} steps, {len(steps)} samples from step {steps[0]:,.0f} on: {found:.1f} +- {error:.1f} "
          f"bytes a step, {memory[0] / 1e6:.1f} to {memory[-1] / 1e6:.1f} MB (first sample {samples[0, 1] / 1e6:.1f}); "
          f"{handles.min():.0f} to {handles.max():.0f} handles")  # fmt: skip
    assert found + 2 * error < bound
    assert handles.max() == handles.min()


@pytest.fixture
def late(tiny, tmp_path, monkeypatch):
    """The folder of a run of 130 epochs, 3 steps each, that stands in the last one; and its flags."""
    rows = [f"{' '.join(str((7 * i + n) % 50 + 50 * (i % 2)) for n in range(1 + i % 9))},{i % 2}" for i in range(30)]
    (tmp_path / "numbers.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    more = {"data": str(tmp_path / "numbers.csv"), "model": str(tiny), "epochs": 130, "batch_size": 8}
    path, real = tmp_path / "late", Keeper.look

    def look(self, cursor, save):
        self.told = 2 if (cursor.epoch, cursor.step) == (130, 1) else None
        real(self, cursor, save)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "look", look)
        with pytest.raises(Stopped):
            train(TrainConfig(**more, out=str(path)), str)
    return path, [word for name, value in more.items() for word in (flag(name), str(value))]


def test_130_epochs_are_gone_on_with_where_they_stand(late, monkeypatch):
    """Two steps are taken of 390, and two epochs' orders are drawn: the first's tells how much memory batches take."""
    path, _ = late
    taken, drawn, rows = recording(monkeypatch), [], Plan.rows
    monkeypatch.setattr(Plan, "rows", lambda self, epoch: drawn.append(epoch) or rows(self, epoch))
    resume(path, str)
    assert (len(taken), drawn) == (2, [1, 130])
    assert [row["epoch"] for row in read_history(path)] == list(range(1, 131))


@pytest.mark.slow
def test_130_epochs_are_gone_on_with_in_seconds(late, tmp_path):
    """From the start of Python to behind the first step, and of a fresh run beside it, in turn."""
    path, flags = late
    fresh, old = [], []
    for number in range(3):
        copy = shutil.copytree(path, tmp_path / f"copy-{number}")
        old.append(watched(["--resume", str(copy)], 1)[0, 3])
        fresh.append(watched([*flags, "--epochs", "1", "--out", str(tmp_path / f"fresh-{number}")], 1)[0, 3])
    print(f"to the first step: {', '.join(f'{s:.2f}' for s in old)} s; fresh {', '.join(f'{s:.2f}' for s in fresh)} s")
    assert np.median(old) < 2 * np.median(fresh)  # 129 epochs anew would take many times as long


@pytest.fixture
def opened():
    """The paths of files opened from now on."""
    paths, listens = [], True
    sys.addaudithook(lambda event, given: listens and event == "open" and paths.append(str(given[0])))
    yield paths
    listens = False


@pytest.mark.parametrize("seeds", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_grid_that_is_done_answers_at_once(tiny, tmp_path, opened, seeds):
    """Ten runs a seed. To say how far it is, no file of a run that has ended is opened."""
    rows = [f"{i % 50} {3 * i % 50},{i % 2}" for i in range(30)]
    (tmp_path / "numbers.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    values = {"init": ["pretrained", "random"], "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "epochs": [2]}
    grid = Grid([Product(values | {"data": [str(tmp_path / "numbers.csv")], "model": [str(tiny)]})], seeds=seeds)
    path, said, times = tmp_path / "grid", [], {}

    def took(name, work):
        opened.clear()
        start = time.monotonic()
        result = work()
        times[name] = time.monotonic() - start
        return result, sum("/runs/" in file for file in opened)

    planned, read = took("plan", lambda: ablation.plan(grid, path, 1.0, True, "ablate"))
    assert (len(planned.runs), read) == (10 * seeds, 0)
    for run in planned.runs:
        write_run(path / "runs" / run.name, run.settings, n=20)
    write_json(path / "grid.json", planned.content)
    failed, read = took("ablate", lambda: ablation.ablate(grid, path, command="ablate", say=said.append))
    assert (failed, read) == ([], 0)
    assert f"  {10 * seeds} done before" in said
    _, read = took("--dry-run", lambda: ablation.ablate(grid, path, dry_run=True, say=said.append))
    assert read == 0
    assert sum(line.endswith("(done)") for line in said) == 10 * seeds

    display = ablation.Display(planned, path, 10 * seeds - 2, planned.runs[:2], io.StringIO())
    for run in planned.runs[:2]:
        display.note(run, ablation.RUNNING)
    line, read = took("display", display.line)
    assert line.startswith(f"{10 * seeds - 2} of {10 * seeds} done, 2 running")
    assert read == 2
    _, read = took("report", lambda: tell(path, say=said.append))
    assert read == 4 * 10 * seeds
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items()))

"""A grid that is run: by workers, in folders, again, together, and past failures and kills."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.files import locked
from minibert.lab.ablation import ablate as ablation
from minibert.lab.ablation import worker
from minibert.lab.ablation.ablate import Run, ablate
from minibert.lab.ablation.grid import Grid, Product, settings_of
from minibert.lab.ablation.local import Worker
from minibert.lines import fold


@pytest.fixture(autouse=True, scope="session")
def data(tmp_path_factory):
    """Texts of five writers: training three, one a split besides."""
    path = tmp_path_factory.mktemp("data") / "texts.csv"
    split = {"d": "val", "e": "test"}
    rows = [f"{'abcd'[i % 4]} {i % 10} b {'xyz'[i % 3]},{['no', 'yes'][i % 2]},{'abcde'[i % 5]},"
            f"{split.get('abcde'[i % 5], 'train')}" for i in range(100)]  # fmt: skip
    path.write_text("\n".join(["text,label,group,split", *rows]))
    grid_of.data = str(path)
    return path


def grid_of(tiny, seeds=1, **values):
    settings = {"data": [grid_of.data], "model": [str(tiny)], "init": ["pretrained", "random"], "examples": ["12"],
                "epochs": [2], "lr": [1e-3], "batch_size": [4]}  # fmt: skip
    return Grid([Product(settings | values)], title="tiny", question="?", baseline="random", seeds=seeds)


def run(grid, path, **more):
    lines = []
    failed = ablate(grid, path, jobs=1, say=lines.append, **more)
    return failed, lines


def outcomes(path):
    """What a table could be made of: every file of results, without times."""
    found = {}
    for folder in sorted((path / "runs").iterdir()):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            del row["seconds"], row["examples_per_second"]
        texts = [(folder / name).read_text() for name in ("outcome.json", "predictions.csv", "manifest.json")]
        found[folder.name] = (rows, texts)
    return found


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "grid"
    failed, lines = run(grid_of(tiny, seeds=2), path, command="a command")
    assert failed == []
    return path, lines


def test_every_run_is_a_real_one_and_scored(finished, tiny):
    path, lines = finished
    content = json.loads((path / "grid.json").read_text())
    assert len(content["runs"]) == 4
    assert content["commands"] == ["a command"]
    assert content["baseline"] == "random"
    for name, settings in content["runs"].items():
        folder = path / "runs" / name
        config = json.loads((folder / "config.json").read_text())
        assert {k: v for k, v in config["settings"].items() if k != "out"} == settings
        assert settings["precision"] in ("fp32", "bf16", "fp16")
        assert settings["pool"] == "cls"
        assert config["ended"]
        assert config["dataset"]["sizes"]["train"] == 12
        assert not (folder / "model" / "model.safetensors").exists()
        with open(folder / "predictions.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        outcome = json.loads((folder / "outcome.json").read_text())
        for split in ("val", "test"):
            own = [row for row in rows if row["split"] == split]
            right = sum(row["label"] == row["predicted"] for row in own)
            assert right / len(own) == outcome[split]["accuracy"]
        assert {(row["split"], row["group"]) for row in rows} == {("val", "d"), ("test", "e")}
    assert any("4/4" in line for line in lines)
    assert max(len(line) for text in lines[1:] for line in fold(text).splitlines()) <= 80  # the first has a path


def test_heads_are_an_axis(tiny, tmp_path):
    failed, _ = run(grid_of(tiny, init=["random"], head=["linear", "attention"], epochs=[1]), tmp_path / "grid")
    assert failed == []
    folders = [path for path in (tmp_path / "grid" / "runs").iterdir() if (path / "outcome.json").exists()]
    settings = [json.loads((path / "config.json").read_text())["settings"] for path in folders]
    assert {(s["head"], s["pool"]) for s in settings} == {("linear", "cls"), ("attention", "tokens")}


def test_the_same_command_again_runs_nothing_and_more_seeds_are_added(finished, tiny, tmp_path, monkeypatch):
    path, _ = finished
    monkeypatch.setattr(Worker, "run", lambda *order: pytest.fail("a run was started"))
    failed, lines = run(grid_of(tiny, seeds=2), path)
    assert failed == []
    assert any("4 done before" in line for line in lines)
    begun = []
    fails = {"state": "failed", "reason": "a test"}
    monkeypatch.setattr(Worker, "run", lambda self, order: begun.append(order) or fails)
    run(grid_of(tiny, seeds=3), path)
    assert {order["settings"]["seed"] for order in begun} == {"2"}
    assert len(begun) == 2
    assert len(json.loads((path / "grid.json").read_text())["runs"]) == 6


def test_what_cannot_work_is_refused_before_the_first_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "run_all", lambda *arguments: pytest.fail("a run was started"))
    path = tmp_path / "grid"
    for values, message in (
        ({"init": ["random", "reinit:9"]}, "--init reinit:9"),
        ({"lr": [1e-3, 2.0]}, "--lr 2.0"),
        ({"examples": ["12", "100000"]}, "--examples 100000: the training split has 60 "),
        ({"examples": ["1"]}, "--examples 1:"),
        ({"data": [grid_of.data, "no.csv"]}, "no.csv: no such file"),
        ({"model": ["/no/model"]}, "--model"),
    ):
        with pytest.raises(InputError, match=message):
            run(grid_of(tiny, **values), path)
    for more, message in (({"scale": 0.0}, "--scale 0"), ({"scale": 2.0}, "--scale 2")):
        with pytest.raises(InputError, match=message):
            run(grid_of(tiny), path, **more)
    with pytest.raises(InputError, match="--jobs 0"):
        ablate(grid_of(tiny), path, jobs=0)
    assert not path.exists()


def test_a_folder_of_other_things_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds no grid"):
        run(grid_of(tiny), tmp_path)
    (tmp_path / "grid.json").write_text("[]")
    with pytest.raises(InputError, match="no grid of this version"):
        run(grid_of(tiny), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.json", "thesis.tex"]


def test_data_that_changed_are_refused(tiny, tmp_path):
    data = tmp_path / "data.csv"
    rows = [f"{'abc'[i % 3]} b c,{'xy'[i % 2]}" for i in range(60)]
    data.write_text("\n".join(["text,label", *rows]))
    grid = grid_of(tiny, data=[str(data)], init=["random"], epochs=[1])
    assert run(grid, tmp_path / "grid")[0] == []
    data.write_text("\n".join(["text,label", *rows, "c b a,x"]))
    with pytest.raises(InputError, match=r"data.csv changed since .* was begun"):
        run(grid, tmp_path / "grid")


def test_scale_shrinks_epochs_and_examples(tiny, tmp_path):
    plan = ablation.plan(grid_of(tiny, epochs=[1, 10], examples=["all", "40"]), tmp_path / "g", 0.1, True, "")
    assert {(r.settings["epochs"], r.settings["examples"]) for r in plan.runs} == {
        (1, "6"), (1, "4"),
    }  # fmt: skip
    plan = ablation.plan(grid_of(tiny, examples=["100000"]), tmp_path / "g", 1.0, False, "")
    assert {r.settings["examples"] for r in plan.runs} == {"all"}  # the preset's number, where there are fewer


def test_a_failed_run_is_said_at_once_and_the_rest_go_on_and_it_is_done_again(tiny, tmp_path, monkeypatch):
    path = tmp_path / "grid"
    plan = ablation.plan(grid_of(tiny), path, 1.0, True, "")
    # A folder where a file must be written makes the first run fail, however often it is tried.
    log = path / "logs"
    blocked = path / "runs" / plan.runs[0].name
    (blocked / "config.json").mkdir(parents=True)
    (path / "broken").write_text("")  # nor can it be put aside
    (path / "grid.json").write_text(json.dumps(plan.content))
    failed, lines = run(grid_of(tiny), path)
    assert [r.name for r in failed] == [plan.runs[0].name]
    (line,) = [line for line in lines if ": failed: " in line]
    assert "1/2  pretrained: failed: " in line
    assert any("2/2  random" in line for line in lines)
    assert json.loads((blocked / "failed.json").read_text())["reason"] in line
    assert "Traceback" in (log / f"{plan.runs[0].name}.txt").read_text()
    (blocked / "config.json").rmdir()
    failed, lines = run(grid_of(tiny), path)
    assert failed == []
    assert not (blocked / "failed.json").exists()
    assert any("2/2  pretrained" in line for line in lines)


def test_a_folder_that_is_broken_is_put_aside_and_the_run_done_anew(finished, tiny, tmp_path):
    import shutil

    source, _ = finished
    path = tmp_path / "grid"
    shutil.copytree(source, path)
    content = json.loads((source / "grid.json").read_text())
    one, other, *_ = [name for name, settings in content["runs"].items() if settings["seed"] in "01"]
    for name, text in ((one, "{"), (other, '{"settings": {}}')):
        (path / "runs" / name / "outcome.json").unlink()
        (path / "runs" / name / "config.json").write_text(text)
    expected = outcomes(source)
    assert run(grid_of(tiny, seeds=2), path)[0] == []
    assert outcomes(path) == expected
    assert sorted(p.name for p in (path / "broken").iterdir()) == sorted(f"{name}-1" for name in (one, other))


def test_two_share_the_work(tiny, tmp_path):
    path, grid = tmp_path / "grid", grid_of(tiny, seeds=2, epochs=[1])
    lines = [[], []]
    both = [threading.Thread(target=ablate, args=(grid, path), kwargs={"jobs": 1, "say": own.append}) for own in lines]
    for one in both:
        one.start()
    for one in both:
        one.join()
    for own in lines:
        assert sum("val 0" in line for line in own) == 4, own  # each sees all of them end
    trained = [(path / "logs" / f"{name}.txt").read_text().count("best: epoch")
               for name in json.loads((path / "grid.json").read_text())["runs"]]  # fmt: skip
    assert trained == [1, 1, 1, 1]


def test_a_worker_that_dies_is_a_failed_run_and_another_takes_its_place(tmp_path):
    one = Worker(1)
    try:
        killer = threading.Timer(0.2, lambda: one.process.kill())
        killer.start()
        reply = one.run({"grid": str(tmp_path), "name": "x", "settings": {"init": "random"}, "keep_weights": False})
        assert reply["state"] == "failed"
        assert "signal 9; was there enough memory?" in reply["reason"]
        reply = one.run({"grid": str(tmp_path), "name": "x", "settings": {"init": "no"}, "keep_weights": False})
        assert reply == {"state": "failed", "name": "x", "reason": reply["reason"]}
        assert reply["reason"].startswith("--init no: no such scheme")
    finally:
        one.stop()


def test_a_worker_goes_with_the_process_that_asked(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "minibert.lab.ablation.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    with locked(tmp_path / "locks" / "x") as free:
        assert free
        with locked(tmp_path / "locks" / "x") as again:
            assert not again
        assert worker.take(tmp_path, "x", {"init": "random"}, False) == {"state": "busy"}
    with locked(tmp_path / "locks" / "x") as free:
        assert free


def test_weights_are_kept_where_asked(tiny, tmp_path):
    grid = grid_of(tiny, init=["random"], epochs=[1])
    assert run(grid, tmp_path / "grid", keep_weights=True)[0] == []
    (folder,) = (tmp_path / "grid" / "runs").iterdir()
    assert (folder / "model" / "model.safetensors").exists()


def test_a_dry_run_says_how_long_and_writes_nothing(tiny, tmp_path):
    import torch

    threads = torch.get_num_threads()
    try:
        failed, lines = run(grid_of(tiny), tmp_path / "grid", dry_run=True)
    finally:
        torch.set_num_threads(threads)
    assert failed == []
    assert sum("pretrained-" in line for line in lines) == 1
    assert lines[-1].startswith("about ")
    assert not (tmp_path / "grid").exists()


def test_killed_ten_times_it_comes_to_the_same(tiny, tmp_path):
    command = [
        sys.executable, "-m", "minibert", "ablate", "--model", str(tiny), "--init", "pretrained", "random",
        "--data", grid_of.data, "--examples", "all", "--epochs", "3", "--lr", "1e-3", "--batch-size", "4",
        "--seeds", "2", "--jobs", "1",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(path):
        return subprocess.Popen([*command, "--out", str(path)], env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE)  # fmt: skip

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=120) == 0, whole.stderr.read()
    expected = outcomes(tmp_path / "whole")
    path, moments = tmp_path / "killed", random.Random(0)
    for kill in range(10):
        process = start(path)
        # From the first file that it writes on, at any moment of the next third of a second.
        before, since = files(path), time.monotonic()
        while files(path) == before and process.poll() is None and time.monotonic() - since < 60:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3) if kill else 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = start(path)
    assert last.wait(timeout=120) == 0, last.stderr.read()
    assert outcomes(path) == expected


def test_a_kill_inside_the_first_write_leaves_a_grid_that_can_begin(tiny, tmp_path, monkeypatch):
    path = tmp_path / "grid"
    (path / "locks").mkdir(parents=True)
    (path / ".grid.json.4711").write_text("{")  # what replace_file had beside grid.json
    monkeypatch.setattr(ablation, "run_all", lambda *arguments: [])
    assert run(grid_of(tiny), path)[0] == []
    assert {part.name for part in path.iterdir()} == {"grid.json", "locks"}


def files(path):
    return {(str(file), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()} if path.exists() else ()


def test_the_time_left_follows_the_work_done(tmp_path):
    runs = [Run(f"r{i}", {"init": "random", "epochs": 1}, 1.0) for i in range(4)]
    display = ablation.Display(ablation.Planned(runs, [], {}), tmp_path, 0, runs, sys.stderr)
    display.started -= 30
    display.note(runs[0], "running")
    display.note(runs[0], "done")
    display.note(runs[1], "running")
    assert display.line() == "1 of 4 done, 1 running, 0 failed  1m30s left"
    display.note(runs[1], "failed")
    assert display.line() == "1 of 4 done, 0 running, 1 failed  0m30s left"
    display.note(runs[2], "running")
    display.note(runs[2], "pending")  # put back into a queue
    assert display.line() == "1 of 4 done, 0 running, 1 pending, 1 failed  0m30s left"
    display.note(runs[2], "running")
    assert display.line() == "1 of 4 done, 1 running, 1 failed  0m30s left"


def test_many_values_are_not_said_one_by_one(tmp_path):
    runs = [Run(f"r{seed}", settings_of(TrainConfig(seed=str(seed))), 1.0) for seed in range(1000)]
    lines = ablation.opening(ablation.Planned(runs, [], {}), tmp_path, "here")
    assert "  seed: 0, 1, 2, ..., 999 (1,000)" in lines

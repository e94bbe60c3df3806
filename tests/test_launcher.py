"""Launchers: a stand-in of a queue, Slurm's commands as stand-ins, and jobs as submitit starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_ablate import data, grid_of, outcomes  # noqa: F401  (data is a fixture, of the grid's texts)

from minibert.__main__ import main
from minibert.errors import InputError
from minibert.lab.ablation import slurm, worker
from minibert.lab.ablation.ablate import ablate
from minibert.lab.ablation.launcher import PENDING, RUNNING, Queued
from minibert.lab.ablation.local import Local
from minibert.lab.ablation.slurm import Slurm, Task


class Queue(Queued):
    """Each time it is asked, the jobs that are running end, and one more begins: each ends as `ends` says of it, by
    its number: with a result, or with a word.
    """

    place, poll, period, grace = "in a queue", 0.0, 0.0, 0.0

    def __init__(self, **ends):
        self.orders, self.known, self.ends, self.killed = {}, {}, ends, []

    def preview(self, path, orders):
        return [f"to be submitted: {len(orders)}"]

    def submit(self, path, orders):
        ids = [f"job{len(self.orders) + i}" for i in range(len(orders))]
        self.orders |= dict(zip(ids, orders))
        self.known |= dict.fromkeys(ids, PENDING)
        return ids

    def states(self, jobs):
        before = dict(self.known)
        for job, state in before.items():
            if state == RUNNING:
                if job not in self.ends:
                    take(self.orders[job])
                self.known[job] = self.ends.get(job, "completed")
        waiting = [job for job, state in self.known.items() if state == PENDING]
        if waiting:
            self.known[waiting[0]] = RUNNING
        return before

    def kill(self, jobs):
        self.killed += jobs


def take(order):
    return worker.take(Path(order["grid"]), order["name"], order["settings"], order["keep_weights"])


def run(grid, path, queue):
    lines = []
    return ablate(grid, path, launcher=queue, say=lines.append), lines


def small(tiny, seeds=2, **values):
    return grid_of(tiny, seeds=seeds, **{"init": ["random"], "epochs": [1]} | values)


def test_a_queues_runs_are_those_of_local_workers(tiny, tmp_path):
    failed, lines = run(small(tiny), tmp_path / "queued", Queue())
    assert failed == []
    assert "in a queue" in lines[0]
    assert "2 submitted, 0 in the queue before; Ctrl-C leaves them there" in lines
    assert any("2/2  random seed 1" in line for line in lines)
    assert run(small(tiny), tmp_path / "local", Local(1, 1))[0] == []
    assert outcomes(tmp_path / "queued") == outcomes(tmp_path / "local")


def test_ctrl_c_leaves_jobs_and_the_same_command_finds_them(tiny, tmp_path, monkeypatch):
    queue, real = Queue(), Queue.states

    def interrupted(self, jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Queue, "states", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small(tiny), tmp_path / "g", queue)
    assert queue.killed == []
    assert len(json.loads((tmp_path / "g" / "jobs.json").read_text())) == len(queue.orders) == 2
    monkeypatch.setattr(Queue, "states", real)
    failed, lines = run(small(tiny, seeds=3), tmp_path / "g", queue)
    assert failed == []
    assert "1 submitted, 2 in the queue before; Ctrl-C leaves them there" in lines
    assert len(queue.orders) == 3
    run(small(tiny, seeds=3), tmp_path / "g", queue)
    assert len(queue.orders) == 3  # nothing is submitted where all is done


def test_what_ended_without_a_result_has_failed_and_is_done_again(tiny, tmp_path):
    queue, path = Queue(job1="cancelled"), tmp_path / "g"
    (failed,), lines = run(small(tiny), path, queue)
    (line,) = [line for line in lines if "failed" in line]
    assert line.endswith(f"failed: job job1 ended without a result (cancelled); see logs/{failed.name}.txt, jobs/job1*")
    folder = worker.run_folder(path, failed.name)
    folder.mkdir()
    (folder / "failed.json").write_text('{"reason": "an earlier one"}')
    queue.ends = {"job2": "timeout"}
    (failed,), lines = run(small(tiny), path, queue)
    assert "(timeout)" in lines[-1]  # not the earlier reason
    assert run(small(tiny), path, queue)[0] == []
    assert list(queue.orders) == ["job0", "job1", "job2", "job3"]


def test_what_a_job_says_of_its_failure_is_told(tiny, tmp_path, monkeypatch):
    def fails(*order):
        raise ValueError("a reason of its own")

    monkeypatch.setattr(worker, "finish", fails)
    failed, lines = run(small(tiny, seeds=1), tmp_path / "g", Queue())
    assert len(failed) == 1
    assert lines[-1].endswith("failed: ValueError: a reason of its own")


def test_a_shared_folder_may_be_late(tiny, tmp_path):
    queue = Queue(job0="completed")
    queue.grace, asked = 60.0, []

    def states(jobs):
        asked.append(jobs)
        if len(asked) == 5:  # written by now on another machine, and seen here
            take(queue.orders["job0"])
        return Queue.states(queue, jobs)

    queue.states = states
    assert run(small(tiny, seeds=1), tmp_path / "g", queue)[0] == []


def test_a_queue_that_does_not_answer_is_asked_again_and_nothing_is_submitted_twice(tiny, tmp_path):
    queue, real, asked = Queue(), Queue.states, []

    def states(jobs):
        asked.append(jobs)
        if len(asked) in (2, 3):
            raise OSError("squeue: no answer")
        return real(queue, jobs)

    queue.states = states
    failed, lines = run(small(tiny), tmp_path / "g", queue)
    assert failed == []
    assert lines.count("squeue: no answer; the jobs go on, and it is asked again") == 1
    queue.states = lambda jobs: (_ for _ in ()).throw(OSError("squeue: no answer"))
    with pytest.raises(OSError, match="squeue: no answer"):
        run(small(tiny, seeds=3), tmp_path / "g", queue)
    assert len(queue.orders) == 2


def test_a_refusal_in_the_middle_loses_no_job(tiny, tmp_path):
    queue, real = Queue(), Queue.submit
    queue.most = 2

    def submit(path, orders):
        if queue.orders:
            raise InputError("sbatch refused the jobs: enough")
        return real(queue, path, orders)

    queue.submit = submit
    with pytest.raises(InputError, match="enough"):
        run(small(tiny, seeds=3), tmp_path / "g", queue)
    assert list(json.loads((tmp_path / "g" / "jobs.json").read_text()).values()) == ["job0", "job1"]


def test_cancel_takes_the_jobs_that_are_there(tmp_path, capsys):
    queue = Queue(**{"2": "completed", "9": "completed"})
    (tmp_path / "jobs.json").write_text('{"a": "1", "b": "2", "c": "3", "d": "4"}')
    queue.known = {"1": PENDING, "2": RUNNING, "3": "completed", "9": RUNNING}
    queue.cancel(tmp_path)
    assert queue.killed == ["1", "2"]
    assert "2 jobs cancelled" in " ".join(capsys.readouterr().out.split())
    queue.known = {}
    queue.cancel(tmp_path)
    assert "0 jobs cancelled" in " ".join(capsys.readouterr().out.split())


# Slurm


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """sbatch, srun, squeue and scancel, each a script that keeps what it is given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in (
        ("sbatch", f'cp "$1" {folder}/script; echo "Submitted batch job 12"'), ("srun", ""),
        ("scancel", f'echo "$@" > {folder}/cancelled'), ("squeue", f"cat {folder}/queue"),
    ):  # fmt: skip
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_what_is_handed_to_sbatch(commands, tmp_path):
    launcher = Slurm(partition="gpu", account="lab", time=90, gpus=1, cpus=4, memory=2.5, jobs=1,
                     options=("qos=low", "exclusive"))  # fmt: skip
    orders = [{"grid": str(tmp_path), "name": name, "settings": {}, "keep_weights": False} for name in "ab"]
    assert launcher.submit(tmp_path, orders) == ["12_0", "12_1"]
    lines = (commands / "script").read_text().splitlines()
    for option in ("array=0-1%1", "partition=gpu", "account=lab", "time=90", "gpus-per-node=1", "cpus-per-task=4",
                   "mem=2560M", "qos=low", "exclusive", "signal=USR1@90", "requeue"):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert {"export OMP_NUM_THREADS=4", "export SUBMITIT_PREEMPT_SIGNAL=USR1"} <= set(lines)
    assert "--cpus-per-task=4" in next(line for line in lines if line.startswith("srun"))
    shown = " ".join(launcher.preview(tmp_path, orders))
    assert shown == (
        "to be submitted: 2 jobs, 1 at a time, sbatch --partition=gpu --account=lab --time=90 --gpus-per-node=1"
        " --cpus-per-task=4 --mem=2560M --qos=low --exclusive"
    )
    assert launcher.place == "up to 1 at a time on Slurm with 4 CPUs and 1 GPU each"


def test_what_squeue_says(commands, tmp_path):
    (commands / "queue").write_text("1_0|PENDING\n1_1|RUNNING\n1_2|COMPLETING\n2|OUT_OF_MEMORY\n3|REQUEUE_HOLD\n")
    states = Slurm().states(["1_0"])
    assert states == {"1_0": PENDING, "1_1": RUNNING, "1_2": RUNNING, "2": "out_of_memory", "3": PENDING}
    (tmp_path / "jobs.json").write_text('{"a": "1_0", "b": "1_2", "c": "2"}')
    order = {"grid": str(tmp_path), "name": "a", "settings": {}, "keep_weights": False}
    assert "to be submitted: 1 job, 1 at a time" in Slurm().preview(tmp_path, [order, order | {"name": "c"}])[0]
    Slurm().cancel(tmp_path, lambda line: None)
    assert (commands / "cancelled").read_text() == "--quiet 1_0 1_2\n"


def test_a_slurm_that_refuses_or_is_not_there_is_one_line(commands, tmp_path, monkeypatch, capfd):
    order = {"grid": str(tmp_path), "name": "a", "settings": {}, "keep_weights": False}
    (commands / "sbatch").write_text('#!/bin/sh\necho "sbatch: error: no such partition" >&2\nexit 1\n')
    with pytest.raises(InputError, match="^sbatch refused the jobs: no such partition$"):
        Slurm().submit(tmp_path, [order])
    assert capfd.readouterr().err == ""
    (commands / "squeue").write_text('#!/bin/sh\necho "squeue: error: no controller" >&2\nexit 1\n')
    with pytest.raises(OSError, match="^squeue: squeue: error: no controller$"):
        Slurm().states([])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="there is no Slurm on this machine"):
        Slurm().submit(tmp_path, [order])
    with pytest.raises(OSError, match="there is no squeue on this machine"):
        Slurm().states([])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"needs submitit: pip install -e '.\[slurm\]'"):
        Slurm().submit(tmp_path, [order])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--launcher ray", "--launcher ray: it must be local or slurm"),
        ("--partition gpu", "--partition is for --launcher slurm"),
        ("--slurm-options qos=low", "--slurm-options is for --launcher slurm"),
        ("--cancel", "--cancel is for --launcher slurm"),
        ("--launcher slurm --time 4", "--time 4: it must be at least 5"),
        ("--launcher slurm --gpus -1", "--gpus -1: it must be at least 0"),
        ("--launcher slurm --cpus 0", "--cpus 0: it must be at least 1"),
        ("--launcher slurm --jobs 0", "--jobs 0: it must be at least 1"),
        ("--launcher slurm --memory 0", "--memory 0: it must be a number of GB above 0"),
        ("--launcher slurm --slurm-options=--qos=low", "--slurm-options --qos=low: write KEY=VALUE or KEY"),
    ],
)
def test_options_that_cannot_be(words, said):
    with pytest.raises(InputError) as caught:
        main(["ablate", *words.split()])
    assert str(caught.value).startswith(said)


def test_auto_is_not_resolved_for_a_gpu_where_there_is_none(tiny, monkeypatch):
    monkeypatch.setattr(slurm.torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="so --precision auto would be the CPU's; name one"):
        Slurm(gpus=1).check(small(tiny))
    Slurm(gpus=1).check(small(tiny, precision=["bf16"]))
    Slurm().check(small(tiny))
    monkeypatch.setattr(slurm.torch.cuda, "is_available", lambda: True)
    Slurm(gpus=1).check(small(tiny))


# A job, as submitit starts it on a machine of the cluster


HOLDING = """
import pathlib, time
from minibert.training.keeper import Keeper
hold, real = pathlib.Path(__file__).with_name("hold"), Keeper.look

def look(self, *arguments):
    if hold.exists():
        hold.with_name("held").touch()
    while hold.exists():
        time.sleep(0.01)
    real(self, *arguments)

Keeper.look = look
"""


def start(folder):
    """submitit's own local job; where Slurm's would be requeued, it ends with 144. It waits behind a step while there
    is a file `hold` beside it.
    """
    (folder / "sitecustomize.py").write_text(HOLDING)
    environment = os.environ | {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7", "SLURM_JOB_ID": "7",
                                "SUBMITIT_PREEMPT_SIGNAL": "USR1",
                                "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}  # fmt: skip
    return subprocess.Popen([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)], cwd=ROOT,
                            env=environment, stdout=-1, stderr=-1)  # fmt: skip


def test_a_job_is_saved_and_put_back_at_the_signal_and_comes_to_the_same(tiny, commands, tmp_path):
    submitit = slurm.load()
    grid = small(tiny, seeds=1, epochs=[3])
    assert run(grid, tmp_path / "whole", Local(1, 1))[0] == []
    content = json.loads((tmp_path / "whole" / "grid.json").read_text())
    ((name, settings),) = content["runs"].items()
    order = {"grid": str(tmp_path / "g"), "name": name, "settings": settings, "keep_weights": False}
    path, folder = worker.run_folder(tmp_path / "g", name), tmp_path / "g" / "jobs"
    folder.mkdir(parents=True)
    submission = submitit.helpers.DelayedSubmission(Task(), order)
    submission.set_timeout(60, slurm.RESTARTS)
    submission.dump(folder / "7_submitted.pkl")
    hold, held = folder / "hold", folder / "held"
    for state, number, code in (
        ("RUNNING", signal.SIGUSR1, 144),  # the time limit is near
        ("COMPLETING", signal.SIGTERM, 143),  # scancel: it is saved, and not put back
        ("RUNNING", signal.SIGTERM, 144),  # another job has the right of way
    ):
        (commands / "queue").write_text(state)
        hold.touch()
        process = start(folder)
        until = time.monotonic() + 120
        while not held.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        hold.unlink(), held.unlink()
        said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert not worker.is_done(path)
    process = start(folder)
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "g" / "logs" / f"{name}.txt").read_text().count("resuming") == 3
    assert outcomes(tmp_path / "g") == outcomes(tmp_path / "whole")


def test_a_job_waits_for_whoever_is_at_its_run(monkeypatch):
    replies = [{"state": "busy"}, {"state": "busy"}, {"state": "done"}]
    monkeypatch.setattr(slurm, "perform", lambda order: replies.pop(0))
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    assert Task()({}) == {"state": "done"}
    assert replies == []

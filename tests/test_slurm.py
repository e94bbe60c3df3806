"""A grid on a real Slurm, of one machine: pytest -m slurm. It needs root and Debian's slurm-wlm and munge."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_ablate import outcomes

pytestmark = pytest.mark.slurm

CONF = """
ClusterName=minibert
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=one Nodes=ALL Default=YES MaxTime=INFINITE
"""  # without cgroups: a container seldom may make them


def slurm(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def wait(what, seconds=600):
    """What `what` gives, once it is true."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """munged, slurmctld and slurmd, started by hand with a configuration of their own, and ended."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install -y --no-install-recommends slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd must be started by root")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=ports, host=host))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munged = ["munged", "--force", *(f"--{name}={folder}/munge.{file}" for name, file in (
        ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed")
    ))]  # fmt: skip
    try:
        try:
            for command in (munged, ["slurmctld"], ["slurmd"]):
                slurm(*command)
            wait(lambda: slurm("sinfo", "--noheader", "--format=%T") == "idle", 30)
        except (subprocess.SubprocessError, AssertionError) as error:
            pytest.skip(f"Slurm does not start: {error} {getattr(error, 'stderr', '')}")
        yield folder
        slurm("scancel", f"--user={os.getuid()}")
        wait(lambda: not slurm("squeue", "--noheader"), 60)
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            if (folder / f"{name}.pid").exists():
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


@pytest.fixture
def command(tiny, tmp_path):
    """8 runs, each long enough to be met in the middle."""
    split = {"d": "val", "e": "test"}
    rows = [f"{'abcd'[i % 4]} {i % 10} b {'xyz'[i % 3]},{['no', 'yes'][i % 2]},{'abcde'[i % 5]},"
            f"{split.get('abcde'[i % 5], 'train')}" for i in range(400)]  # fmt: skip
    (tmp_path / "texts.csv").write_text("\n".join(["text,label,group,split", *rows]))
    return [
        sys.executable, "-m", "minibert", "ablate", "--model", str(tiny), "--data", str(tmp_path / "texts.csv"),
        "--init", "pretrained", "random", "--seeds", "4", "--examples", "all", "--epochs", "10", "--lr", "1e-3",
        "--batch-size", "4", "--save-every", "0.05",
    ]  # fmt: skip


@pytest.fixture
def start():
    """A command in a process of its own, which does not outlive the test."""
    begun = []

    def start(command):
        begun.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


def running(path):
    """The jobs of the grid that are in the middle of their runs: (run, job)."""
    states = dict(line.split() for line in slurm("squeue", "--array", "--noheader", "--format=%i %T").splitlines())
    jobs = json.loads((path / "jobs.json").read_text()) if (path / "jobs.json").exists() else {}
    return [
        (name, job) for name, job in jobs.items()
        if states.get(job) == "RUNNING" and (path / "runs" / name / "metrics.jsonl").exists()
    ]  # fmt: skip


def two(found):
    return found[:2] if len(found) > 1 else None


def begin_now(job):
    """A requeued job waits for two minutes, unless told otherwise."""
    wait(lambda: "JobState=PENDING" in slurm("scontrol", "show", "job", job))
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_cancelled_and_requeued_and_left_alone_a_grid_comes_to_the_same_as_on_one_machine(command, start, tmp_path):
    path, log = tmp_path / "grid", lambda name: (tmp_path / "grid" / "logs" / f"{name}.txt").read_text()
    on_slurm = [*command, "--launcher", "slurm", "--time", "10", "--out", str(path)]
    first = start(on_slurm)
    wait(lambda: running(path))
    first.send_signal(signal.SIGINT)
    out, said = first.communicate(timeout=120)
    assert first.returncode == 130
    assert "8 submitted, 0 in the queue before" in out
    assert "the jobs stay in the queue" in said
    second = start(on_slurm)
    attached = next(line for line in second.stdout if "submitted" in line)
    assert re.fullmatch(r"0 submitted, [5-8] in the queue before; .*\n", attached)
    (name, job), (other, its) = wait(lambda: two(running(path)))
    slurm("scontrol", "requeue", job)
    slurm("scancel", its)
    begin_now(job)
    third, signalled = wait(lambda: [found for found in running(path) if found[0] not in (name, other)])[0]
    # What comes before the time limit. scancel would send it again and again: the job is not there any more to answer.
    sender = subprocess.Popen(["scancel", "--signal=USR1", signalled], stderr=subprocess.DEVNULL)
    wait(lambda: "JobState=PENDING" in slurm("scontrol", "show", "job", signalled))
    sender.kill()
    sender.wait()
    begin_now(signalled)
    out, said = second.communicate(timeout=1800)
    assert second.returncode == 1, said
    assert len(re.findall(r": failed: job", out)) == 1
    assert f"job {its} ended without a result (cancelled)" in " ".join(out.split())
    for resumed in (name, third):
        assert "resuming" in log(resumed)
    assert "goes on behind this step" not in log(name)  # nobody asks for words where a scheduler asked
    last = start(on_slurm)
    out, said = last.communicate(timeout=600)
    assert last.returncode == 0, said
    assert "1 submitted, 0 in the queue before" in out
    assert "resuming" in log(other)  # a cancelled run goes on where it stood
    alone = start([*command, "--jobs", "2", "--out", str(tmp_path / "alone")])
    alone.communicate(timeout=1800)
    assert alone.returncode == 0
    assert outcomes(path) == outcomes(tmp_path / "alone")
    tables = [
        [
            (file.name, file.read_text())
            for file in sorted((folder / "report" / "data").glob("*.csv"))
            if file.name != "runs.csv"
        ]
        for folder in (path, tmp_path / "alone")
    ]  # runs.csv has seconds
    assert tables[0] == tables[1]
    assert len(tables[0]) >= 4


def test_jobs_are_cancelled_where_asked_and_a_refusal_is_one_line(command, start, tmp_path):
    path = tmp_path / "grid"
    on_slurm = [*command, "--launcher", "slurm", "--out", str(path)]
    refused = start([*on_slurm, "--partition", "none"])
    said = refused.communicate(timeout=60)[1]
    assert refused.returncode == 2
    assert said.count("\n") == 1
    assert "sbatch refused the jobs: invalid partition specified: none" in said
    first = start(on_slurm)
    wait((path / "jobs.json").exists)
    first.send_signal(signal.SIGINT)
    first.wait(timeout=60)
    cancel = start([*on_slurm, "--cancel"])
    assert "8 jobs cancelled" in cancel.communicate(timeout=60)[0]
    wait(lambda: not slurm("squeue", "--noheader"), 60)

"""A grid's runs as jobs of Slurm, through submitit: an array, a job a run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from minibert.errors import InputError, Stopped
from minibert.lab.ablation.grid import Grid
from minibert.lab.ablation.launcher import PENDING, RUNNING, Order, Queued
from minibert.lab.ablation.worker import BUSY, perform

SIGNAL = "USR1"  # what submitit has Slurm send before a job is taken away; a run is saved at it
NOTICE = 90  # seconds before the time limit
SHORTEST = 5  # minutes that a job may take; in less it would be told to stop before it has begun
RESTARTS = 100  # of a job that its time limit ends; each goes on where the last one stood
WAITS = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
         "REVOKED", "TIMEOUT"}  # fmt: skip


@dataclass(frozen=True)
class Slurm(Queued):
    """
    Args:
        time: minutes that a job may take before it goes back into the queue.
        gpus, cpus, memory: of each job; memory in GB.
        jobs: at a time, of each array.
        options: more of sbatch's, each KEY=VALUE or KEY.

    Raises:
        InputError: a value that is not allowed.
    """

    partition: str | None = None
    account: str | None = None
    time: int = 60
    gpus: int = 0
    cpus: int = 1
    memory: float | None = None
    jobs: int = 256
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in (("time", SHORTEST), ("gpus", 0), ("cpus", 1), ("jobs", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: it must be at least {least}")
        if self.memory is not None and not 0 < self.memory < 1e6:
            raise InputError(f"--memory {self.memory:g}: it must be a number of GB above 0")
        for option in self.options:
            if not re.fullmatch(r"[a-z][a-z-]*(=.+)?", option):
                raise InputError(f"--slurm-options {option}: write KEY=VALUE or KEY, without dashes before it")

    @property
    def place(self) -> str:
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}"
        gpus = f" and {self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        return f"up to {self.jobs} at a time on Slurm with {cpus}{gpus} each"

    @property
    def sbatch(self) -> dict[str, Any]:
        """The options of sbatch that the user has a say in."""
        chosen = {
            "partition": self.partition,
            "account": self.account,
            "time": self.time,
            "gpus-per-node": self.gpus or None,
            "cpus-per-task": self.cpus,
            "mem": None if self.memory is None else f"{round(1024 * self.memory)}M",
        }
        pairs = (option.partition("=") for option in self.options)
        more = {key: value if given else True for key, given, value in pairs}
        return {key: value for key, value in chosen.items() if value is not None} | more

    def check(self, grid: Grid) -> None:
        """
        Raises:
            InputError: something is `auto` that this machine cannot resolve for the ones that the runs are on.
        """
        if self.gpus and not torch.cuda.is_available():
            for name in ("model", "precision"):
                if any(getattr(config, name) == "auto" for config in grid.configs()):
                    example = "bert-base-uncased" if name == "model" else "bf16"
                    raise InputError(
                        f"--gpus {self.gpus}: there is no GPU here, so --{name} auto would be the CPU's; name one, as"
                        f" in --{name} {example}"
                    )

    def preview(self, path: Path, orders: Sequence[Order]) -> list[str]:
        new = len(orders) - len(self.queued(path).keys() & {order["name"] for order in orders})
        options = " ".join(f"--{key}" + f"={value}" * (value is not True) for key, value in self.sbatch.items())
        return [f"to be submitted: {new} job{'s' * (new != 1)}, {min(new, self.jobs)} at a time, sbatch {options}"]

    def submit(self, path: Path, orders: Sequence[Order]) -> list[str]:
        submitit = load()
        if shutil.which("srun") is None:
            raise InputError("--launcher slurm: there is no Slurm on this machine; use one that jobs can be sent from")
        executor = submitit.SlurmExecutor(path / "jobs", max_num_timeout=RESTARTS)
        threads = [f"export {name}={self.cpus}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
        executor.update_parameters(
            job_name="minibert", time=self.time, array_parallelism=self.jobs, signal_delay_s=NOTICE,
            additional_parameters={"requeue": True} | self.sbatch,
            srun_args=[f"--cpus-per-task={self.cpus}"],  # which srun does not take from sbatch
            setup=[f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}", *threads],
        )  # fmt: skip
        try:
            with redirect_stderr(StringIO()):  # submitit prints what it raises
                return [job.job_id for job in executor.map_array(Task(), orders)]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
            raise InputError(f"sbatch refused the jobs: {'; '.join(lines)}") from None

    def states(self, jobs: Collection[str]) -> dict[str, str]:
        lines = ask("squeue", f"--user={os.getuid()}", "--array", "--noheader", "--states=all", "--format=%i|%T")
        found = dict(line.strip().split("|") for line in lines.splitlines())
        return {
            job: PENDING if word in WAITS else word.lower() if word in ENDED else RUNNING for job, word in found.items()
        }

    def kill(self, jobs: Collection[str]) -> None:
        ask("scancel", "--quiet", *jobs)  # which also takes those that have just ended


class Task:
    """What a job does, as submitit wants it: called, and after its signal asked for what is to be done next time."""

    def __call__(self, order: Order) -> dict[str, Any]:
        try:
            while (reply := perform(order))["state"] == BUSY:  # a job put back may begin before its last try has ended
                time.sleep(1)
        except Stopped as stop:  # the run is saved
            if stop.code == 128 + signal.SIGUSR1 or preempted():
                signal.raise_signal(signal.SIGUSR1)  # submitit's own answer: the job goes back into the queue
            raise SystemExit(stop.code) from None
        return reply

    def checkpoint(self, order: Order) -> Any:
        return load().helpers.DelayedSubmission(self, order)


def preempted() -> bool:
    """Whether SIGTERM came because others want the machine: scancel and scontrol requeue change a job's state first."""
    try:
        job = os.environ["SLURM_JOB_ID"]
        return ask("squeue", "--noheader", "--format=%T", f"--jobs={job}").strip() == "RUNNING"
    except (KeyError, OSError):
        return False


def load() -> ModuleType:
    """
    Raises:
        InputError: submitit is not installed.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL  # read when it is imported
    try:
        import submitit
        import submitit.helpers
    except ImportError:
        raise InputError("--launcher slurm needs submitit: pip install -e '.[slurm]'") from None
    return submitit


def ask(*command: str) -> str:
    """What a command of Slurm's prints.

    Raises:
        OSError: there is no such command, or it fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} does not answer") from None
    except FileNotFoundError:
        raise OSError(f"there is no {command[0]} on this machine; use one that jobs can be sent from") from None
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout

"""Where the runs of a grid are done: a launcher takes orders and says what becomes of each.

`local.Local` has worker processes on this machine. `Queued` hands jobs to a batch system that goes on with them where
this process ends; `slurm.Slurm` is one. Another engine is another class of either kind, and a line in
`minibert.__main__`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from minibert.errors import Say
from minibert.files import locked, read_json, write_json
from minibert.lab.ablation.worker import DONE, FAILED, is_done, run_folder
from minibert.lines import tell

PENDING, RUNNING = "pending", "running"

Order = dict[str, Any]  # a run: {"grid": folder, "name", "settings", "keep_weights"}
Event = tuple[str | None, Mapping[str, str]]  # a run's name and {"state", "reason" where it failed}; None: time passes


class Launcher(Protocol):
    """
    Attributes:
        place: how runs are done, as in "8 runs, PLACE".
        stopped: what to do after Ctrl-C.
    """

    place: str
    stopped: str

    def preview(self, path: Path, orders: Sequence[Order]) -> list[str]:
        """What `run` would do beyond the runs themselves."""

    def run(self, path: Path, orders: Sequence[Order], say: Say) -> Iterator[Event]:
        """Bring every order to DONE or FAILED. An event comes every few seconds at least; closed, it ends in order."""


class Queued(ABC):
    """Runs as jobs of a batch system, which sees the grid's folder. DIR/jobs.json has the last job of each run."""

    place: str
    stopped: ClassVar = (
        "the jobs stay in the queue: the same command looks after them again, --cancel with it cancels them"
    )
    poll, period = 1.0, 10.0  # seconds between two events, and between two questions to the queue
    grace = 60.0  # seconds that a shared folder may take to show what a job wrote
    most = 1000  # jobs submitted at once; Slurm's own limit of an array is 1001

    @abstractmethod
    def submit(self, path: Path, orders: Sequence[Order]) -> list[str]:
        """Submit a job for each order.

        Returns:
            The jobs' ids.

        Raises:
            InputError: the batch system refuses them.
        """

    @abstractmethod
    def states(self, jobs: Collection[str]) -> dict[str, str]:
        """PENDING, RUNNING, or in one word how it ended, for each job that the batch system still knows.

        Raises:
            OSError: it does not answer.
        """

    @abstractmethod
    def kill(self, jobs: Collection[str]) -> None:
        """
        Raises:
            OSError: the batch system does not answer.
        """

    def queued(self, path: Path) -> dict[str, str]:
        """The jobs that are queued or running, by the names of their runs."""
        jobs = recorded(path)
        states = self.states(jobs.values()) if jobs else {}
        return {name: job for name, job in jobs.items() if states.get(job) in (PENDING, RUNNING)}

    def cancel(self, path: Path, say: Say = tell) -> None:
        """Cancel every job of a grid."""
        jobs = self.queued(path)
        if jobs:
            self.kill(jobs.values())
        say(f"{path}: {len(jobs)} job{'s' * (len(jobs) != 1)} cancelled; what they have saved is kept")

    def begin(self, path: Path, orders: Sequence[Order], say: Say) -> dict[str, str]:
        """Submit what is not queued yet.

        Returns:
            The orders' jobs, by name.
        """
        with locked(path / "locks" / "grid", wait=True):  # another ablate may be submitting, too
            queued = self.queued(path)
            new = [order for order in orders if order["name"] not in queued]
            for order in new:  # what was said of an earlier try
                (run_folder(path, order["name"]) / "failed.json").unlink(missing_ok=True)
            jobs = recorded(path)
            for part in (new[at : at + self.most] for at in range(0, len(new), self.most)):
                jobs |= {order["name"]: job for order, job in zip(part, self.submit(path, part))}
                write_json(path / "jobs.json", jobs)
        say(f"{len(new)} submitted, {len(orders) - len(new)} in the queue before; Ctrl-C leaves them there")
        return {order["name"]: jobs[order["name"]] for order in orders}

    def run(self, path: Path, orders: Sequence[Order], say: Say) -> Iterator[Event]:
        jobs = self.begin(path, orders, say) if orders else {}
        told: dict[str, str] = {}
        ended: dict[str, float] = {}  # when a job was first seen to have left the queue
        answers = True
        while True:
            try:
                states, answers = self.states(jobs.values()), True
            except OSError as error:
                if answers:
                    say(f"{error}; the jobs go on, and it is asked again")
                states, answers = {}, False
            for name, job in list(jobs.items()):
                state = states.get(job, "unknown to the queue")
                if is_done(run_folder(path, name)):
                    reply = {"state": DONE}
                elif not answers:
                    continue
                elif state in (PENDING, RUNNING):
                    ended.pop(name, None)
                    reply = {"state": state}
                else:
                    since = time.monotonic() - ended.setdefault(name, time.monotonic())
                    reason = self.reason(path, name, job, state, since)
                    if reason is None:
                        continue
                    reply = {"state": FAILED, "reason": reason}
                if reply["state"] in (DONE, FAILED):
                    del jobs[name]
                if told.get(name) != reply["state"]:
                    told[name] = reply["state"]
                    yield name, reply
            until = time.monotonic() + self.period
            while jobs and time.monotonic() < until:
                yield None, {}
                time.sleep(self.poll)
            if not jobs:
                return

    def reason(self, path: Path, name: str, job: str, state: str, since: float) -> str | None:
        """Why a run has no result whose job has left the queue; None: one may still come."""
        file = run_folder(path, name) / "failed.json"
        if file.exists():
            return read_json(file)["reason"]
        if since < self.grace:
            return None
        return f"job {job} ended without a result ({state}); see logs/{name}.txt, jobs/{job}*"


def recorded(path: Path) -> dict[str, str]:
    """The last job of each run, by its name."""
    return read_json(path / "jobs.json") if (path / "jobs.json").exists() else {}

"""Run a grid: check it, hand its runs to a launcher, say how far it is. The run folders are the data base.

DIR/grid.json  every run that was asked for, by name, with its settings; what `auto` was resolved to
DIR/runs/      a run's folder each, as train.py makes them; with predictions.csv and outcome.json once it is done
DIR/logs/      what each run printed
DIR/jobs.json  which job of a cluster each run was last given to; DIR/jobs/ what submitit keeps of them
DIR/locks/     held while a process is at a run, so that several can share a grid
DIR/broken/    folders that could not be gone on with
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from minibert.config import TrainConfig
from minibert.errors import InputError, Say
from minibert.files import is_leftover, locked, read_json, write_json
from minibert.lab.ablation.grid import (
    FORMAT,
    Grid,
    check_content,
    label_of,
    name_of,
    settings_of,
    shown,
    usual,
    varying,
)
from minibert.lab.ablation.launcher import PENDING, RUNNING, Launcher, Order
from minibert.lab.ablation.local import Local
from minibert.lab.ablation.worker import DONE, FAILED, is_done, run_folder
from minibert.lab.workloads import forward_work
from minibert.lines import tell
from minibert.progress import duration
from minibert.setup import Ground, settle
from minibert.training.folder import sweep

BYTES = 1e9, 30  # a job's memory: torch and data, and for each weight: weight, gradient, moments, copies in passing
MANY = 24  # values of a setting that are not said one by one
ALWAYS = ("data", "model", "examples", "epochs", "batch_size", "lr", "warmup", "precision")
SEEDLESS = ("lr", "warmup", "epochs", "seed", "out", "weight_decay", "clip", "bias_correction", "stop_on_collapse",
            "class_weights", "label_smoothing", "gradient_checkpointing", "select", "early_stopping")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of a grid. work: in GFLOP, its matrix products."""

    name: str
    settings: dict[str, Any]
    work: float


@dataclass(frozen=True)
class Planned:
    """A grid whose runs are known to be possible."""

    runs: list[Run]
    grounds: list[Ground]
    content: dict[str, Any]  # of grid.json


def plan(grid: Grid, path: Path, scale: float, own_examples: bool, command: str) -> Planned:
    """Check every setting of a grid and resolve what is `auto`. Writes nothing but the cache.

    Args:
        own_examples: the user named a number of examples, so that there must be as many.

    Raises:
        InputError: whatever would end one of the runs before its first step; a folder that is no grid's, or whose data
            have changed.
    """
    before = read_grid(path)
    settled = before.get("settled", {})
    grounds: dict[tuple[Any, ...], Ground] = {}

    def ground_of(config: TrainConfig) -> Ground:
        values = settings_of(config) | {"seed": config.seeds.split}
        key = tuple(value for name, value in values.items() if name not in SEEDLESS or name == "seed")
        if key not in grounds:
            grounds[key] = settle(config, lambda line: None)
        return grounds[key]

    runs: dict[str, Run] = {}
    for asked in grid.configs():
        left = {name: value for name, value in settled.items() if getattr(asked, name) == "auto"}
        config = replace(asked, **left) if left else asked
        config = fitted(config, lambda c: ground_of(replace(c, examples="all")), scale, own_examples)
        ground = ground_of(config)
        resolved = {name: getattr(ground.config, name) for name in ("model", "data", "pool", "precision")}
        settings = settings_of(config) | resolved
        name = name_of(settings)
        runs.setdefault(name, Run(name, settings, work_of(ground, config.epochs)))
    data = {ground.config.data: ground.data.sha256 for ground in grounds.values()}
    for name, was in before.get("data", {}).items():
        if data.get(name, was) != was:
            raise InputError(f"{name} changed since {path} was begun (SHA-256 {was[:12]} then); choose another --out")
    first = next(iter(runs.values())).settings
    content = {
        "format": FORMAT,
        "title": grid.title,
        "question": grid.question,
        "baseline": grid.baseline,
        "claims": grid.claims,
        "settled": {"model": first["model"], "precision": first["precision"]} | settled,
        "data": before.get("data", {}) | data,
        "commands": list(dict.fromkeys([*before.get("commands", []), command])),
        "runs": before.get("runs", {}) | {run.name: run.settings for run in runs.values()},
    }
    return Planned(list(runs.values()), list(grounds.values()), content)


def fitted(config: TrainConfig, whole: Callable[[TrainConfig], Ground], scale: float, own: bool) -> TrainConfig:
    """A run's settings with epochs and examples scaled, and no more examples than there are."""
    if scale == 1 and (own or config.examples == "all"):
        return config
    data = whole(config).data
    there, classes = len(data.train), len(data.labels)
    wanted = there if config.examples == "all" else int(config.examples)
    if wanted > there and own:
        return config  # refused with the reason by whoever cuts
    count = max(min(classes, there), round(scale * min(wanted, there)))
    warmup = config.warmup if config.warmup < 1 else max(1, round(scale**2 * config.warmup))
    return replace(
        config,
        examples="all" if count == there else str(count),
        epochs=max(1, round(scale * config.epochs)),
        warmup=warmup,
    )


def read_grid(path: Path) -> dict[str, Any]:
    """DIR/grid.json; empty where nothing has begun.

    Raises:
        InputError: the folder holds something else.
    """
    if not (path / "grid.json").exists():
        if path.exists() and (
            not path.is_dir() or any(part.name != "locks" and not is_leftover(part) for part in path.iterdir())
        ):
            raise InputError(f"--out {path} holds no grid but other files; choose another folder")
        return {}
    content = read_json(path / "grid.json")
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("runs"), dict):
        raise InputError(f"{path / 'grid.json'} is no grid of this version; choose another --out")
    check_content(path / "grid.json", content)
    return content


def work_of(ground: Ground, epochs: int) -> float:
    """GFLOP of a run: three passes an example trained on, one an example evaluated; at the end both splits again."""
    train, val, test = (
        forward_work(ground.bert_config, split.ids.lengths.tolist())
        for split in (ground.data.train, ground.data.val, ground.data.test)
    )
    return epochs * (3 * train + val) + val + test


def jobs_for(planned: Planned, wanted: int | None) -> tuple[int, int]:
    """How many workers, and how many threads each has: a core each where memory allows, one worker on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted is None:
        wanted = 1 if torch.cuda.is_available() else cores
        if hasattr(os, "sysconf"):
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            largest = max(weights_of(ground) for ground in planned.grounds)
            wanted = max(1, min(wanted, int(memory / (BYTES[0] + BYTES[1] * largest))))
    jobs = max(1, min(wanted, len(planned.runs)))
    return jobs, max(1, cores // jobs)


def weights_of(ground: Ground) -> int:
    """How many weights the encoder has, about: the layers' and the embeddings'."""
    c = ground.bert_config
    layer = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
    return c.num_hidden_layers * layer + (c.vocab_size + c.max_position_embeddings) * c.hidden_size


def opening(planned: Planned, path: Path, place: str) -> list[str]:
    """What will be run: the values that vary, then what all runs share."""
    all_settings = [run.settings for run in planned.runs]
    names = varying(all_settings)
    shared = planned.runs[0].settings
    lines = [f"{len(planned.runs)} run{'s' * (len(planned.runs) > 1)}, {place}; {path}"]
    for name in names:
        values = list(dict.fromkeys(shown(settings[name]) for settings in all_settings))
        if len(values) > MANY:
            values = [*values[:3], "...", f"{values[-1]} ({len(values):,})"]
        lines.append(f"  {name}: {', '.join(values)}")
    usual = settings_of(TrainConfig())
    fixed = [name for name in shared if name not in names and (shared[name] != usual[name] or name in ALWAYS)]
    lines.append("  all: " + ", ".join(f"{name} {shown(shared[name])}" for name in fixed))
    done = sum(is_done(run_folder(path, run.name)) for run in planned.runs)
    return lines + ([f"  {done} done before"] if done else [])


def foretell(planned: Planned, threads: int) -> float:
    """GFLOP/s of this machine in real steps of the first run, with so many threads."""
    from minibert.engine.epochs import Cursor, own_random_numbers, steps
    from minibert.setup import prepare
    from minibert.training.loop import batches_of, engine_of, plan_of

    torch.set_num_threads(threads)
    run = planned.runs[0]
    setup = prepare(TrainConfig(**run.settings), lambda line: None)
    planned_steps = plan_of(setup)
    engine = engine_of(setup, planned_steps, lambda line: None)
    times = []
    with own_random_numbers(engine.machine.device):
        start = time.perf_counter()
        for now in steps(engine, planned_steps, Cursor(), batches_of(engine, planned_steps)):
            engine.state.sums.read()  # waits for a GPU
            times.append(time.perf_counter() - start)
            if now.step == 8:
                break
            start = time.perf_counter()
    took = sorted(times[-5:])[len(times[-5:]) // 2]
    ids = engine.splits[0].ids
    mean = forward_work(setup.model.config, ids.lengths.tolist()) / len(ids)
    return 3 * mean * min(planned_steps.size, planned_steps.examples) / took


def run_all(
    planned: Planned, path: Path, launcher: Launcher, keep_weights: bool, say: Say, stream: TextIO | None = None
) -> list[Run]:
    """Bring every run to its end.

    Returns:
        The runs that failed.
    """
    todo = {run.name: run for run in planned.runs if not is_done(run_folder(path, run.name))}
    most = usual([run.settings for run in planned.runs])
    display = Display(planned, path, len(planned.runs) - len(todo), list(todo.values()), stream or sys.stderr)
    failed: list[Run] = []
    events = launcher.run(path, orders_of(list(todo.values()), path, keep_weights), say)
    try:
        for name, reply in events:
            if name is None:
                display.show()
                continue
            run = todo[name]
            display.note(run, reply["state"])
            if reply["state"] in (DONE, FAILED):
                display.clear()
                head = f"{display.done + len(display.failed):>4}/{len(planned.runs)}"
                if reply["state"] == FAILED:
                    failed.append(run)
                    say(f"{head}  {label_of(run.settings, most)}: failed: {reply['reason']}")
                else:
                    outcome = outcome_line(run_folder(path, run.name))
                    room = 76 - len(head) - len(outcome)
                    say(f"{head}  {label_of(run.settings, most):<{room}.{room}}  {outcome}")
            display.show()
    finally:
        events.close()
        display.clear()
    return failed


def orders_of(runs: Sequence[Run], path: Path, keep_weights: bool) -> list[Order]:
    return [
        {"grid": str(path), "name": run.name, "settings": run.settings, "keep_weights": keep_weights} for run in runs
    ]


def outcome_line(path: Path) -> str:
    """What came of a run, in a few words."""
    ended, outcome = read_json(path / "config.json")["ended"], read_json(path / "outcome.json")
    return (
        f"val {outcome['val']['accuracy']:.3f}  test {outcome['test']['accuracy']:.3f}  {ended['verdict']:<9}"
        f"  {duration(ended['seconds'])}"
    )


class Display:
    """How far a grid is: a line that moves on a terminal, a plain one every half minute elsewhere."""

    def __init__(self, planned: Planned, path: Path, done: int, todo: Sequence[Run], stream: TextIO) -> None:
        self.total, self.path, self.done, self.stream = len(planned.runs), path, done, stream
        self.work, self.finished = sum(run.work for run in todo), 0.0
        self.running: dict[str, Run] = {}
        self.pending: set[str] = set()
        self.failed: set[str] = set()
        self.live = stream.isatty()
        self.started = self.printed = time.monotonic()

    def note(self, run: Run, state: str) -> None:
        self.running.pop(run.name, None)
        self.pending.discard(run.name)
        if state == RUNNING:
            self.running[run.name] = run
        if state == PENDING:
            self.pending.add(run.name)
        if state in (DONE, FAILED):
            self.finished += run.work
        self.done += state == DONE
        if state == FAILED:
            self.failed.add(run.name)

    def line(self) -> str:
        share = min(1.0, (self.finished + sum(map(self.part, self.running.values()))) / max(self.work, 1e-9))
        spent = time.monotonic() - self.started
        left = f"{duration(spent * (1 - share) / share)} left" if share > 0.01 else ""
        pending = f", {len(self.pending)} pending" if self.pending else ""
        return (
            f"{self.done} of {self.total} done, {len(self.running)} running{pending}, {len(self.failed)} failed  {left}"
        )

    def part(self, run: Run) -> float:
        """The work that a running run has done, by its whole epochs."""
        try:
            rows = (run_folder(self.path, run.name) / "metrics.jsonl").read_text().count("\n")
        except OSError:
            return 0.0
        return run.work * min(1.0, rows / (run.settings["epochs"] + 0.5))

    def show(self) -> None:
        now = time.monotonic()
        if now - self.printed < (0.5 if self.live else 30):
            return
        self.printed = now
        print(f"\r\x1b[2K{self.line()}" if self.live else self.line(), end="" if self.live else "\n",
              file=self.stream, flush=True)  # fmt: skip

    def clear(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=self.stream, flush=True)


def ablate(
    grid: Grid, path: Path, *, jobs: int | None = None, scale: float = 1.0, own_examples: bool = True,
    dry_run: bool = False, keep_weights: bool = False, command: str = "", launcher: Launcher | None = None,
    say: Say = tell,
) -> list[Run]:  # fmt: skip
    """Run what is not done yet of a grid in `path`.

    Args:
        jobs: worker processes; None: one a core where memory allows.
        scale: of epochs and examples.
        dry_run: only say what would be run, and how long it would take.
        keep_weights: of each run's best epoch; else they go once the run is scored.
        launcher: where the runs are done; None: in `jobs` worker processes here.

    Returns:
        The runs that failed.

    Raises:
        InputError: see plan.
    """
    if not (math.isfinite(scale) and 0 < scale <= 1):
        raise InputError(f"--scale {scale:g}: it must be above 0 and at most 1")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: it must be at least 1")
    planned = plan(grid, path, scale, own_examples, command)
    local = None if launcher else Local(*jobs_for(planned, jobs))
    launcher = launcher or local
    for line in opening(planned, path, launcher.place):
        say(line)
    if dry_run:
        most = usual([run.settings for run in planned.runs])
        for run in planned.runs:
            done = "  (done)" if is_done(run_folder(path, run.name)) else ""
            say(f"  {run.name:<32.32}  {label_of(run.settings, most)}{done}")
        todo = [run for run in planned.runs if not is_done(run_folder(path, run.name))]
        for line in launcher.preview(path, orders_of(todo, path, keep_weights)):
            say(line)
        if local:
            rate = foretell(planned, local.threads) * min(local.jobs, max(1, len(todo)))
            took = duration(sum(run.work for run in todo) / rate)
            say(f"about {took} for {len(todo)} runs, by a step of the first with {local.threads} thread(s)")
        return []
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / "locks" / "grid", wait=True):  # another ablate may be adding runs of its own
        sweep(path)
        planned = replace(planned, content=merged(read_grid(path), planned.content))
        write_json(path / "grid.json", planned.content)
    return run_all(planned, path, launcher, keep_weights, say)


def merged(there: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """grid.json with the runs of both."""
    both = {name: there.get(name, {}) | ours[name] for name in ("data", "runs")}
    return ours | both | {"commands": list(dict.fromkeys([*there.get("commands", []), *ours["commands"]]))}

"""How fast a step is, beside the reference implementation at its best: python -m minibert bench.

Every measurement is a process of its own, so that memory and start-up are its own; the two sides take turns. Work is
counted in real tokens: padding is not work.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from minibert import checkpoint, sources
from minibert.allocator import steady
from minibert.config import TrainConfig
from minibert.data import Examples
from minibert.engine import Engine, assemble
from minibert.engine.dropout import dropout_for
from minibert.engine.machine import DTYPES, Machine, choose_device, choose_machine, processor
from minibert.engine.optimizer import Schedule
from minibert.errors import InputError, Say
from minibert.evaluation import predict
from minibert.lab.workloads import (
    CASES,
    LR,
    PLANNED,
    WARMUP,
    Case,
    Step,
    bert_config,
    cases_on,
    make_examples,
    measured,
    order,
    small_model,
    synchronize,
    timed,
    weights_moved,
    work,
)  # fmt: skip
from minibert.model import BertClassifier, BertConfig
from minibert.training.folder import installed
from minibert.training.outcome import evaluator

# Ways to run the reference. A case is held against the fastest of them.
RIVALS = {
    "train": ("Trainer, sdpa", "Trainer, eager", "loop, sdpa", "loop, eager"),
    "eval": ("loop, sdpa", "loop, eager"),
    "job": ("Trainer, eager",),
}


def bench(names: Sequence[str] | None, precision: str, rounds: int, say: Say, device: str = "auto") -> dict[str, Any]:
    """
    Args:
        names: of the device's cases, None: all; precision: as in TrainConfig; rounds: how often the two sides take
            turns; device: "cpu", "cuda", or "auto": cuda where there is one.

    Returns:
        {"cases": [...], "versions", "processor", "threads", "precision", "peak_gflops", "copy_gb_per_second"}

    Raises:
        InputError: an unknown case, no reference implementation, a measurement that failed.
    """
    where = choose_device() if device == "auto" else torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; --device cpu")
    cases_there = cases_on(where.type)
    names = list(cases_there) if names is None else names
    unknown = [name for name in names if name not in cases_there]
    if unknown:
        raise InputError(f"--cases {','.join(unknown)}: known are {', '.join(cases_there)}")
    for package in ("transformers", "accelerate"):
        if installed(package) == "not installed":
            raise InputError(f"bench measures against transformers; {package} is missing: pip install -e '.[bench]'")
    machine = choose_machine(precision, where)
    precision = machine.name
    sources.resolve("minilm-l6")  # fetched before anything is timed
    peak, speed = matmul_peak(precision, where), copy_speed(where)
    say(f"{processor()}; {machine.describe()}, {precision}")
    say(f"matrix products reach {peak:,.0f} GFLOP/s, copies {speed:,.1f} GB/s read and written")
    say(HEADER)
    cases = []
    for name in names:
        case, seen = cases_there[name], {}
        for _ in range(1 if case.what == "job" else rounds):
            for side in ("minibert", *RIVALS[case.what]):
                seen.setdefault(side, []).append(measure(name, side, precision, where.type))
        cases.append(compare(name, seen, peak, speed))
        say(format_case(cases[-1]))
    versions = {name: installed(name) for name in ("minibert", "torch", "transformers", "accelerate", "numpy")}
    return {"cases": cases, "versions": {"python": platform.python_version(), **versions}, "processor": processor(),
            "threads": torch.get_num_threads(), "precision": precision, "peak_gflops": peak,
            "copy_gb_per_second": speed, "device": machine.describe()}  # fmt: skip


def compare(name: str, seen: dict[str, list[dict[str, float]]], peak: float, speed: float) -> dict[str, Any]:
    """Medians over the rounds; the rival is the fastest of the reference's runs.

    The limit is what a step would take if it were its matrix products at `peak` GFLOP/s and its weights' way through
    memory at `speed` GB/s, one after the other, and nothing else.
    """
    middle = {
        side: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for side, runs in seen.items()
    }
    ours = middle.pop("minibert")
    rival = min(middle, key=lambda side: middle[side]["ms"])
    other = middle[rival]
    seconds = ours["ms"] / 1e3
    limit = ours["gflop"] / peak + ours["gb"] / speed
    return {
        "case": name, "ms": ours["ms"], "ms_other": other["ms"], "ratio": other["ms"] / ours["ms"], "other": rival,
        "tokens_per_second": ours["tokens"] / seconds, "peak_share": ours["gflop"] / seconds / peak,
        "limit_ms": 1e3 * limit, "limit_share": limit / seconds,
        "rss_mb": ours["rss_mb"], "rss_mb_other": other["rss_mb"], "start_seconds": ours["start_seconds"],
        "start_seconds_other": other["start_seconds"], "rounds": len(seen["minibert"]),
        "ms_rivals": {side: figures["ms"] for side, figures in middle.items()},
        # Trainer's steps cannot be counted: on a GPU, the fewest of the reference's own loops
        "launches": ours.get("launches"),
        "launches_other": min((f["launches"] for f in middle.values() if "launches" in f), default=None),
    }  # fmt: skip


HEADER = "case              ms   (ref.)  ratio limit  peak      MB  (ref.)  reference"


def format_case(c: dict[str, Any]) -> str:
    """`limit` and `peak`: the shares of what is possible that we reach."""
    line = (
        f"{c['case']:<11}{c['ms']:>9,.1f}{c['ms_other']:>9,.1f}{c['ratio']:>7.2f}{c['limit_share']:>6.0%}"
        f"{c['peak_share']:>6.0%}{c['rss_mb']:>8,.0f}{c['rss_mb_other']:>8,.0f}  {c['other']}"
    )
    if c["launches"] is None:
        return line
    return f"{line}\n  launches a step: {c['launches']:,.0f}, the reference's loop {c['launches_other']:,.0f}"


def measure(name: str, side: str, precision: str, device: str = "cpu") -> dict[str, float]:
    """One side of one case, in a process of its own."""
    return measured(f"{name}, {side}", "minibert.lab.bench", name, side, precision, device, str(time.time()))


def main(name: str, side: str, precision: str, device: str, started: str) -> None:
    """What `measure` starts: time one side, print {ms, tokens, gflop, gb, rss_mb, start_seconds} a step as JSON."""
    case = cases_on(device)[name]
    if side == "minibert":
        steady(evaluates=case.what == "eval")  # as its commands do
    if case.what == "job":
        figures = run_job(side, precision)
    else:
        examples = make_examples(case)
        if side == "minibert":
            step = our_step(case, examples, precision, device)
        else:
            from minibert.lab.bench_reference import reference_step

            step = reference_step(case, examples, precision, side, device)
        timing = step(float(started))
        rows = [[len(examples.ids[i]) for i in batch] for batch in order(case, examples)]
        counted = [length for batch in rows[WARMUP:] for length in batch]
        steps = len(rows) - WARMUP
        figures = {"ms": 1e3 * timing.seconds / steps, "tokens": sum(counted) / steps, "start_seconds": timing.first}
        figures |= {"gflop": work(case, counted) / steps, "gb": weights_moved(case, examples)}
        if timing.launches is not None:
            figures["launches"] = timing.launches
    who = resource.RUSAGE_CHILDREN if case.what == "job" else resource.RUSAGE_SELF
    figures["rss_mb"] = resource.getrusage(who).ru_maxrss / 1024
    if device == "cuda":
        figures["rss_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(figures))


def our_model(case: Case, machine: Machine) -> BertClassifier:
    torch.manual_seed(0)
    model = BertClassifier(bert_config(case), dropout=dropout_for(machine.device))
    if case.model != "base":
        checkpoint.load_weights(model.bert, small_model())
    return model


def our_step(case: Case, examples: Examples, precision: str, device: str = "cpu") -> Step:
    """minibert as train.py and eval.py run it."""
    machine = choose_machine(precision, torch.device(device))
    model, batches = our_model(case, machine), order(case, examples)
    if case.what == "eval":
        network = evaluator(model, machine, [examples])
        return lambda started: timed(lambda rows: predict(network, examples, rows), batches, started, machine.device)
    engine = assemble(model, [examples], machine, Schedule(LR, PLANNED, PLANNED // 10))
    return lambda started: timed(lambda rows: one_step(engine, rows), batches, started, machine.device)


def one_step(engine: Engine, rows: Sequence[int]) -> None:
    engine.step([engine.network.batch(engine.splits[0], rows)], engine.count(len(rows)))


def run_job(side: str, precision: str) -> dict[str, float]:
    """The README's main command as a process, or the reference's script for the same job: ms of all of it."""
    root = Path(__file__).resolve().parent.parent.parent
    with tempfile.TemporaryDirectory() as folder:
        ours = ["train.py", "--init", "pretrained", "--model", "minilm-l6", "--lr", "1e-6", "--warmup", "0.1"]
        ours += ["--precision", precision, "--out", str(Path(folder, "run"))]
        theirs = ["-m", "minibert.lab.bench_reference", side, precision]
        begin = time.perf_counter()
        command = [sys.executable, *(ours if side == "minibert" else theirs)]
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        seconds = time.perf_counter() - begin
    case = CASES["job"]
    examples, config = make_examples(case), TrainConfig()
    lengths = examples.ids.lengths.tolist() * config.epochs
    steps = config.epochs * -(-len(examples) // config.batch_size)
    return {"ms": 1e3 * seconds, "tokens": sum(lengths), "gflop": work(case, lengths),
            "gb": steps * weights_moved(case, examples), "start_seconds": 0.0}  # fmt: skip


GROWTH = {
    "batch": (1, 2, 4, 8, 16, 32),  # texts of 50 tokens
    "layers": (1, 2, 4, 8),
    "vocabulary": (1_000, 30_522, 120_000),  # words in the table; the texts use 100 of them
}


def growth(precision: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """ms a step of a 6x384 BERT at batch 8 x 50 tokens, with one thing changed at a time: what is asked costs, no more.

    Returns:
        [{"what", "value", "ms"}], after the first of each `what`, the shortest of ten steps.
    """
    machine = choose_machine(precision, choose_device())
    rows = []
    for what, values in GROWTH.items():
        for value in values:
            now = {"batch": 8, "layers": 6, "vocabulary": 30_522} | {what: value}
            torch.manual_seed(0)
            model = BertClassifier(
                BertConfig(now["vocabulary"], 384, now["layers"], intermediate_size=1536, num_labels=6, pad_token_id=0),
                dropout=dropout_for(machine.device),
            )
            generator = np.random.default_rng(0)
            ids = [generator.integers(1, 100, 50).astype(np.int32) for _ in range(now["batch"])]
            examples = Examples(ids, None, generator.integers(0, 6, len(ids)), np.arange(len(ids)))
            engine = assemble(model, [examples], machine, Schedule(LR, PLANNED, PLANNED // 10))
            seconds = []
            for _ in range(WARMUP + 10):
                begin = time.perf_counter()
                one_step(engine, range(len(ids)))
                synchronize(machine.device)
                seconds.append(time.perf_counter() - begin)
            rows.append({"what": what, "value": value, "ms": 1e3 * min(seconds[WARMUP:])})
            say(f"{what:<11}{value:>8,}{rows[-1]['ms']:>9,.1f} ms")
    return rows


def matmul_peak(precision: str, device: torch.device | str = "cpu") -> float:
    """GFLOP/s of the best of a few matrix products of BERT's sizes: what this machine can do at all."""
    best, dtype, device = 0.0, DTYPES[precision], torch.device(device)
    for m, k, n in ((2048, 768, 3072), (4096, 1536, 384), (2048, 2048, 2048), (8192, 768, 3072)):
        x, w = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)
        best = max(best, 2 * m * k * n / 1e9 / shortest(lambda: F.linear(x, w), device))  # noqa: B023
    return best


def copy_speed(device: torch.device | str = "cpu") -> float:
    """GB/s of a copy of 64 MB, counting what is read and what is written.

    No larger: the measurements are child processes, and Linux hands a parent's largest memory down to them.
    """
    device = torch.device(device)
    source, target = torch.ones(2, 1 << 24, device=device)
    return 8 * source.numel() / 1e9 / shortest(lambda: target.copy_(source), device)


def shortest(work: Callable[[], Any], device: torch.device, times: int = 12) -> float:
    """Seconds of the quickest of some runs."""
    seconds = []
    for _ in range(times):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])

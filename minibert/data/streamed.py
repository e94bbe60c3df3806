"""A file of texts that is read from the disk whenever it is needed, and never held.

It is read once for its columns but the texts, and once more to be tokenized; what came of both lies in the cache.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from minibert.data.columns import Coder, Names
from minibert.data.table import MOST, NEEDED, TEXTS, Layout, Row, Table, columns_of, natural, read_file, word
from minibert.errors import InputError
from minibert.files import sha256, write_cache
from minibert.progress import Progress

HELD = 2**26  # bytes of a file that may be held: as Python's objects, about ten times as much
ALWAYS = (".parquet", ".arrow", ".feather")  # are packed, so that their size does not say what they hold
ROWS = 4096  # that are objects of Python's at a time
MOST_ROWS = 2**31 - 1  # row numbers have 32 bits
FORMAT = "minibert 1"  # of what lies in the cache; another one where reading finds other things in the same file


@dataclass(frozen=True)
class File:
    """
    Attributes:
        stamp: size and time of the last change when it was first read.
    """

    path: Path
    charset: str
    layout: Layout
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path, charset: str, layout: Layout) -> File:
        return cls(path, charset, layout, stamp_of(path))

    def rows(self, bar: Progress | None = None) -> Iterator[Row]:
        """
        Raises:
            InputError: as read_file; the file is not what it was.
        """
        with open(self.path, "rb") as file:
            for number, row in enumerate(read_file(
                self.path, file, self.charset, (*NEEDED, *self.layout.names), self.layout
            )):  # fmt: skip
                if number % ROWS == 0 and bar is not None:
                    bar.reach(min(file.tell(), self.stamp[0]), lambda: f"reading {self.path.name}")
                yield row
        self.check()

    def check(self) -> None:
        """
        Raises:
            InputError: the file is not what it was.
        """
        if stamp_of(self.path) != self.stamp:
            raise InputError(f"{self.path} was changed while it was read; start anew")


def stamp_of(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


@dataclass(frozen=True)
class Streamed(Sequence[str]):
    """The n texts of a column: whoever asks for one reads the file from its start.

    Attributes:
        key: stands for all of them.
    """

    file: File
    column: str
    size: int
    key: str

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[str]:
        name = self.file.layout.name(self.column)
        for where, row in self.file.rows():
            yield word(row[name], self.column, where)

    def __getitem__(self, place: Any) -> Any:
        """One text, or those of a slice without steps, in a list."""
        if isinstance(place, slice):
            return list(islice(self, *place.indices(self.size)[:2]))
        return next(islice(self, range(self.size)[place], None))


def is_large(path: Path) -> bool:
    """Whether its rows are not to be held. Both ways come to the same bits; a small file, held, is read once."""
    return path.is_file() and (path.suffix.lower() in ALWAYS or path.stat().st_size > HELD)


def read_streamed(path: Path, charset: str, layout: Layout, cache: Path) -> Table:
    """As read_texts, with Names and Streamed texts.

    Raises:
        InputError: as read_texts; of several faults in one file, it may name another one first.
    """
    file = File.of(path, charset, layout)
    digest = sha256(path)
    about = [FORMAT, digest, path.suffix.lower(), charset, sorted(layout.names.items()), layout.delimiter]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    cached = cache / f"{key}-columns.safetensors"
    found = load_checked(cached)
    if found is None:
        found = scan(file)
        write_checked(cached, found)
        found = load_checked(cached) or found  # mapped, where it could be written
    names = json.loads(found["names"].tobytes())
    columns = {column: Names(names[column], found[column]) for column in names}
    count = len(columns["label"])
    texts = {column: Streamed(file, column, count, f"{key} {column}") for column in TEXTS}
    return Table(
        name=path.absolute().name, labels=columns["label"], sha256=digest, texts=texts["text"],
        pairs=texts["text_b"] if found["pairs"][0] else None, groups=columns.get("group"), splits=columns.get("split"),
        label_order=natural,
    )  # fmt: skip


def scan(file: File) -> dict[str, np.ndarray]:
    """Every row once: whether all are whole, and what their columns but the texts hold.

    Returns:
        `label` and, where they are there, `group` and `split`: codes; `names`: of all, as JSON; `pairs`: 1 with second
        texts, else 0.
    """
    needed: Sequence[str] = (*NEEDED, *file.layout.names)
    coders: dict[str, Coder] = {}
    first, count = "", 0
    with Progress(max(1, file.stamp[0])) as bar:
        rows = file.rows(bar)
        while some := list(islice(rows, ROWS)):
            columns = columns_of(some, needed, layout=file.layout)
            if not count:
                first, needed = some[0][0], tuple(columns)
                coders = {column: Coder() for column in columns if column not in TEXTS}
            late = [column for column in columns if column not in needed]
            if late:
                raise InputError(f"{first}: no {file.layout.name(late[0])!r}, which is in rows behind it")
            count += len(some)
            for column, coder in coders.items():
                coder.add(columns[column])
            if len(coders["label"].places) > MOST:
                raise InputError(
                    f"{some[-1][0]}: {len(coders['label'].places):,} different labels by here; {MOST:,} are the most:"
                    " is it the right column?"
                )
            if count > MOST_ROWS:
                raise InputError(f"{file.path} has more than {MOST_ROWS:,} rows, which are the most")
    if not count:
        raise InputError(f"--data {file.path}: no examples in it")
    names = {column: coder.names() for column, coder in coders.items()}
    text = json.dumps({column: values.names for column, values in names.items()})
    return {column: values.codes.astype(np.uint8 if len(values.names) <= 256 else np.int32)
            for column, values in names.items()} | {
        "names": np.frombuffer(text.encode(), np.uint8), "pairs": np.array([int("text_b" in needed)]),
    }  # fmt: skip


def write_checked(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays, and a checksum with them; not at all where the cache cannot be written."""
    whole = arrays | {"crc": np.array([checksum(arrays)])}
    write_cache(path, lambda beside: save_file(whole, beside))


def load_checked(path: Path, mapped: bool = True) -> dict[str, np.ndarray] | None:
    """What write_checked wrote; None where it is not there or not whole.

    Args:
        mapped: it stays in the file, and is read when it is looked at: the file must not change then.
    """
    try:
        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        if not mapped:
            arrays = {name: array.copy() for name, array in arrays.items()}
        return arrays if arrays.pop("crc")[0] == checksum(arrays) else None
    except (OSError, SafetensorError, KeyError, IndexError):
        return None


def checksum(arrays: dict[str, np.ndarray]) -> int:
    """Of names, types and values, so that nothing of a damaged file is taken for what was written."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]), crc)
    return crc

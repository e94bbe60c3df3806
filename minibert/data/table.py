"""Texts with labels, from a file or a folder."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from minibert.config import TrainConfig, flag
from minibert.data import arrow
from minibert.errors import InputError
from minibert.files import parse_json

COLUMNS = ("text", "label", "text_b", "group", "split")
NEEDED = ("text", "label")
TEXTS = ("text", "text_b")
DELIMITERS = (",", ";", "\t")  # that are looked for in a .csv; spreadsheets write ; where , stands in numbers
MOST = 4096  # classes: a report's matrix of true and predicted ones has the square of it, 134 MB
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
SEPARATING = ",;\t|:~^"  # that may be asked about

Row = tuple[str, dict[str, Any]]  # where it stands, for messages; its columns


@dataclass(frozen=True)
class Table:
    """n rows as they were read: texts or windows, never both.

    Attributes:
        name: what to call it in one word.
        labels: n class names. Those of a file that is too large to be held, as groups and splits, are Names, and the
            texts are Streamed.
        sha256: the hash of the bytes that were read.
        texts, pairs: n texts and n second texts, or None.
        windows: (n, steps, channels) float32 or float64, in the units of the data, or None; `channels`: their names.
        groups: n names of what must not stand in two splits (a person, a document), or None.
        splits: n of "train", "val", "test", or None: split_rows decides.
        label_order: the sort key that puts the class names in their order.
        ranges: lowest and highest value of each channel, (channels, 2); None: to be taken from the training rows.
        left_out: what of a folder was not read, in words.
    """

    name: str
    labels: Sequence[str]
    sha256: str
    texts: Sequence[str] | None = None
    pairs: Sequence[str] | None = None
    windows: np.ndarray | None = None
    channels: list[str] = field(default_factory=list)
    groups: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    label_order: Any = str
    ranges: np.ndarray | None = None
    left_out: str = ""


@dataclass(frozen=True)
class Layout:
    """How a file of rows is written: what it calls the columns, and what separates its cells.

    Attributes:
        names: of a column, as the file calls it; those that are not here are called as in COLUMNS.
        delimiter: a character, tab, or auto: of a .tsv a tab, of a .csv the one of DELIMITERS that its header has.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = "auto"

    @classmethod
    def of(cls, config: TrainConfig) -> Layout:
        own = {"text": config.text_column, "label": config.label_column, "text_b": config.text_b_column}
        return cls({column: name for column, name in own.items() if name not in (None, column)}, config.delimiter)

    def name(self, column: str) -> str:
        return self.names.get(column, column)

    def hint(self, lacking: Iterable[str]) -> str:
        """What to do where the file calls its columns otherwise."""
        flags = [flag(f"{column}_column") for column in ("text", "label", "text_b") if self.name(column) in lacking]
        return f"; {' and '.join(flags)} NAME: what it is called" if flags else ""


def read_texts(path: Path, charset: str = "utf-8", layout: Layout = Layout()) -> Table:
    """A .csv, .tsv or .jsonl file with columns `text`, `label` and, if wanted, `text_b`, `group`, `split`; or a folder
    of class folders of .txt files.

    Raises:
        InputError: no such file, unknown kind, a missing column, an empty text or label, not in `charset`.
    """
    left_out = ""
    check_kind(path)
    if path.is_dir():
        rows, digest, left_out = read_folder(path, charset)
    else:
        content = path.read_bytes()
        rows = list(read_file(path, io.BytesIO(content), charset, (*NEEDED, *layout.names), layout))
        digest = hashlib.sha256(content).hexdigest()
    if not rows:
        raise InputError(f"--data {path}: no examples in it")
    return replace(table_of_rows(path.absolute().name, digest, rows, layout), left_out=left_out)


def check_kind(path: Path) -> None:
    """
    Raises:
        InputError: neither a folder nor a file of one of the kinds in READERS.
    """
    if path.is_dir():
        return
    if not path.exists():
        raise InputError(f"--data {path}: no such file or folder; motion and motion-overlap are bundled")
    if path.suffix.lower() not in READERS:
        raise InputError(f"--data {path}: unknown kind; give {', '.join(READERS)}, .npz or a folder of class folders")
    if not path.is_file():
        raise InputError(f"--data {path}: a pipe or a device; give a file")


def read_file(
    path: Path, file: BinaryIO, charset: str, needed: Sequence[str] = NEEDED, layout: Layout = Layout()
) -> Iterator[Row]:
    """The rows of a file of one of the kinds in READERS, one after another, its columns called as the file calls them.

    Args:
        file: open at its start; `path` says its kind, and stands in messages.

    Raises:
        InputError: not of the form that its kind asks for, or not in `charset`.
    """
    try:
        yield from READERS[path.suffix.lower()](path, file, charset, needed, layout)
    except UnicodeError as error:
        place = wrong_byte(file, charset)
        raise wrong_charset(path, error if place is None else place, charset) from None


def table_of_rows(name: str, digest: str, rows: list[Row], layout: Layout = Layout()) -> Table:
    """
    Raises:
        InputError: a column is missing in a row, or empty.
    """
    columns = columns_of(rows, (*NEEDED, *layout.names), layout=layout)
    return Table(
        name=name, sha256=digest, texts=columns["text"], pairs=columns.get("text_b"),
        labels=columns["label"], groups=columns.get("group"), splits=columns.get("split"), label_order=natural,
    )  # fmt: skip


def columns_of(
    rows: list[Row], needed: Sequence[str] = NEEDED, known: Sequence[str] = COLUMNS, layout: Layout = Layout()
) -> dict[str, list[str]]:
    """Of the `known` columns those that are there, whole.

    Raises:
        InputError: as table_of_rows.
    """
    columns: dict[str, list[str]] = {}
    for column in known:
        name = layout.name(column)
        if column not in layout.names and name in layout.names.values():
            continue  # the file has another use for this name
        present = sum(row.get(name) is not None for _, row in rows)
        if column in needed or present:
            if present < len(rows):
                where = next(where for where, row in rows if row.get(name) is None)
                names = ", ".join(found(rows)) or "nothing"
                raise InputError(f"{where}: no {name!r}; found {names}{'' if present else layout.hint([name])}")
            columns[column] = [word(row[name], column, where) for where, row in rows]
    for column, values in columns.items():
        column = layout.name(column)
        for (where, _), value in zip(rows, values):
            if not value.strip():
                raise InputError(f"{where}: empty {column!r}; fill it or take the row out")
            if HALF.search(value):
                raise InputError(f"{where}: {column!r} holds half a surrogate pair, which is no letter; mend the text")
    return columns


def word(value: Any, column: str, where: str) -> str:
    """A cell's text; that of a name, such as a label, without blanks around it: they are a slip of the hand.

    Raises:
        InputError: a list or an object, which is no text, or a number that is not finite.
    """
    if isinstance(value, list | dict):
        raise InputError(f"{where}: {column!r} is a {type(value).__name__}; it must be a text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: {column!r} is {value}; fill it or take the row out")
    return str(value) if column in TEXTS else str(value).strip()


def read_separated(path: Path, file: BinaryIO, charset: str, needed: Sequence[str], layout: Layout) -> Iterator[Row]:
    """Cells between commas, semicolons or tabs, quoted as spreadsheets do, the first row naming the columns."""
    with as_text(file, charset, newline="") as text:
        yield from separated(path, text, needed, layout)


def separated(path: Path, text: TextIO, needed: Sequence[str], layout: Layout) -> Iterator[Row]:
    limit = csv.field_size_limit(2**31 - 1)  # a text may be longer than the default 131,072 characters
    try:
        wanted = {layout.name(column) for column in needed}
        delimiter = delimiter_of(path, text, wanted, layout)
        text.seek(0)
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        reader.fieldnames = names = [name.strip() for name in reader.fieldnames or []]
        other = next((c for c in "".join(names) if c in SEPARATING), None) if len(names) == 1 else None
        if other is not None and wanted - set(names):
            given = "tab" if other == "\t" else f'"{other}"'
            raise InputError(
                f"{none_of(path, wanted - set(names))}; found one, {names[0]!r}: is {given} the delimiter?"
                f" --delimiter {given}"
            )
        check_names(path, names, wanted, layout)
        for row in reader:
            if None in row:
                raise InputError(f"{path}, line {reader.line_num}: more cells than columns; quote texts that hold them")
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:  # in the row behind the last one that was read whole
        raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def check_names(path: Path, names: list[str], wanted: set[str], layout: Layout) -> None:
    """
    Raises:
        InputError: one of the columns that are wanted is not there, or one that is known stands there twice.
    """
    lacking = wanted - set(names)
    if lacking:
        raise InputError(f"{none_of(path, lacking)}; found {', '.join(names) or 'nothing'}{layout.hint(lacking)}")
    twice = [name for name in map(layout.name, COLUMNS) if names.count(name) > 1]
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]!r}; rename one of them")


def none_of(path: Path, lacking: set[str]) -> str:
    return f"{path}: no column {' or '.join(map(repr, sorted(lacking)))}"


def delimiter_of(path: Path, text: TextIO, wanted: set[str], layout: Layout) -> str:
    """As the layout says; auto: the first that gives a header with all `wanted` columns, else one with most columns."""
    if layout.delimiter != "auto":
        return "\t" if layout.delimiter == "tab" else layout.delimiter
    if path.suffix.lower() == ".tsv":
        return "\t"
    headers = {mark: header_of(text, mark) for mark in DELIMITERS}
    clear = [mark for mark, names in headers.items() if wanted <= set(names)]
    most = max(DELIMITERS, key=lambda mark: len(headers[mark]))
    return clear[0] if clear else most if len(headers[most]) > 1 else DELIMITERS[0]


def header_of(text: TextIO, delimiter: str) -> list[str]:
    text.seek(0)
    try:
        names = next(csv.reader(text, delimiter=delimiter, strict=True), [])
        return [name.strip() for name in names]
    except csv.Error:  # told by whoever reads on
        return []


def read_jsonl(path: Path, file: BinaryIO, charset: str, needed: Sequence[str], layout: Layout) -> Iterator[Row]:
    """One JSON object a line; blank lines are passed over."""
    with as_text(file, charset, newline="\n") as text:
        for number, line in enumerate(text, 1):
            if line.strip():
                try:
                    row = parse_json(line.removesuffix("\n"), object_pairs_hook=without_doubles)
                except ValueError as error:
                    raise InputError(f"{path}, line {number}: not JSON: {error}") from None
                if not isinstance(row, dict):
                    names = " and ".join(repr(layout.name(column)) for column in needed)
                    raise InputError(f"{path}, line {number}: not an object with {names}")
                yield f"{path}, line {number}", row


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return row


def read_arrow(path: Path, file: BinaryIO, charset: str, needed: Sequence[str], layout: Layout) -> Iterator[Row]:
    """Parquet, or Arrow as a file (Feather) or a stream; rows are counted from 0."""
    names, rows = arrow.columns(path, file, {layout.name(column) for column in COLUMNS})
    check_names(path, names, {layout.name(column) for column in needed}, layout)
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


READERS = {".csv": read_separated, ".tsv": read_separated, ".jsonl": read_jsonl,
           ".parquet": read_arrow, ".arrow": read_arrow, ".feather": read_arrow}  # fmt: skip


def read_folder(path: Path, charset: str) -> tuple[list[Row], str, str]:
    """PATH/CLASS/anything.txt, one text a file, in the order of the names.

    Returns:
        Rows, hash, and what was left out, in words; hidden files are not counted.
    """
    rows, digest, left_out = [], hashlib.sha256(), Counter[str]()
    for folder in listed(path):
        if not folder.is_dir():
            left_out["file(s) outside the class folders"] += 1
            continue
        before = len(rows)
        for file in listed(folder):
            if file.is_dir():
                left_out["subfolder(s)"] += 1
            elif file.suffix.lower() != ".txt" or not file.is_file():
                left_out["file(s) other than .txt"] += 1
            else:
                content = file.read_bytes()
                digest.update(f"{folder.name}/{file.name}/{len(content)}/".encode("utf-8", "surrogateescape") + content)
                rows.append((str(file), {"text": decode(content, file, charset), "label": folder.name}))
        if len(rows) == before:
            left_out["class(es) without texts"] += 1
    if not rows:
        raise InputError(f"--data {path}: no class folders with .txt files in it")
    return rows, digest.hexdigest(), ", ".join(f"{count:,} {what}" for what, count in left_out.items())


def listed(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def decode(content: bytes, path: Path, charset: str) -> str:
    """`content` as text, without a byte order mark."""
    try:
        return content.decode(without_mark(charset))
    except UnicodeDecodeError as error:
        raise wrong_charset(path, error.start, charset) from None
    except LookupError:
        raise unknown_charset(charset) from None


@contextmanager
def as_text(file: BinaryIO, charset: str, newline: str) -> Iterator[TextIO]:
    """A file as text that is decoded while it is read, without a byte order mark."""
    try:
        text = io.TextIOWrapper(file, without_mark(charset), newline=newline)
    except LookupError:
        raise unknown_charset(charset) from None
    try:
        yield text
    finally:
        text.detach()  # the file stays open


def without_mark(charset: str) -> str:
    return "utf-8-sig" if codecs.lookup(charset).name == "utf-8" else charset


def wrong_byte(file: BinaryIO, charset: str) -> int | None:
    """The place of the first byte that is not in `charset`, from the file's start; None: there is none by itself."""
    decoder, before = codecs.getincrementaldecoder(charset)(), 0
    file.seek(0)
    while True:
        piece, waiting = file.read(2**20), len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            return before - waiting + error.start
        except UnicodeError:
            return None
        if not piece:
            return None
        before += len(piece)


def wrong_charset(path: Path, what: int | UnicodeError, charset: str) -> InputError:
    where = f"byte {what} is" if isinstance(what, int) else f"{what}:"
    return InputError(
        f"{path}: {where} not {charset}; convert the file, or name its encoding, for example --charset cp1252"
    )


def unknown_charset(charset: str) -> InputError:
    return InputError(f"--charset {charset}: no such encoding; utf-8, latin-1 and cp1252 are common")


def found(rows: list[Row]) -> list[str]:
    return sorted({str(name) for _, row in rows for name, value in row.items() if value is not None})


def natural(label: str) -> tuple[int, float, str]:
    """Numbers by value, then names by letter: 2 before 10."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    return (1, 0.0, label) if math.isnan(value) else (0, value, label)  # "nan" too is a name: it stands in no order

"""python -m minibert predict: a run's answers for new texts or windows, from a file or standard input."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from minibert.classifier import Classifier
from minibert.data.table import READERS, Layout, columns_of, decode, read_file
from minibert.data.windows import checked_windows, read_npz
from minibert.errors import InputError
from minibert.files import check_output, write_output
from minibert.lines import visible

STDIN = "-"
KINDS = (".txt", *READERS, ".npz")
FORMS = (".csv", ".jsonl")
PORTION = 1_024  # rows of a file whose answers are held at a time


def predict_file(
    run: Path, source: str, out: Path | None, charset: str = "utf-8", as_json: bool = False,
    columns: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a line an input to `out` or to standard output: its place, label, confidence, each class's probability.

    Args:
        source: a .txt file of one text a line, a .csv, .tsv or .jsonl with a column `text`, an .npz with `x`, or "-":
            standard input, one text a line.
        out: a .csv or .jsonl file; None: standard output.
        as_json: JSON lines on standard output, in place of CSV.
        columns: `text_column`, `text_b_column`, `delimiter` where they differ from the run's own.

    Raises:
        InputError: the input cannot be used by this run, or `run` cannot predict.
    """
    if out is not None and out.suffix.lower() not in FORMS:
        raise InputError(f"--out {out}: unknown kind; give {' or '.join(FORMS)}")
    if out is not None:
        check_output(out, "--out")
    path = Path(source)
    if source != STDIN and not path.is_file():
        raise InputError(f"{path}: no such file; give one of {', '.join(KINDS)}, or - for standard input")
    if source != STDIN and path.suffix.lower() not in KINDS:
        raise InputError(f"{path}: unknown kind; give one of {', '.join(KINDS)}")
    classifier = Classifier.load(run)
    layout = Layout.of(replace(classifier.config, **(columns or {})))
    rows = answers(classifier, source, charset, layout)
    # On standard output in ASCII: what a terminal's encoding lacks would make no JSON.
    lines = (
        as_json_lines(rows, ascii=out is None) if (out.suffix.lower() == ".jsonl" if out else as_json) else as_csv(rows)
    )
    if out is None:
        for line in lines:
            print(visible(line) if sys.stdout.isatty() else line)
    else:
        write_output(out, lambda beside: write_lines(beside, lines))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def answers(classifier: Classifier, source: str, charset: str, layout: Layout) -> Iterator[dict[str, Any]]:
    """As Classifier.answers, for PORTION inputs at a time."""
    before = 0
    for inputs, pairs in read_inputs(classifier, source, charset, layout):
        for row in classifier.answers(inputs, pairs):
            yield row | {"row": before + row["row"]}
        before += len(inputs)


def read_inputs(
    classifier: Classifier, source: str, charset: str, layout: Layout
) -> Iterator[tuple[Any, list[str] | None]]:
    """New texts or windows, and second texts where the run needs them: all, or of a file of rows PORTION at a time.

    Raises:
        InputError: none, or of another kind than the run was trained on; the line says where.
    """
    path = Path(source)
    kind = ".txt" if source == STDIN else path.suffix.lower()
    if (kind == ".npz") != (classifier.encoding is not None):
        needs = "texts" if classifier.encoding is None else "windows: give an .npz with x (windows, steps, channels)"
        raise InputError(f"{source}: {classifier.path} was trained on {needs}")
    if kind == ".npz":
        arrays = read_npz(path, ("x",))
        windows, names = checked_windows(str(path), arrays)
        classifier.encoding.check(windows, str(path))
        if "channels" in arrays and names != classifier.encoding.channels:
            raise InputError(
                f"{path}: channels {', '.join(names)}; the run was trained on {', '.join(classifier.encoding.channels)}"
            )
        yield windows, None
        return
    needed = ("text", "text_b") if classifier.pairs else ("text",)
    if kind in READERS:
        with open(path, "rb") as file:
            rows, some = read_file(path, file, charset, needed, layout), []
            while more := list(islice(rows, PORTION)):
                some = more
                columns = columns_of(some, needed, needed, layout)
                yield columns["text"], columns.get("text_b")
        if not some:
            raise InputError(f"{source}: no texts in it")
    else:
        content, name = (sys.stdin.buffer.read(), "standard input") if source == STDIN else (path.read_bytes(), source)
        texts = decode(content, Path(name), charset).split("\n")
        if not texts[-1]:  # behind the end of the last line
            texts.pop()
        if not texts:
            raise InputError(f"{name}: no texts in it")
        columns = columns_of([(f"{name}, line {i}", {"text": text}) for i, text in enumerate(texts, 1)], needed, needed)
        yield columns["text"], columns.get("text_b")


def as_json_lines(rows: Iterable[dict[str, Any]], ascii: bool) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=ascii) for row in rows)


def as_csv(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """With a header; a column a class, named p(CLASS), as in eval.py's file."""
    for row in rows:
        own, p = {name: value for name, value in row.items() if name != "p"}, row["p"]
        if row["row"] == 0:
            yield as_line([*own, *(f"p({label})" for label in p)])
        yield as_line([*own.values(), *p.values()])


def as_line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()

"""minibert/lab/streaming.py: a run over made-up rows, stopped and gone on with, and the memory that it took."""

import csv
import os

import pytest

from minibert.lab import streaming


def test_rows_are_those_of_the_seed(tmp_path):
    for name, rows, seed in (("a", 10_500, 0), ("b", 10_500, 0), ("c", 10_500, 1)):
        streaming.write_rows(tmp_path / name, rows, seed)
    one, again, other = ((tmp_path / name).read_text() for name in "abc")
    assert one == again != other
    rows = list(csv.DictReader(one.splitlines()))
    assert len(rows) == 10_500
    assert {len(row["text"].split()) for row in rows} == set(range(8, 21))
    assert {row["label"] for row in rows} == {"0", "1", "2", "3"}
    known = streaming.words()
    assert len(set(known)) == len(known) == streaming.WORDS
    first = sum(row["text"].split()[0] == known[int(row["label"])] for row in rows) / len(rows)
    assert 0.45 < first < 0.55


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_a_run_is_stopped_and_goes_on(tmp_path, capfd):
    figures = streaming.measure(20_000, tmp_path / "all", seconds=0)
    assert set(figures) == {*streaming.PHASES, "resumed", "data", "shards"}
    assert all(value > 0 for value in figures.values())
    said = capfd.readouterr().err
    assert "data: rows.csv: 16,000 / 2,000 / 2,000" in said
    assert "resuming in epoch 1, after step" in said

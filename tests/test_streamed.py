"""minibert/data/streamed.py: a file that is not held gives the same rows, batches and weights as one that is."""

import json
import os
from dataclasses import replace

import forked
import numpy as np
import pytest
from test_resume import end_of, stopped_behind
from test_table import test_csv_errors_say_what_and_where as csv_errors
from test_table import test_jsonl_errors_say_what_and_where as jsonl_errors

from minibert import data as data_module
from minibert.config import TrainConfig
from minibert.data import load_dataset, read_table, streamed
from minibert.data.streamed import Streamed
from minibert.errors import InputError, Stopped
from minibert.progress import Progress
from minibert.tokenizer import Tokenizer
from minibert.training.run import resume, train

ROWS = 200


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stream(monkeypatch):
    """From now on no file is held, and a file of the cache has 16 texts."""
    monkeypatch.setattr(streamed, "ROWS", 7)
    monkeypatch.setattr(data_module, "SHARD", 16)
    monkeypatch.setattr(data_module, "BATCH", 5)
    return lambda on=True: monkeypatch.setattr(streamed, "HELD", 0 if on else 2**26)


def rows_of(kind):
    for i in range(ROWS):
        row = {
            "text": " ".join(str((7 * i + n) % 50 + 50 * (i % 2)) for n in range(1 + i % 5)),
            "label": f" {i % 2 + 9} ",
        }
        row |= {"text_b": f"{i % 31} a\n b"} if kind == "pairs" else {}
        row |= {"group": f"g{i // 3 % 40}"} if kind == "groups" else {}
        row |= {"split": ("train", "dev", "test")[max(0, i % 10 - 7)]} if kind == "splits" else {}
        yield row


def write(path, kind):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows_of(kind))) + "\n")
        return path
    rows = list(rows_of(kind))
    cells = [[*rows[0]], *([f'"{value}"' for value in row.values()] for row in rows)]
    path.write_text("".join(";".join(row) + "\r\n" for row in cells))
    return path


def equal(one, other):
    """Two Examples."""
    assert one.rows.tolist() == other.rows.tolist()
    assert one.labels.tolist() == other.labels.tolist()
    assert (one.groups is None) == (other.groups is None)
    assert one.groups is None or list(one.groups) == list(other.groups)
    for a, b in ((one.ids, other.ids), (one.types, other.types)):
        assert (a is None) == (b is None)
        assert a is None or all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["plain", "pairs", "groups", "splits"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_the_same_examples(tiny, tmp_path, stream, name, kind):
    path, tokenizer = write(tmp_path / name, kind), Tokenizer.load(tiny)
    configs = [TrainConfig(data=str(path), seed=seed, examples=examples, max_length=length)
               for seed, examples, length in (("0", "all", 256), ("5,split=2", "30", 6))]  # fmt: skip
    held = [load_dataset(config, tokenizer) for config in configs]
    stream()
    for config, expected in zip(configs, held):
        assert isinstance(read_table(config).texts, Streamed)
        for _ in range(2):  # the second time from the cache
            found = load_dataset(config, tokenizer)
            for split in ("train", "val", "test"):
                equal(getattr(found, split), getattr(expected, split))
            assert (found.labels, found.summary, found.sha256) == (expected.labels, expected.summary, expected.sha256)
            assert found.pairs == expected.pairs


@pytest.mark.parametrize("errors", [csv_errors, jsonl_errors])
def test_the_same_errors(tmp_path, stream, errors):
    """Those of the tests of files that are held, and in the same words."""
    stream()
    (mark,) = errors.pytestmark
    for content, words in mark.args[1]:
        path = tmp_path / ("a.csv" if errors is csv_errors else "a.jsonl")
        path.write_text(content, newline="")
        with pytest.raises(InputError, match=words):
            read_table(TrainConfig(data=str(path)))


@pytest.mark.parametrize("rows", [5, 300])
def test_a_byte_that_does_not_fit_is_named_wherever_it_stands(tmp_path, stream, rows):
    stream()
    before = b"text,label\n" + b"one or two,a\n" * 100 * rows
    path = tmp_path / "a.csv"
    path.write_bytes(before + b"caf\xe9,b\n")
    with pytest.raises(InputError, match=f"byte {len(before) + 3} is not utf-8"):
        read_table(TrainConfig(data=str(path)))
    table = read_table(TrainConfig(data=str(path), charset="cp1252"))
    assert table.texts[len(table.texts) - 1] == "café"


@pytest.mark.parametrize(("first", "words"), [(14, "line 1: no .group., which"), (15, "line 15: no 'group'")])
def test_a_column_that_comes_late(tmp_path, stream, first, words):
    stream()
    lines = [{"text": "a", "label": i % 2} | ({} if i < first else {"group": "g"}) for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=words):
        read_table(TrainConfig(data=str(tmp_path / "a.jsonl")))


def test_very_many_labels_are_refused_before_they_fill_the_memory(tmp_path, stream, monkeypatch):
    stream()
    monkeypatch.setattr(streamed, "MOST", 30)
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"a,{i}\n" for i in range(100)))
    with pytest.raises(InputError, match="line 36: 35 different labels by here; 30 are the most: is it the right"):
        read_table(TrainConfig(data=str(path)))


def test_texts_are_read_when_they_are_asked_for(tmp_path, stream):
    stream()
    path = write(tmp_path / "a.csv", "pairs")
    table, rows = read_table(TrainConfig(data=str(path))), list(rows_of("pairs"))
    assert list(table.texts) == [row["text"] for row in rows]
    assert list(table.pairs) == [row["text_b"] for row in rows]
    assert (len(table.texts), table.texts[-1], table.texts[3:5]) == (
        ROWS, rows[-1]["text"], [row["text"] for row in rows[3:5]],
    )  # fmt: skip
    with pytest.raises(IndexError):
        table.texts[ROWS]
    path.write_text(path.read_text().replace("49", "48"))
    with pytest.raises(InputError, match=r"a\.csv was changed while it was read; start anew"):
        list(table.texts)


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("49", "48"), lambda text: text + "1;9\n"], ids=["other texts", "one more"]
)
def test_a_file_that_changes_before_it_is_tokenized_leaves_nothing_in_the_cache(tiny, tmp_path, stream, change):
    stream()
    path = write(tmp_path / "a.csv", "plain")
    content, config, tokenizer = path.read_text(), TrainConfig(data=str(path)), Tokenizer.load(tiny)
    expected = load_dataset(config, tokenizer)
    for shard in (tmp_path / "cache").glob("*-[0-9]*.safetensors"):
        shard.unlink()
    table = read_table(config)
    path.write_text(change(content))
    with pytest.raises(InputError, match=r"a\.csv was changed while it was read; start anew"):
        load_dataset(config, tokenizer, table=table)
    path.write_text(content)
    equal(load_dataset(config, tokenizer).train, expected.train)


@pytest.fixture
def calls(monkeypatch):
    """How many texts the tokenizer was asked to encode."""
    made, encode = [], Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, texts, *more: made.append(len(texts)) or encode(self, texts, *more)
    )
    return made


@pytest.mark.parametrize("spoil", ["gone", "cut", "empty", "bit", "other"])
def test_a_shard_that_is_not_whole_is_made_anew_and_no_other(tiny, tmp_path, stream, calls, spoil):
    stream()
    tokenizer, config = Tokenizer.load(tiny), TrainConfig(data=str(write(tmp_path / "a.csv", "pairs")))
    whole = load_dataset(config, tokenizer)
    expected = [[row.tolist() for row in texts] for texts in (whole.train.ids, whole.train.types)]
    assert sum(calls) == ROWS
    del whole  # it is mapped from what is spoiled now
    (shard,) = (tmp_path / "cache").glob("*-4.safetensors")
    content = shard.read_bytes()
    if spoil == "gone":
        shard.unlink()
    elif spoil == "other":
        (other,) = (tmp_path / "cache").glob("*-12.safetensors")  # of the last 8 rows
        shard.write_bytes(other.read_bytes())
    else:
        flipped = bytes([*content[:-40], content[-40] ^ 4, *content[-39:]])
        shard.write_bytes({"cut": content[:-1], "empty": b"", "bit": flipped}[spoil])
    calls.clear()
    again = load_dataset(config, tokenizer)
    assert sum(calls) == 16
    assert [[row.tolist() for row in texts] for texts in (again.train.ids, again.train.types)] == expected
    assert shard.read_bytes() == content


def test_a_kill_loses_one_shard(tiny, tmp_path, stream, calls, monkeypatch):
    stream()
    tokenizer, config = Tokenizer.load(tiny), TrainConfig(data=str(write(tmp_path / "a.csv", "plain")))
    expected = load_dataset(config, tokenizer)
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "other"))
    real, told = Tokenizer.encode, []

    def killed(self, texts, *more):
        told.append(len(texts))
        if sum(told) > 100:
            raise KeyboardInterrupt
        return real(self, texts, *more)

    monkeypatch.setattr(Tokenizer, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        load_dataset(config, tokenizer)
    monkeypatch.setattr(Tokenizer, "encode", real)
    calls.clear()
    assert len(list((tmp_path / "other").glob("*"))) == 1 + 6  # the columns, and six shards of 16
    monkeypatch.setattr(Tokenizer, "encode", lambda self, *more: told.append("") or real(self, *more))
    equal(load_dataset(config, tokenizer).train, expected.train)
    assert told.count("") == 6 * 4 + 2  # of what was left, 6 shards of 16 in batches of 5, and 8 rows


def test_columns_that_are_not_whole_are_read_anew(tmp_path, stream):
    stream()
    config = TrainConfig(data=str(write(tmp_path / "a.csv", "groups")))
    table = read_table(config)
    expected = list(table.labels), list(table.groups)
    del table
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    for spoiled in (b"", content[:-3], content.replace(b"g1", b"g7")):
        file.write_bytes(spoiled)
        table = read_table(config)
        assert (list(table.labels), list(table.groups)) == expected
        del table
        assert file.read_bytes() == content


def test_without_a_cache_all_is_there_but_in_memory(tiny, tmp_path, stream, monkeypatch):
    path = write(tmp_path / "a.csv", "pairs")
    expected = load_dataset(TrainConfig(data=str(path)), Tokenizer.load(tiny))
    stream()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "file" / "below"))
    equal(load_dataset(TrainConfig(data=str(path)), Tokenizer.load(tiny)).train, expected.train)


def test_how_far_it_is_is_said(tiny, tmp_path, stream, monkeypatch, capsys):
    stream()

    class Always(Progress):
        def __init__(self, total):
            super().__init__(total)
            self.interval = -1

    monkeypatch.setattr(streamed, "Progress", Always)
    monkeypatch.setattr(data_module, "Progress", Always)
    path = write(tmp_path / "a.csv", "plain")
    load_dataset(TrainConfig(data=str(path)), Tokenizer.load(tiny))
    lines = capsys.readouterr().err.splitlines()
    # 200 rows, 7 at a time; then 12 shards of 16 texts, 5 at a time, and one of 8
    assert [line.split()[0] for line in lines] == ["reading"] * 29 + ["tokenizing"] * 50
    assert lines[-1].split() == ["tokenizing", "100%", "0m00s", "left"]
    assert lines[0].startswith("reading a.csv  ")


@pytest.fixture
def config(tiny, tmp_path):
    """Two epochs of 10 steps, of 160 examples in 13 shards."""
    path = write(tmp_path / "a.csv", "plain")
    return TrainConfig(data=str(path), model=str(tiny), lr=3e-3, epochs=2, batch_size=8, accumulate=2,
                       out=str(tmp_path / "held"), save_every=0)  # fmt: skip


def test_the_same_weights_and_predictions_bit_for_bit(config, tmp_path, stream):
    held = end_of(train(config, str))
    stream()
    assert end_of(train(replace(config, out=str(tmp_path / "streamed")), str)) == held


@pytest.mark.parametrize("behind", [1, 7])
def test_a_streamed_run_goes_on_from_any_step(config, tmp_path, stream, monkeypatch, behind):
    stream()
    whole = end_of(train(config, str))
    again = replace(config, out=str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        stopped_behind(patch, behind)
        with pytest.raises(Stopped):
            train(again, str)
        for _ in range(20 // behind - 1):
            with pytest.raises(Stopped):
                resume(tmp_path / "again", str)
    assert end_of(resume(tmp_path / "again", str)) == whole


def test_a_large_file_is_streamed_and_a_small_one_is_held(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", "plain")
    assert isinstance(read_table(TrainConfig(data=str(path))).texts, list)
    monkeypatch.setattr(streamed, "HELD", path.stat().st_size - 1)
    assert isinstance(read_table(TrainConfig(data=str(path))).texts, Streamed)


MEMORY = """
import re, sys, threading, time
from pathlib import Path
from minibert.config import TrainConfig
from minibert.data import streamed
from minibert.errors import Stopped
from minibert.training.keeper import Keeper
from minibert.training.run import train

streamed.HELD = int(sys.argv[4])
peak, done = 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
look, steps = Keeper.look, 0

def stop(self, *arguments):
    global steps
    steps += 1
    self.told = 15 if steps == 20 else None
    look(self, *arguments)

Keeper.look = stop
try:
    train(TrainConfig(data=sys.argv[1], model=sys.argv[2], out=sys.argv[3], epochs=1, batch_size=64), str)
except Stopped:
    pass
done = True
watcher.join()
print(peak / 1024)
"""


def peak(tmp_path, tiny, rows, held=0):
    """MB of a run that reads and tokenizes so many rows, and takes 20 steps."""
    (tmp_path / "peak.py").write_text(MEMORY)
    path = tmp_path / f"{rows}.csv"
    with open(path, "w") as file:
        file.write("text,label\n")
        file.writelines(f"{i % 100} {i // 100 % 100},{'ab'[i % 2]}\n" for i in range(rows))
    out = tmp_path / f"run-{rows}-{held}"
    done = forked.run(tmp_path / "peak.py", path, tiny, out, held)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path, tiny):
    """200,000 rows as dictionaries of Python's are over 80 MB, their token ids as arrays of numpy's over 20 MB."""
    few, many = peak(tmp_path, tiny, 2_000), peak(tmp_path, tiny, 200_000)
    assert many - few < 15

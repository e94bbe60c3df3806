"""minibert/data/arrow.py: Parquet and Arrow files are the rows that a .csv of them is, or are refused in one line."""

import struct
import sys

import pytest
from test_streamed import equal, rows_of, write

from minibert.config import TrainConfig
from minibert.data import arrow, load_dataset, read_table
from minibert.data.streamed import Streamed
from minibert.errors import InputError
from minibert.tokenizer import Tokenizer

pa = pytest.importorskip("pyarrow")
from pyarrow import feather, ipc, parquet  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "cache"))


def put(path, table, kind="parquet", rows=7):
    """Write a table (or columns) as one of the kinds of files, with so many rows in a group."""
    table = table if isinstance(table, pa.Table) else pa.table(table)
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=rows)
    elif kind == "feather":
        feather.write_feather(table, path, chunksize=rows)
    else:
        make = ipc.new_file if kind == "file" else ipc.new_stream
        with make(path, table.schema) as out:
            out.write_table(table, rows)
    return path


def read(path, **settings):
    return read_table(TrainConfig(data=str(path), **settings))


KINDS = [("a.parquet", "parquet"), ("A.PARQUET", "parquet"), ("a.arrow", "file"), ("a.arrow", "stream"),
         ("a.feather", "feather")]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("columns", ["pairs", "groups", "splits"])
def test_the_same_examples_as_of_a_csv(tiny, tmp_path, name, kind, columns, monkeypatch):
    monkeypatch.setattr(arrow, "ROWS", 5)
    tokenizer = Tokenizer.load(tiny)
    expected = load_dataset(TrainConfig(data=str(write(tmp_path / "a.csv", columns))), tokenizer)
    path = put(tmp_path / name, pa.Table.from_pylist(list(rows_of(columns))), kind)
    found = load_dataset(TrainConfig(data=str(path)), tokenizer)
    for split in ("train", "val", "test"):
        equal(getattr(found, split), getattr(expected, split))
    assert (found.labels, found.pairs) == (expected.labels, expected.pairs)
    assert isinstance(read(path).texts, Streamed)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array([2, 10, 2], pa.int8()), ["2", "10", "2"]),
        (pa.array([2, 2**64 - 1, 2], pa.uint64()), ["2", "18446744073709551615", "2"]),
        (pa.array([1.5, 2.0, 2.0]), ["1.5", "2.0", "2.0"]),
        (pa.array([True, False, True]), ["True", "False", "True"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a ", "b", " a"], pa.large_string()), ["a", "b", "a"]),
    ],
)
@pytest.mark.parametrize(("name", "kind"), KINDS[1:4])
def test_types_that_are_names(tmp_path, values, names, name, kind):
    table = read(put(tmp_path / name, {"text": ["x", "y", "z"], "label": values, "other": [[1], [], None]}, kind))
    assert list(table.labels) == names
    assert list(table.texts) == ["x", "y", "z"]


def test_columns_of_other_names(tmp_path):
    path = put(tmp_path / "a.parquet", {"text": ["x"] * 3, " review ": ["a", "b", "c"], "stars": [1, 2, 2]})
    table = read(path, text_column="review", label_column="stars")
    assert (list(table.texts), list(table.labels)) == (["a", "b", "c"], ["1", "2", "2"])


GOOD = {"text": ["x", "y", "z"], "label": ["a", "b", "a"]}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["x"], "klass": ["a"]}, "no column 'label'; found text, klass; --label-column NAME"),
        ({"text": ["x", None, "z"]}, "row 1: empty 'text'; fill it or take the row out"),
        ({"label": ["a", "b", None]}, "row 2: empty 'label'"),
        ({"label": pa.nulls(3)}, "row 0: empty 'label'"),
        ({"group": ["a", "", "b"]}, "row 1: empty 'group'"),
        ({"text": [["x"], ["y"], []]}, "'text' is of type list<.*>; it must be of texts, numbers, or true and false"),
        ({"label": [{"a": 1}] * 3}, "'label' is of type struct<a: int64>; it must be"),
        ({"label": pa.array([1, 2, 3], pa.date32())}, "'label' is of type date32"),
        ({"text": pa.array([b"x"] * 3)}, "'text' is of type binary"),
        ({"label": [1.0, float("nan"), 2.0]}, "row 1: 'label' is nan; fill it"),
        ({" text": ["x"] * 3}, "two columns are called 'text'"),
        ({"text": [], "label": []}, "no examples in it"),
    ],
)
@pytest.mark.parametrize(("name", "kind"), KINDS[1:4])
def test_what_is_no_table_of_texts_is_refused(tmp_path, columns, words, name, kind):
    columns = columns if len(columns) > 1 else GOOD | columns
    if columns["text"] == []:
        columns = {name: pa.array([], pa.string()) for name in columns}
    with pytest.raises(InputError, match=f"(?i)a\\.{name[2:]}.*{words}"):
        read(put(tmp_path / name, columns, kind))


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("left", [0, 3, 8, 100, -1, -10, -100])
def test_a_file_that_is_cut_off(tmp_path, name, kind, left):
    path = put(tmp_path / name, pa.Table.from_pylist(list(rows_of("pairs"))), kind)
    path.write_bytes(path.read_bytes()[:left])
    if kind == "stream" and left in (-1,):
        pytest.skip("the last bytes of a stream only say that nothing follows")
    with pytest.raises(InputError, match=r"(?i)a\.\w+ cannot be read: "):
        list(read(path).texts)


def test_a_text_that_is_not_utf_8(tmp_path):
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"]).buffers())
    with pytest.raises(InputError, match=r"cannot be read: .*(utf-8|UTF8)"):
        read(put(tmp_path / "a.parquet", {"text": texts, "label": ["a", "b"]}))


@pytest.mark.parametrize("end", [1_000_000_000, -5])
@pytest.mark.parametrize(("name", "kind"), KINDS[2:])
def test_offsets_beyond_the_end_are_not_followed(tmp_path, name, kind, end):
    """Unchecked, they end the process."""
    columns = {"text": ["a" * 77, "b" * 91], "label": ["a", "b"]}
    path = put(tmp_path / name, columns, "stream" if kind == "stream" else "file")
    good = struct.pack("<3i", 0, 77, 168)
    assert path.read_bytes().count(good) == 1
    path.write_bytes(path.read_bytes().replace(good, struct.pack("<3i", 0, 77, end)))
    with pytest.raises(InputError, match="cannot be read: .*offset"):
        read(path)


def test_a_column_that_unpacks_to_more_than_it_may(tmp_path, monkeypatch):
    texts = [f"{i} {'a' * 10_000}" for i in range(100)]
    path = put(tmp_path / "a.parquet", {"text": texts, "label": ["a", "b"] * 50}, rows=50)
    assert path.stat().st_size < 200_000
    table = read(path)
    assert list(table.texts) == texts
    monkeypatch.setattr(arrow, "MOST_BYTES", 400_000)
    with pytest.raises(InputError, match=r"has 50\d,\d+ bytes in one group of rows; 400,000 are the most"):
        list(table.texts)


def test_few_rows_are_unpacked_at_a_time(tmp_path, monkeypatch):
    """A megabyte repeated a thousand times is a small file, and never a gigabyte in memory."""
    long = "word " * 200_000
    path = put(tmp_path / "a.parquet", {"text": [long] * 400, "label": ["a", "b"] * 200}, rows=400)
    assert path.stat().st_size < 2_000_000
    monkeypatch.setattr(arrow, "ROWS", 4)
    before = pa.total_allocated_bytes()
    most = 0
    with open(path, "rb") as file:
        for row in arrow.columns(path, file, ["text"])[1]:
            assert row["text"] == long
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 50_000_000  # all of them are 400 MB


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_pyarrow_reads_without_python(tmp_path, monkeypatch, name, kind):
    """Its threads may outlive Python's, and a Python file that they hold then aborts the process. The file that is open
    moves on all the same: progress is told by it.
    """
    path, given = put(tmp_path / name, {"text": [*"abcdefghij"], "label": ["a", "b"] * 5}, kind, rows=2), []
    for module, opener in ((ipc, "open_file"), (ipc, "open_stream"), (parquet, "ParquetFile")):
        real = getattr(module, opener)
        monkeypatch.setattr(module, opener, lambda file, real=real: (given.append(type(file)), real(file))[1])
    monkeypatch.setattr(arrow, "ROWS", 2)
    with open(path, "rb") as file:
        places = [file.tell() for _ in arrow.columns(path, file, ["text"])[1]]
    assert given == [pa.OSFile]
    assert places == sorted(places)
    assert 0 < places[0] < places[-1] <= path.stat().st_size


def test_a_batch_that_asks_for_absurd_memory(tmp_path, monkeypatch):
    def absurd(source):
        raise MemoryError

    path = put(tmp_path / "a.arrow", GOOD, "file")
    monkeypatch.setattr(ipc, "open_file", absurd)
    with pytest.raises(InputError, match="cannot be read: a batch of rows asks for more memory than there is"):
        read(path)


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = put(tmp_path / "a.parquet", GOOD)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"a\.parquet needs a package: pip install -e '\.\[data\]'"):
        read(path)


def test_rows_are_those_that_predictions_count(tmp_path):
    """From 0, also across groups of rows."""
    path = put(tmp_path / "a.parquet", {"text": [*"abcdefghi", " "], "label": ["a", "b"] * 5}, rows=3)
    with pytest.raises(InputError, match="row 9: empty 'text'"):
        read(path)

"""minibert/data: from --data to tokenized, split examples, and the cache of the tokenization."""

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from safetensors import SafetensorError
from safetensors.numpy import save_file

from minibert.checkpoint import save_pretrained
from minibert.config import TrainConfig
from minibert.data import cache_folder, check_vocabulary, load_dataset, read_table, tokenize
from minibert.errors import InputError
from minibert.model import Bert
from minibert.setup import settle
from minibert.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return Tokenizer.load(tiny)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder that nothing was written to yet."""
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "own" / "cache"))
    return tmp_path / "own" / "cache"


@pytest.fixture
def calls(monkeypatch):
    """What the tokenizer was asked to encode."""
    made = []
    encode = Tokenizer.encode

    def counting(self, texts, *more):
        made.append(texts)
        return encode(self, texts, *more)

    monkeypatch.setattr(Tokenizer, "encode", counting)
    return made


TEXTS = [f"{i} {'a b c d e f g h'[: 2 * (i % 8) + 1]}" for i in range(40)]
LABELS = ["10", "2"] * 20


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(TEXTS, LABELS)))
    return path


def splits(data):
    return {"train": data.train, "val": data.val, "test": data.test}


def test_a_wrong_column_is_refused_before_a_checkpoint_is_looked_for(small):
    with pytest.raises(InputError, match="no column 'body'; found text, label; --text-column NAME"):
        settle(TrainConfig(data=str(small), text_column="body", model="./nowhere"), str)


@pytest.mark.parametrize("name", ["motion", "folder", "own.npz"])
def test_columns_are_refused_where_there_are_none(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "own.npz").touch()
    for given in ({"text_column": "x"}, {"delimiter": ";"}):
        with pytest.raises(InputError, match=f"{name} has no columns; leave out"):
            read_table(TrainConfig(data=name if name == "motion" else str(tmp_path / name), **given))


def test_at_most_so_many_of_each_split(tokenizer):
    few, fewer = (load_dataset(TrainConfig(max_examples=most), tokenizer) for most in (60, 20))
    for name, split in splits(few).items():
        assert len(split) == 60
        assert set(splits(fewer)[name].rows) < set(split.rows)
        assert set(split.labels) == set(range(6))
    other = load_dataset(TrainConfig(max_examples=60, seed="5"), tokenizer)
    assert set(other.train.rows) != set(few.train.rows)
    assert other.val.rows.tolist() == few.val.rows.tolist()  # other seeds are tested on the same
    assert other.test.rows.tolist() == few.test.rows.tolist()
    for examples, most, count in (("40", 60, 40), ("80", 60, 60)):
        both = load_dataset(TrainConfig(examples=examples, max_examples=most), tokenizer)
        assert len(both.train) == count
        one = load_dataset(TrainConfig(examples=str(count)), tokenizer)
        assert both.train.rows.tolist() == one.train.rows.tolist()
    with pytest.raises(InputError, match="--max-examples 5: the training split has 3,851 of 6 classes"):
        load_dataset(TrainConfig(max_examples=5), tokenizer)


def told(examples, tokenizer):
    """The texts that the ids stand for."""
    return [tokenizer.backend.decode(row.tolist()) for row in examples.ids]


def same(one, other):
    """Equal lists of arrays, or both None."""
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other))


def test_csv(small, tokenizer):
    data = load_dataset(TrainConfig(data=str(small)), tokenizer)
    assert data.labels == ["2", "10"]
    assert [len(examples) for examples in splits(data).values()] == [32, 4, 4]
    assert data.sha256 == hashlib.sha256(small.read_bytes()).hexdigest()
    assert data.summary == "small.csv: 32 / 4 / 4 for training / validation / test, 2 classes, 4 to 11 tokens"
    rows = np.concatenate([examples.rows for examples in splits(data).values()])
    assert sorted(rows.tolist()) == list(range(40))
    for examples in splits(data).values():
        assert told(examples, tokenizer) == [TEXTS[i] for i in examples.rows]
        assert [data.labels[y] for y in examples.labels] == [LABELS[i] for i in examples.rows]
        assert examples.labels.dtype.kind == "i"
        assert examples.types is None
        cls, sep = tokenizer.token_id("[CLS]"), tokenizer.token_id("[SEP]")
        assert all((row[0], row[-1]) == (cls, sep) for row in examples.ids)


def test_only_the_split_seed_moves_the_split(small, tokenizer):
    plain, other, moved = (
        load_dataset(TrainConfig(data=str(small), seed=seed), tokenizer).test.rows.tolist()
        for seed in ("0", "7", "7,split=1")
    )
    assert plain == other
    assert plain != moved


def test_second_texts_have_token_type_1(tmp_path, tokenizer):
    path = tmp_path / "pairs.csv"
    lines = [f"{i} a,b c {i},{'xy'[i % 2]}\n" for i in range(20)]
    path.write_text("text,text_b,label\n" + "".join(lines))
    data = load_dataset(TrainConfig(data=str(path)), tokenizer)
    for examples in splits(data).values():
        assert [types.tolist() for types in examples.types] == [[0, 0, 0, 0, 1, 1, 1, 1]] * len(examples)
        assert told(examples, tokenizer) == [f"{i} a b c {i}" for i in examples.rows]


def test_folder(tmp_path, tokenizer):
    for i in range(30):
        file = tmp_path / "texts" / "xyz"[i % 3] / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{i} {'xyz'[i % 3]}\n")
    data = load_dataset(TrainConfig(data=str(tmp_path / "texts")), tokenizer)
    assert data.labels == ["x", "y", "z"]
    assert data.summary.startswith("texts: 24 / 3 / 3 for training / validation / test, 3 classes, ")
    for examples in splits(data).values():
        assert [text[-1] for text in told(examples, tokenizer)] == [data.labels[y] for y in examples.labels]


def test_what_was_left_out_of_a_folder_is_said(tmp_path, tokenizer):
    for i in range(20):
        file = tmp_path / "texts" / "xy"[i % 2] / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{i}\n")
    (tmp_path / "texts" / "z").mkdir()
    summary = load_dataset(TrainConfig(data=str(tmp_path / "texts")), tokenizer).summary
    assert summary.endswith("3 tokens (left out: 1 class(es) without texts)")


def test_npz(tmp_path, tokenizer):
    x = np.arange(60.0)[:, None, None] + np.zeros((60, 4, 2))
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(60) % 2, group=np.arange(60) // 3)
    data = load_dataset(TrainConfig(data=str(tmp_path / "own.npz"), steps=2), tokenizer)
    assert data.labels == ["0", "1"]
    assert [len(examples) for examples in splits(data).values()] == [48, 6, 6]
    assert "2 classes; channel-1,channel-2 as levels, 2 steps, 6 tokens" in data.summary
    low, high = data.train.rows.min(), data.train.rows.max()
    for examples in splits(data).values():
        assert (examples.labels == examples.rows % 2).all()
        levels = np.clip((examples.rows - low) * 100 // (high - low), 0, 99)
        assert told(examples, tokenizer) == [f"{level} {level} {level} {level}" for level in levels]


def test_ranges_of_own_windows_do_not_see_validation_and_test(tmp_path, tokenizer):
    x = np.arange(12.0)[:, None, None] + np.zeros((12, 2, 1))
    x[8:] *= 1000
    names = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(12) % 2, split=np.array(names))
    data = load_dataset(TrainConfig(data=str(tmp_path / "own.npz"), steps=1), tokenizer)
    assert told(data.train, tokenizer) == ["0", "14", "28", "42", "57", "71", "85", "99"]
    assert told(data.test, tokenizer) == ["99", "99"]


def test_motion(tokenizer):
    data = load_dataset(TrainConfig(), tokenizer)
    assert [len(examples) for examples in splits(data).values()] == [3851, 752, 806]
    assert data.labels == ["walking", "walking upstairs", "walking downstairs", "sitting", "standing", "lying"]
    assert data.summary == (
        "motion: 3,851 / 752 / 806 for training / validation / test, 6 classes;"
        " acc-x,acc-y,acc-z as levels, 16 steps, 50 tokens"
    )
    unknown = tokenizer.token_id("[UNK]")
    assert all(unknown not in row for examples in splits(data).values() for row in examples.ids)
    table = read_table(TrainConfig())
    assert [data.labels[y] for y in data.test.labels] == [table.labels[i] for i in data.test.rows]
    assert {table.groups[i] for i in data.test.rows} == {"2", "4", "9", "10", "12"}


def test_name_of_the_data_decides_what_is_read(small, tmp_path):
    assert len(read_table(TrainConfig(data="motion")).labels) == 5409
    assert len(read_table(TrainConfig(data="motion-overlap")).labels) == 10_411
    assert len(read_table(TrainConfig(data=str(small))).labels) == 40
    with pytest.raises(InputError, match="no such file"):
        read_table(TrainConfig(data=str(tmp_path / "no.npz")))
    np.savez(tmp_path / "own.npz", x=np.zeros((4, 2, 1)), y=np.arange(4))
    (tmp_path / "own.npz").rename(tmp_path / "OWN.NPZ")
    assert len(read_table(TrainConfig(data=str(tmp_path / "OWN.NPZ"))).labels) == 4


def test_home_and_charset_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_bytes("text,label\ncafé,a\n".encode("cp1252"))
    assert read_table(TrainConfig(data="~/a.csv", charset="cp1252")).texts == ["café"]


@pytest.mark.parametrize(
    ("length", "words"), [(11, " 4 to 11 tokens"), (10, " 4 to 10 tokens (5 of 40 texts cut to --max-length 10)")]
)
def test_cut_texts_are_counted(small, tokenizer, length, words):
    for _ in range(2):  # the second time from the cache
        data = load_dataset(TrainConfig(data=str(small), max_length=length), tokenizer)
        assert data.summary.endswith(words)
        assert max(len(row) for examples in splits(data).values() for row in examples.ids) == length


def test_a_model_with_few_positions_cuts_too(small, tokenizer):
    data = load_dataset(TrainConfig(data=str(small)), tokenizer, positions=10)
    assert data.summary.endswith("(5 of 40 texts cut to the model's 10 positions)")
    assert load_dataset(TrainConfig(data=str(small)), tokenizer, positions=512).summary.endswith("4 to 11 tokens")


def test_texts_are_cut_at_the_end(small, tokenizer):
    data = load_dataset(TrainConfig(data=str(small), max_length=4), tokenizer)
    assert told(data.train, tokenizer) == [f"{i} a" for i in data.train.rows]


def test_second_time_comes_from_the_cache(cache, calls, tokenizer):
    pairs = [text[::-1] for text in TEXTS]
    first = tokenize(tokenizer, TEXTS, pairs, 8)
    again = tokenize(tokenizer, TEXTS, pairs, 8)
    assert len(calls) == 1
    assert len(list(cache.iterdir())) == 1
    ids, types, cut = tokenizer.encode(TEXTS, pairs, 8)
    for got in (first, again):
        assert [row.tolist() for row in got[0]] == ids
        assert [row.tolist() for row in got[1]] == types
        assert got[2] == cut > 0


def test_second_load_comes_from_the_cache(cache, calls, small, tokenizer):
    first, again = (load_dataset(TrainConfig(data=str(small)), tokenizer) for _ in range(2))
    assert len(calls) == 1
    assert first.summary == again.summary
    for one, other in zip(splits(first).values(), splits(again).values()):
        assert same(one.ids, other.ids)
        assert one.types is other.types is None


def test_one_text_alone(cache, tokenizer):
    for _ in range(2):
        ids, types, cut = tokenize(tokenizer, ["a b"], None, 8)
        assert [row.tolist() for row in ids] == tokenizer.encode(["a b"])[0]
        assert (types, cut) == (None, 0)


@pytest.mark.parametrize(
    ("texts", "pairs", "length"),
    [
        (["1 a", "2 b"], None, 4),
        (["2 b", "1 a"], None, 8),
        (["1 a2", " b"], None, 8),
        (["1 a", "2 b", "3"], None, 8),
        (["1 a"], ["2 b"], 8),
        (["1 a", "2 b"], ["1 a", "2 b"], 8),
    ],
)
def test_other_texts_pairs_and_lengths_are_not_mixed_up(cache, calls, tokenizer, texts, pairs, length):
    tokenize(tokenizer, ["1 a", "2 b"], None, 8)
    ids, types, _ = tokenize(tokenizer, texts, pairs, length)
    assert len(calls) == 2
    assert [row.tolist() for row in ids] == tokenizer.encode(texts, pairs, length)[0]
    assert (types is None) == (pairs is None)


def test_other_second_texts_are_not_mixed_up(cache, calls, tokenizer):
    tokenize(tokenizer, ["1 a"], ["2 b"], 8)
    ids, _, _ = tokenize(tokenizer, ["1 a"], ["3 c"], 8)
    assert len(calls) == 2
    assert [row.tolist() for row in ids] == tokenizer.encode(["1 a"], ["3 c"], 8)[0]


def test_another_vocabulary_is_not_mixed_up(cache, calls, tokenizer, tiny, tmp_path):
    words = (tiny / "vocab.txt").read_text().split()
    (tmp_path / "vocab.txt").write_text("\n".join([*words[:5], *words[:4:-1]]) + "\n")
    other = Tokenizer.load(tmp_path)
    first = tokenize(tokenizer, TEXTS, None, 8)[0]
    second = tokenize(other, TEXTS, None, 8)[0]
    assert len(calls) == 2
    assert not same(first, second)
    assert [row.tolist() for row in second] == other.encode(TEXTS, None, 8)[0]


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_cache_file_that_is_not_whole_is_made_again(cache, calls, tokenizer, left):
    first = tokenize(tokenizer, TEXTS, None, 8)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    again = tokenize(tokenizer, TEXTS, None, 8)
    assert len(calls) == 2
    assert same(first[0], again[0])
    assert again[2] == first[2]
    assert file.read_bytes() == whole


@pytest.mark.parametrize("below", ["", "cache", "cache/below"])
def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch, calls, tokenizer, below):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "file" / below))
    expected = tokenizer.encode(TEXTS, None, 8)[0]
    for _ in range(2):
        assert [row.tolist() for row in tokenize(tokenizer, TEXTS, None, 8)[0]] == expected
    assert len(calls) == 3
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize("error", [PermissionError("not yours"), SafetensorError("I/O error: No space left on device")])
def test_a_full_disk_does_no_harm(cache, monkeypatch, tokenizer, error):
    def save_file(tensors, path):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("minibert.data.streamed.save_file", save_file)
    ids, _, _ = tokenize(tokenizer, TEXTS, None, 8)
    assert [row.tolist() for row in ids] == tokenizer.encode(TEXTS, None, 8)[0]
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_does_no_harm(cache, tokenizer):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    ids, _, _ = tokenize(tokenizer, TEXTS, None, 8)
    assert [row.tolist() for row in ids] == tokenizer.encode(TEXTS, None, 8)[0]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("MINIBERT_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "minibert"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "minibert"


def test_tokenizer_and_embedding_must_belong_together(tokenizer):
    size = tokenizer.vocab_size
    for rows in (size, size + 1, size + 127):  # an embedding may be padded to a multiple of up to 128
        check_vocabulary(tokenizer, rows, "some-bert")
    for rows in (size - 1, size + 128):
        with pytest.raises(
            InputError, match=f"some-bert: the tokenizer has {size} words, the word embedding {rows} rows"
        ):
            check_vocabulary(tokenizer, rows, "some-bert")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"post_processor": None}, r"does not put \[CLS\], \[SEP\]"),
        ({"word": 10**6}, "has a word 1000000; the word embedding has 169 rows"),
    ],
)
def test_a_tokenizer_that_gives_what_no_network_takes(tokenizer, tmp_path, change, said):
    content = json.loads(tokenizer.to_json())
    if "word" in change:
        content["model"]["vocab"]["z"] = change["word"]
    else:
        content |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        check_vocabulary(Tokenizer.load(tmp_path), tokenizer.vocab_size, "some-bert")


def test_a_cache_that_holds_something_else_is_made_anew(small, tokenizer, cache):
    whole = load_dataset(TrainConfig(data=str(small)), tokenizer)
    (file,) = cache.glob("*.safetensors")
    for content in ({"ids": np.zeros(3, np.int32)}, {}):
        save_file(content, file)
        assert same(load_dataset(TrainConfig(data=str(small)), tokenizer).train.ids, whole.train.ids)


def test_second_texts_need_a_second_token_type(tiny, tmp_path):
    model = Bert(replace(TINY, type_vocab_size=1))
    save_pretrained(model, tmp_path / "one")
    shutil.copy(tiny / "vocab.txt", tmp_path / "one")
    path = tmp_path / "pairs.csv"
    path.write_text("text,text_b,label\n" + "".join(f"{i},{i},{'xy'[i % 2]}\n" for i in range(20)))
    with pytest.raises(InputError, match=r"has one token type; second texts \(text_b\) need"):
        settle(TrainConfig(data=str(path), model=str(tmp_path / "one")), str)


def test_classes_are_not_lost_between_table_and_splits(small, tokenizer):
    data = load_dataset(TrainConfig(data=str(small)), tokenizer)
    for examples in (data.val, data.test):
        assert Counter(examples.labels.tolist()) == {0: 2, 1: 2}


def test_examples_cut_the_training_split_alone(tokenizer):
    whole, few = (load_dataset(TrainConfig(examples=examples), tokenizer) for examples in ("all", "60"))
    assert len(few.train) == 60
    assert few.sha256 == whole.sha256
    for split in ("val", "test"):
        assert getattr(few, split).rows.tolist() == getattr(whole, split).rows.tolist()
    assert set(few.train.rows) < set(whole.train.rows)
    same, other, split = (load_dataset(TrainConfig(examples="60", seed=seed), tokenizer).train.rows.tolist()
                          for seed in ("1,subset=0", "0,subset=1", "0,split=1"))  # fmt: skip
    assert same == few.train.rows.tolist() == split  # the motion data bring their own split
    assert other != same
    people = few.train.groups
    assert people is not None
    at = dict(zip(whole.train.rows.tolist(), whole.train.groups))
    assert list(people) == [at[row] for row in few.train.rows.tolist()]

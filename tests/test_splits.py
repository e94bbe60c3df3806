"""minibert/data/splits.py: who trains, who chooses the epoch, who is read once."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from minibert.data.columns import Names
from minibert.data.splits import SPLITS, fewer, split_rows
from minibert.data.table import Table
from minibert.errors import InputError
from minibert.seeds import derive


def table(labels, groups=None, splits=None):
    return Table(name="t", labels=list(labels), sha256="", groups=groups, splits=splits)


def check_whole(parts, count):
    """Each row is in one split, and each split in the order of the rows."""
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert all((np.diff(rows) > 0).all() for rows in parts.values())


LABELS = list("aaaaaabbbc" * 20)  # 120 a, 60 b, 20 c


def test_a_tenth_of_each_class_to_validation_and_to_test():
    parts = split_rows(table(LABELS), 0)
    assert list(parts) == list(SPLITS)
    check_whole(parts, 200)
    counts = {name: Counter(LABELS[i] for i in rows) for name, rows in parts.items()}
    assert counts == {
        "train": {"a": 96, "b": 48, "c": 16},
        "val": {"a": 12, "b": 6, "c": 2},
        "test": {"a": 12, "b": 6, "c": 2},
    }


@pytest.mark.parametrize("groups", [None, [str(i // 5) for i in range(200)]])
def test_the_seed_alone_decides(groups):
    first, again, other = (split_rows(table(LABELS, groups), seed) for seed in (1, 1, 2))
    for name in SPLITS:
        assert first[name].tolist() == again[name].tolist()
        assert first[name].tolist() != other[name].tolist()


def test_rows_are_drawn_from_all_over_the_file():
    parts = split_rows(table("ab" * 500), 0)
    for name in ("val", "test"):
        assert parts[name].min() < 200
        assert parts[name].max() > 800


def test_small_classes():
    parts = split_rows(table("aaaa" + "bbb" + "cc" + "d"), 0)
    names = {name: sorted("aaaabbbccd"[i] for i in rows) for name, rows in parts.items()}
    assert names == {"train": list("aabccd"), "val": ["a", "b"], "test": ["a", "b"]}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_on_two_sides(seed):
    sizes = [1, 9, 4, 12, 3, 7, 7, 2, 10, 5, 6, 8, 11, 15]
    groups = [f"p{i}" for i, size in enumerate(sizes) for _ in range(size)]
    labels = ["ab"[i % 2] for i in range(100)]
    labels[0] = "b"
    parts = split_rows(table(labels, groups), seed)
    check_whole(parts, 100)
    people = [{groups[i] for i in rows} for rows in parts.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 14
    for name in ("val", "test"):
        assert 10 <= len(parts[name]) < 10 + 15  # a tenth, and at most the group that went over it


def test_groups_of_one_size_give_exactly_a_tenth():
    parts = split_rows(table("ab" * 100, [str(i // 5) for i in range(200)]), 0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 160, "val": 20, "test": 20}


def test_three_groups_are_enough_and_two_are_not():
    parts = split_rows(table("ab" * 15, [str(i // 10) for i in range(30)]), 0)
    assert [len(rows) for rows in parts.values()] == [10, 10, 10]
    with pytest.raises(InputError, match=r"no rows for val .*more rows or groups"):
        split_rows(table("ab" * 10, [str(i // 10) for i in range(20)]), 0)


def test_split_column_is_obeyed_with_its_aliases():
    names = ["train", "Training", " TRAIN ", "val", "validation", "Valid", "dev", "test", "TEST "]
    groups = ["one person"] * 9  # what the data say goes before what could be guessed
    parts = split_rows(table("ababababa", groups, names), 0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "train": [0, 1, 2],
        "val": [3, 4, 5, 6],
        "test": [7, 8],
    }


def test_one_class_only():
    with pytest.raises(InputError, match=r"t: one class only \('a'\); .*two or more"):
        split_rows(table("a" * 50), 0)


def test_too_few_rows_to_split():
    with pytest.raises(InputError, match=r"no rows for val \(4 train, 0 val, 0 test\)"):
        split_rows(table("aabb"), 0)


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_the_column_leaves_empty(name):
    names = [other for other in SPLITS if other != name] * 2
    with pytest.raises(InputError, match=f"no rows for {name} .*0 {name}"):
        split_rows(table("aabb", splits=names), 0)


def test_unknown_split_name():
    with pytest.raises(InputError, match="split is 'holdout' somewhere; allowed are train, val, test"):
        split_rows(table("abab", splits=["train", "val", "Holdout", "test"]), 0)


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_label_that_training_never_sees(name):
    labels, names = ["a", "b", "a", "a", "c"], ["train", "train", "val", "test", name]
    with pytest.raises(InputError, match=f"label 'c' is in {name} but not in train"):
        split_rows(table(labels, splits=names), 0)


def test_groups_that_take_a_label_away_from_training():
    with pytest.raises(InputError, match=r"but not in train; .*--seed split=N"):
        split_rows(table("abc" * 10, groups=["a", "b", "c"] * 10), 0)


def test_fewer_examples_are_among_more_and_each_class_has_its_share():
    labels = np.array(["a"] * 60 + ["b"] * 30 + ["c"] * 10)
    rows = np.arange(100)[::2]  # 30, 15 and 5 of them
    whole = {count: fewer(rows, labels, count, seed=0) for count in (3, 10, 25, 49, 50)}
    for smaller, larger in pairwise(whole.values()):
        assert set(smaller) < set(larger)
    for count, chosen in whole.items():
        assert len(chosen) == len(set(chosen)) == count
        assert (np.diff(chosen) > 0).all()  # in the order of the data
        for label, there in (("a", 30), ("b", 15), ("c", 5)):
            own = (labels[chosen] == label).sum()
            assert own >= 1
            assert abs(own - count * there / 50) <= 1, (count, label)
    assert list(whole[50]) == list(rows)
    assert list(fewer(rows, labels, 10, seed=1)) != list(whole[10])
    assert list(fewer(rows, labels, 10, seed=0)) == list(whole[10])


@pytest.mark.parametrize("count", [2, 51])
def test_more_examples_than_there_are_or_fewer_than_classes_are_refused(count):
    labels = np.array(["a", "b", "c"] * 20)
    with pytest.raises(InputError, match=rf"--examples {count}: the training split has 50 of 3 classes; .* 3 to 50"):
        fewer(np.arange(50), labels, count, seed=0)


def test_a_column_of_very_many_labels_is_refused():
    """A report's matrix of 100,000 classes would have 10,000,000,000 cells."""
    with pytest.raises(InputError, match="4,097 different labels in 8,194 rows; 4,096 are the most: is it the right"):
        split_rows(table([str(i // 2) for i in range(2 * 4097)]), 0)
    split_rows(table([str(i // 3) for i in range(3 * 4096)]), 0)


def before_codes(table, seed):
    """split_rows as it was when labels and groups were strings: the rows of old runs."""
    labels = np.array(table.labels)
    generator = np.random.default_rng(derive(seed, "split"))
    chosen = np.full(len(labels), "train", dtype="<U5")
    if table.groups is not None:
        groups = np.array(table.groups)
        order = generator.permutation(sorted(set(groups)))
        for name in ("test", "val"):
            while len(order) > 1 and (chosen == name).sum() < 0.1 * len(chosen):
                chosen[groups == order[0]] = name
                order = order[1:]
    else:
        for label in sorted(set(labels)):
            rows = generator.permutation(np.flatnonzero(labels == label))
            share = max(1, round(0.1 * len(rows))) if len(rows) >= 3 else 0
            chosen[rows[:share]] = "test"
            chosen[rows[share : 2 * share]] = "val"
    return {name: np.flatnonzero(chosen == name) for name in SPLITS}


def fewer_before(rows, labels, count, seed):
    classes = sorted(set(labels[rows]))
    generator = np.random.default_rng(derive(seed, "subset"))
    own = [generator.permutation(rows[labels[rows] == label]) for label in classes]
    place = np.concatenate([np.arange(len(part)) / len(part) for part in own])
    tie = generator.permutation(len(place))
    return np.sort(np.concatenate(own)[np.lexsort((tie, place))[:count]])


MIXED = ["10", "2", "é", "Z", "a b", "-1", "nan", "\U0001f600", "\uffff"]  # ordered otherwise as numbers, or in UTF-16


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_runs_that_had_strings(seed, grouped):
    generator = np.random.default_rng(seed)
    labels = [MIXED[min(i, 8)] for i in generator.geometric(0.3, 3000) - 1]
    groups = [f"{MIXED[i % 9]}{i}" for i in generator.integers(0, 400, 3000)] if grouped else None
    plain = table(labels, groups)
    coded = Table("t", Names.of(labels), "", groups=groups and Names.of(groups))
    expected = before_codes(plain, seed)
    for found in (split_rows(plain, seed), split_rows(coded, seed)):
        for name in SPLITS:
            assert found[name].tolist() == expected[name].tolist()
    few = fewer_before(expected["train"], np.array(labels), 100, seed)
    train = split_rows(plain, seed)["train"]
    assert fewer(train, Names.of(labels).codes, 100, seed).tolist() == few.tolist()
    assert fewer(train, np.array(labels), 100, seed).tolist() == few.tolist()

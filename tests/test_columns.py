"""minibert/data/columns.py: columns as numbers are the columns."""

import numpy as np
import pytest

from minibert.data import columns
from minibert.data.columns import Coder, Names, Part, Texts

GENERATOR = np.random.default_rng(0)
ROWS = [GENERATOR.integers(0, 300, n).astype(np.int32) for n in GENERATOR.integers(0, 9, 50)]


@pytest.fixture(params=[50, 7, 1])
def texts(request, monkeypatch):
    """ROWS in one part and in several, gathered in pieces of 20 texts."""
    monkeypatch.setattr(columns, "PIECE", 20)
    size = request.param
    return Texts([Part.of(ROWS[i : i + size]) for i in range(0, 50, size)], size)


def same(texts, rows):
    return len(texts) == len(rows) and all(np.array_equal(a, b) for a, b in zip(texts, rows))


ORDER = np.random.default_rng(1).permutation(50)[:33]


def test_texts_are_what_they_were_made_of(texts):
    assert same(texts, ROWS)
    assert same([texts[i] for i in (-1, -50, 49)], [ROWS[i] for i in (-1, -50, 49)])
    with pytest.raises(IndexError):
        texts[50]


def test_some_of_some_texts(texts):
    assert texts[ORDER].rows is ORDER
    assert same(texts[ORDER], [ROWS[i] for i in ORDER])
    assert same(texts[ORDER][5:30:2], [ROWS[i] for i in ORDER[5:30:2]])
    assert same(texts[::-1][ORDER], [ROWS[49 - i] for i in ORDER])


@pytest.mark.parametrize("rows", [None, ORDER, ORDER[:0]])
def test_figures_of_all_texts(texts, rows):
    some, expected = (texts, ROWS) if rows is None else (texts[rows], [ROWS[i] for i in rows])
    assert some.lengths.tolist() == [len(row) for row in expected]
    flat = np.concatenate([np.zeros(0, np.int32), *expected])
    assert np.concatenate([np.zeros(0, np.int32), *some.pieces()]).tolist() == flat.tolist()
    assert some.occurring().tolist() == np.unique(flat).tolist()


def test_numbers_stand_for_ids_wherever_texts_are_read(texts):
    numbers = np.random.default_rng(2).permutation(300)
    other, expected = texts[ORDER].renumbered(numbers), [numbers[ROWS[i]] for i in ORDER]
    assert same(other, expected)
    assert same(other[3:9], expected[3:9])
    assert np.concatenate(list(other.pieces())).tolist() == np.concatenate(expected).tolist()
    assert other.occurring().tolist() == np.unique(np.concatenate(expected)).tolist()


def test_a_list_becomes_texts_once():
    texts = Texts.of(ROWS)
    assert same(texts, ROWS)
    assert Texts.of(texts) is texts
    assert len(Texts.of([])) == 0


def test_names():
    values = ["b", "10", "a", "2", "a", "b", "ü", "B"]
    names = Names.of(values)
    assert list(names) == values
    assert (names[2], names[-1], len(names)) == ("a", "B", 8)
    assert names.names == sorted(set(values))
    assert list(names[np.array([7, 0])]) == ["B", "b"]
    assert list(names[1:3]) == ["10", "a"]
    assert Names.of(names) is names


@pytest.mark.parametrize("different", [1, 200, 300, 70_000])
def test_names_that_come_in_parts(different):
    values = [f"n{i % different}" for i in range(2 * different)]
    coder = Coder()
    for start in range(0, len(values), 997):
        coder.add(values[start : start + 997])
    assert list(coder.names()) == values
    assert coder.names().names == sorted(set(values))

"""minibert/data/batches.py: examples become padded tensors."""

import numpy as np
import pytest
import torch

from minibert.data import Examples
from minibert.data.batches import collate, cut

IDS = [[2, 7, 3], [2, 8, 9, 10, 3], [2, 3], [2, 11, 3], [2, 5, 5, 5, 5, 5, 5, 3]]


@pytest.fixture
def examples():
    return Examples([np.array(row, np.int32) for row in IDS], None, np.array([4, 3, 2, 1, 0]), np.arange(10, 15))


@pytest.fixture
def pairs(examples):
    types = [np.array([0] * (len(row) - 1) + [1], np.uint8) for row in IDS]
    return Examples(examples.ids, types, examples.labels, examples.rows)


def test_padded_to_the_longest_of_the_batch(examples):
    batch = collate(examples, [2, 1, 0])
    assert batch.input_ids.tolist() == [[2, 3, 0, 0, 0], [2, 8, 9, 10, 3], [2, 7, 3, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5, [True] * 3 + [False] * 2]
    assert batch.token_type_ids is None
    assert batch.labels.tolist() == [2, 3, 4]


def test_types_that_torch_wants(pairs):
    batch = collate(pairs, [0, 1])
    assert [t.dtype for t in batch] == [torch.int64, torch.bool, torch.int64, torch.int64]


def test_no_mask_where_nothing_is_padded(examples):
    assert collate(examples, [1]).attention_mask is None
    batch = collate(examples, [3, 0])
    assert batch.attention_mask is None
    assert batch.input_ids.tolist() == [[2, 11, 3], [2, 7, 3]]


def test_token_types_of_padding_are_0(pairs):
    assert collate(pairs, [0, 2, 1]).token_type_ids.tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_pad_id(examples):
    batch = collate(examples, [2, 0], pad_id=99)
    assert batch.input_ids.tolist() == [[2, 3, 99], [2, 7, 3]]
    assert batch.attention_mask.tolist() == [[True, True, False], [True] * 3]


def test_an_id_that_looks_like_padding_is_not_masked(examples):
    assert collate(examples, [4, 0], pad_id=5).attention_mask[0].all()


@pytest.mark.parametrize("order", [[4, 0, 3, 1, 2], np.array([4, 0, 3, 1, 2])])
def test_all_of_the_order_and_a_smaller_last_batch(examples, order):
    made = [collate(examples, rows, pad_id=1) for rows in cut(order, 2)]
    assert [batch.labels.tolist() for batch in made] == [[0, 4], [1, 3], [2]]
    assert [tuple(batch.input_ids.shape) for batch in made] == [(2, 8), (2, 5), (1, 2)]
    assert made[1].input_ids.tolist() == [[2, 11, 3, 1, 1], [2, 8, 9, 10, 3]]
    assert made[2].attention_mask is None


def test_a_batch_larger_than_the_data(examples):
    assert [len(collate(examples, rows).labels) for rows in cut(range(5), 64)] == [5]


def test_a_part_that_is_too_small_joins_the_one_before():
    assert [list(part) for part in cut(range(7), 3, least=2)] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [len(part) for part in cut(range(8), 3, least=2)] == [3, 3, 2]
    assert [len(part) for part in cut(range(1), 3, least=2)] == [1]  # there is none before


def test_order_may_be_a_part(examples):
    assert [collate(examples, rows).labels.tolist() for rows in cut([3], 2)] == [[1]]


def test_to_a_device_keeps_what_is_not_there(examples, pairs):
    device = torch.device("meta")
    moved = collate(pairs, [0, 1]).to(device)
    assert all(t.device == device for t in moved)
    moved = collate(examples, [0]).to(device)
    assert moved.input_ids.device == moved.labels.device == device
    assert moved.attention_mask is None
    assert moved.token_type_ids is None

"""Examples -> padded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.data import Examples


class Batch(NamedTuple):
    """The model's inputs and the labels. `attention_mask` is None where nothing was padded."""

    input_ids: Tensor  # (B, S)
    attention_mask: Tensor | None  # (B, S) bool
    token_type_ids: Tensor | None  # (B, S)
    labels: Tensor  # (B,)

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t if t is None else t.to(device, non_blocking=True) for t in self))


def collate(examples: Examples, rows: Sequence[int], pad_id: int = 0) -> Batch:
    """The examples at `rows`, padded on the right to the longest of them."""
    ids = [examples.ids[i] for i in rows]
    lengths = torch.tensor([len(row) for row in ids])
    shape = (len(ids), int(lengths.max()))
    input_ids = np.full(shape, pad_id, np.int64)
    types = None if examples.types is None else np.zeros(shape, np.int64)
    for place, i in enumerate(rows):
        input_ids[place, : len(ids[place])] = ids[place]
        if types is not None:
            types[place, : len(ids[place])] = examples.types[i]
    padded = bool((lengths < shape[1]).any())
    return Batch(
        torch.from_numpy(input_ids),
        torch.arange(shape[1]) < lengths[:, None] if padded else None,
        None if types is None else torch.from_numpy(types),
        torch.from_numpy(examples.labels[list(rows)]),
    )


def batches(examples: Examples, batch_size: int, order: Sequence[int], pad_id: int = 0) -> Iterator[Batch]:
    """All of `order`, `batch_size` at a time; the last batch may be smaller."""
    for start in range(0, len(order), batch_size):
        yield collate(examples, order[start : start + batch_size], pad_id)

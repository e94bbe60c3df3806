"""Examples -> tensors: padded, as every BERT takes them, or packed, so that nothing is computed for padding."""

from __future__ import annotations

from collections.abc import Sequence
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
        """The batch on a device. To a GPU from pinned memory, so that the host goes on while it is copied."""
        if device.type == "cuda":
            return Batch(*(t if t is None else t.pin_memory().to(device, non_blocking=True) for t in self))
        return Batch(*(t if t is None else t.to(device) for t in self))


def cut(order: Sequence[int], size: int, least: int = 1) -> list[Sequence[int]]:
    """All of `order`, `size` rows at a time; the last part may be smaller, but what is left of fewer than `least` rows
    joins the part before.
    """
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] < least:
        starts.pop()
    return [order[start:stop] for start, stop in zip(starts, [*starts[1:], len(order)])]


def collate(
    examples: Examples, rows: Sequence[int], pad_id: int = 0, multiple: int = 1, longest: int | None = None
) -> Batch:
    """The examples at `rows`, padded on the right to the longest of them; that rounded up to a multiple of `multiple`,
    but not beyond `longest`.
    """
    ids = [examples.ids[i] for i in rows]
    lengths = torch.tensor([len(row) for row in ids])
    most = int(lengths.max())
    shape = (len(ids), max(most, min(-(-most // multiple) * multiple, longest or 2**31)))
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
        torch.from_numpy(examples.labels[list(rows)].astype(np.int64)),
    )


class Run(NamedTuple):
    """Texts of one length that lie side by side in a packed batch."""

    texts: int
    length: int
    mask: Tensor | None  # (texts, 1, 1, length) bool, True where a token is real; None: everywhere


class PackedBatch(NamedTuple):
    """Texts end to end, by length: T tokens in all. `runs` and `first` say where everything lies."""

    input_ids: Tensor  # (T,)
    position_ids: Tensor  # (T,)
    token_type_ids: Tensor | None  # (T,)
    labels: Tensor  # (B,), in the order of the texts here
    runs: list[Run]
    first: Tensor  # (B,): the place of each text's first token, [CLS]


def pack(examples: Examples, rows: Sequence[int], pad_id: int = 0, multiple: int = 1) -> PackedBatch:
    """The examples at `rows`, the shortest first, each padded to a multiple of `multiple` tokens."""
    texts = sorted(((examples.ids[i], i) for i in rows), key=lambda text: len(text[0]))
    rows, real = [i for _, i in texts], np.array([len(ids) for ids, _ in texts])
    full = -(-real // multiple) * multiple
    place = np.concatenate([np.arange(n) for n in full])
    token = place < np.repeat(real, full)  # (T,): False where padded

    def laid_out(parts: list[np.ndarray], fill: int) -> Tensor:
        out = np.full(len(place), fill, np.int64)
        out[token] = np.concatenate(parts)
        return torch.from_numpy(out)

    lengths, starts, counts = np.unique(full, return_index=True, return_counts=True)
    runs = []
    for length, start, count in zip(lengths.tolist(), starts, counts.tolist()):
        mask = np.arange(length) < real[start : start + count, None]  # (texts, length)
        runs.append(Run(count, length, None if mask.all() else torch.from_numpy(mask[:, None, None])))
    return PackedBatch(
        laid_out([ids for ids, _ in texts], pad_id),
        torch.from_numpy(np.where(token, place, 0)),  # padding may reach beyond the last position
        None if examples.types is None else laid_out([examples.types[i] for i in rows], 0),
        torch.from_numpy(examples.labels[rows].astype(np.int64)),
        runs,
        torch.from_numpy(np.cumsum(full) - full),
    )

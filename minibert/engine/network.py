"""A model as a function of batches: padded, on any device, or packed, on the CPU. What trains and evaluates knows no
more of it than `Network`.

Both are exact. Of the last layer they compute what the head reads alone, which for BERT's pooler is one token a text:
14 % less to multiply in a 6x384 BERT. `half_weights` puts bf16 copies of the matrices, which the optimizer keeps up to
date, in place of a cast in every step. docs/log.md has what each saves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minibert.data import Examples
from minibert.data.batches import Batch, PackedBatch, Run, collate, pack
from minibert.engine.machine import Machine
from minibert.model import Attend, BertClassifier, Call, attend, call

PORTION = 4096  # tokens that are evaluated at a time
ROWS = 64  # texts that are evaluated at a time, where they are padded


class Network(Protocol):
    """A classifier as a function of batches that it makes itself."""

    model: BertClassifier  # the modules that compute; its matrices may be copies
    multiple: int  # what lengths are padded to

    def autocast(self) -> AbstractContextManager:
        """The number format that it computes in."""

    def batch(self, examples: Examples, rows: Sequence[int]) -> Any:
        """The examples at `rows` where it computes. `labels` (B,) are in the order of the outputs."""

    def portions(self, lengths: np.ndarray) -> list[slice]:
        """Where to cut texts of these lengths for evaluation."""

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the vectors (B, D) that the head read; of a head over tokens, their mean."""


class Padded:
    """The texts of a batch side by side, padded to the longest: as every BERT takes them.

    Args:
        multiple: what lengths are padded to, so that few shapes occur.
        call: how layers are called: as they are, or `call_again`.
    """

    def __init__(
        self, model: BertClassifier, machine: Machine, pad_id: int = 0, multiple: int = 1, call: Call = call
    ) -> None:
        self.model, self.pad_id, self.multiple, self.call = model, pad_id, multiple, call
        self.machine, self.autocast = machine, machine.autocast
        self.attend = attend if machine.device.type == "cpu" else attend_fused

    def batch(self, examples: Examples, rows: Sequence[int]) -> Batch:
        longest = self.model.config.max_position_embeddings
        return collate(examples, rows, self.pad_id, self.multiple, longest).to(self.machine.device)

    def portions(self, lengths: np.ndarray) -> list[slice]:
        return [slice(start, start + ROWS) for start in range(0, len(lengths), ROWS)]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x, mask = self.hidden(batch, first_token if self.model.config.pool == "cls" else None)
        vectors = self.model.bert.pooler(x, mask)
        return self.model.classify(x, vectors, mask), vectors

    def hidden(self, batch: Any, read: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
        """The last layer's hidden states, of the tokens that `read` picks, and the mask (B, 1, 1, S) bool or None."""
        bert = self.model.bert
        mask = None if batch.attention_mask is None else batch.attention_mask[:, None, None, :]
        x = bert.embeddings(batch.input_ids, batch.token_type_ids)
        return bert.encode(x, partial(self.attend, mask=mask), read, self.call), mask


class Packed:
    """The texts of a batch end to end, by length: next to nothing is computed for padding. Arguments as Padded's."""

    def __init__(
        self, model: BertClassifier, machine: Machine, pad_id: int = 0, multiple: int = 1, call: Call = call
    ) -> None:
        self.model, self.pad_id, self.multiple, self.call = model, pad_id, multiple, call
        self.autocast = machine.autocast

    def batch(self, examples: Examples, rows: Sequence[int]) -> PackedBatch:
        return pack(examples, rows, self.pad_id, self.multiple)

    def portions(self, lengths: np.ndarray) -> list[slice]:
        """After about PORTION tokens, so that what one layer makes of them stays in the processor's cache. 64 texts of
        16 to 256 tokens: 784 and 864 ms whole, 706 and 724 in portions.
        """
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // PORTION)) + 1
        return [slice(*ends) for ends in zip([0, *cuts], [*cuts, len(lengths)])]

    def __call__(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        bert, runs, pool = self.model.bert, batch.runs, self.model.config.pool
        read = (lambda x: x[batch.first]) if pool == "cls" else None
        x = bert.embeddings(batch.input_ids, batch.token_type_ids, batch.position_ids)  # (T, D)
        x, mask = bert.encode(x, partial(attend_runs, runs=runs), read, self.call), None
        if pool == "cls":
            vectors = bert.pooler(x[:, None])
        elif pool == "mean":
            vectors = torch.cat([bert.pooler(part, run.mask) for run, part in zip(runs, texts_of(x, runs))])
        else:
            x, mask = unpack(x, runs)  # one batch for the head: it may have BatchNorm
            vectors = bert.pooler(x, mask)
        return self.model.classify(x, vectors, mask), vectors


def network_for(
    model: BertClassifier, machine: Machine, pad_id: int = 0, multiple: int = 1, call: Call = call
) -> Network:
    """The network that suits the machine."""
    return (Packed if machine.device.type == "cpu" else Padded)(model, machine, pad_id, multiple, call)


def call_again(layer: nn.Module, *inputs: Any) -> Tensor:
    """A layer's output; what its backward pass needs is computed again then, from the inputs, and not kept till then
    (Chen et al. 2016, arXiv:1604.06174). Under the same random numbers, so that dropout draws the same masks.
    """
    return checkpoint(layer, *inputs, use_reentrant=False)


def length_multiple(splits: Sequence[Examples]) -> int:
    """What texts are padded to. torch's bf16 kernels are made anew for every new shape, a millisecond and a third of a
    megabyte each, and so are CUDA graphs: where texts have many lengths, a few more tokens cost less.
    """
    return 1 if len(set().union(*(np.unique(split.ids.lengths).tolist() for split in splits))) <= 16 else 8


def first_token(x: Tensor) -> Tensor:
    """(B, S, D) -> (B, 1, D), [CLS]."""
    return x[:, :1]


def texts_of(x: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """Packed tokens (T, D) -> of each run (texts, length, D): views."""
    parts = x.split([run.texts * run.length for run in runs])
    return [part.unflatten(0, (run.texts, -1)) for run, part in zip(runs, parts)]


def unpack(x: Tensor, runs: Sequence[Run]) -> tuple[Tensor, Tensor | None]:
    """Packed tokens (T, D) -> (B, S, D) in the order of the labels, zeros behind the shorter texts, and their mask
    (B, 1, 1, S) bool, None where all tokens are real.
    """
    longest = max(run.length for run in runs)
    if len(runs) == 1:
        return x.unflatten(0, (-1, longest)), runs[0].mask
    masks = [
        x.new_ones(run.texts, 1, 1, run.length, dtype=torch.bool) if run.mask is None else run.mask for run in runs
    ]
    tokens = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in texts_of(x, runs)]
    return torch.cat(tokens), torch.cat([F.pad(mask, (0, longest - mask.shape[-1])) for mask in masks])


def attend_fused(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, mask: Tensor | None = None) -> Tensor:
    """`attend` by torch's fused kernels, which on a GPU also draw dropout; without a mask, the fastest of them."""
    return F.scaled_dot_product_attention(q, k, v, mask, dropout.p if dropout.training else 0.0)


def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, runs: Sequence[Run], attend: Attend = attend
) -> Tensor:
    """`attend` for the runs of a packed batch: q (N, T, H), or (N, B, H) of one token a text; k, v (N, T, H) -> as q.

    Each text by itself, so that the work is that of the real lengths squared.
    """
    sizes = [run.texts * run.length for run in runs]
    asked = sizes if q.shape[-2] == k.shape[-2] else [run.texts for run in runs]
    contexts = []
    for run, *part in zip(runs, q.split(asked, dim=-2), k.split(sizes, dim=-2), v.split(sizes, dim=-2)):
        part = (t.unflatten(-2, (run.texts, -1)) for t in part)  # (N, texts, length or 1, H)
        # (1, texts, 1, length): with three dimensions torch's fused attention would not take it, at twice the time
        seen = None if run.mask is None else run.mask.transpose(0, 1)
        contexts.append(attend(*part, dropout, mask=seen).flatten(-3, -2))
    return torch.cat(contexts, dim=-2)


def twin(model: BertClassifier, instead: dict[Any, Any]) -> BertClassifier:
    """The same modules with the very same tensors, but for those modules and tensors that `instead` has others for."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared | {id(old): new for old, new in instead.items()})


def half_weights(model: BertClassifier, machine: Machine) -> dict[str, nn.Parameter]:
    """{name of a parameter: its copy in bfloat16}: the matrices that autocast would cast in each step. Else none."""
    if machine.name != "bf16":
        return {}
    matrices = [name + ".weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights = {name: model.get_parameter(name) for name in matrices}
    return {name: nn.Parameter(w.detach().bfloat16()) for name, w in weights.items() if w.requires_grad}


def with_copies(model: BertClassifier, half: dict[str, nn.Parameter]) -> BertClassifier:
    """A twin of `model` whose matrices are the copies."""
    return twin(model, {model.get_parameter(name): copied for name, copied in half.items()})

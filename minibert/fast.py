"""What makes BERT fast on a CPU. Every idea is exact, or draws from the same distribution, and is tested against
model.py as it stands; docs/log.md has what each saves.

1. `BitDropout`: dropout masks of 15 random bits an element. torch draws them one number at a time.
2. `pooled` of a packed batch: next to no padding is computed, and of the last layer only what the head reads.
3. `half_weights`: bf16 copies of the matrices that the optimizer keeps up to date, in place of a cast in every step.

Two more stand in training/: rows.py (only the words that occur) and optimizer.py (one pass over the weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from minibert.data import Examples
from minibert.data.batches import PackedBatch, Run
from minibert.model import BertClassifier, attend
from minibert.precision import Precision

ENABLED = True  # False: train by model.py as it stands, for comparison
PORTION = 4096  # tokens that are evaluated at a time
ONE = 0x3F80  # the bits of 1.0 in bfloat16


class BitDropout(nn.Module):
    """nn.Dropout with a fast generator, and the rate rounded to a multiple of 2^-15.

    The generator is seeded from torch's at every call, so torch.manual_seed rules it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.kept = round((1 - p) * 2**15)  # of 2^15 values

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x.shape).to(x.dtype) * (2**15 / self.kept) if self.training and self.p else x

    def mask(self, shape: Sequence[int]) -> Tensor:
        """1 where kept, else 0, in bfloat16. In integers: bools are slow to make and to multiply by."""
        count = math.prod(shape)
        generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
        bits = generator.integers(2**64, size=-(-count // 4), dtype=np.uint64)
        mask = torch.from_numpy(bits.view(np.int16)[:count]).bitwise_and_(0x7FFF).sub_(self.kept)
        mask = mask.bitwise_right_shift_(15).bitwise_and_(ONE)  # the sign, in every bit; then 1.0 or 0.0
        return mask.view(torch.bfloat16).view(shape)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | list[Run] | None, dropout: nn.Module) -> Tensor:
    """`attend` that also takes the runs of a packed batch for a mask: q (N, T, H), or (N, B, H) of one token a text,
    k and v (N, T, H) -> as q. Each text by itself, so that the work is that of the real lengths squared.
    """
    if not isinstance(mask, list):
        return attend(q, k, v, mask, dropout)
    sizes = [run.texts * run.length for run in mask]
    asked = sizes if q.shape[-2] == k.shape[-2] else [run.texts for run in mask]
    contexts = []
    for run, *part in zip(mask, q.split(asked, dim=-2), k.split(sizes, dim=-2), v.split(sizes, dim=-2)):
        part = (t.unflatten(-2, (run.texts, -1)) for t in part)  # (N, texts, length or 1, H)
        # (1, texts, 1, length): with three dimensions torch's fused attention would not take it, at twice the time
        seen = None if run.mask is None else run.mask.transpose(0, 1)
        contexts.append(attend(*part, seen, dropout).flatten(-3, -2))
    return torch.cat(contexts, dim=-2)


def length_multiple(splits: Sequence[Examples]) -> int:
    """What texts are padded to when packed. torch's bf16 kernels are made anew for every new shape, a millisecond and a
    third of a megabyte each: where texts have many lengths, a few more tokens cost less.
    """
    return 1 if len({len(row) for split in splits for row in split.ids}) <= 16 else 8


def portions(lengths: np.ndarray) -> list[slice]:
    """Where to cut texts of these lengths for evaluation: after about PORTION tokens, so that what one layer makes of
    them stays in the processor's cache. 64 texts of 16 to 256 tokens: 784 and 864 ms whole, 706 and 724 in portions.
    """
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // PORTION)) + 1
    return [slice(*ends) for ends in zip([0, *cuts], [*cuts, len(lengths)])]


def speed_up(model: BertClassifier) -> BertClassifier:
    """Give a model on the CPU fast dropout and the attention that takes packed batches; padded ones go as before."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, BitDropout(child.p).train(child.training))
    for layer in model.bert.layers:
        layer.attention.attend = attend_packed
    return model


def place(model: BertClassifier, device: torch.device) -> BertClassifier:
    """Put a model on its device; on the CPU, sped up."""
    model.to(device)
    return speed_up(model) if device.type == "cpu" and ENABLED else model


def takes_packed(model: BertClassifier) -> bool:
    return model.bert.layers[0].attention.attend is attend_packed


def pooled(model: BertClassifier, batch: PackedBatch) -> Tensor:
    """What the head reads of each text, (B, D), from a model that `speed_up` has seen."""
    bert, runs, cls = model.bert, batch.runs, model.config.pool == "cls"
    x = bert.embeddings(batch.input_ids, batch.token_type_ids, batch.position_ids)  # (T, D)
    for layer in bert.layers[:-1]:
        x = layer(x, runs)
    # BERT's head reads [CLS] alone: one token a text of the last layer, 14 % less to multiply in a 6x384 BERT.
    x = bert.norm(bert.layers[-1](x, runs, batch.first if cls else None))  # (B or T, D)
    if cls:
        return bert.pooler(x[:, None])
    parts = x.split([run.texts * run.length for run in runs])
    return torch.cat([bert.pooler(part.unflatten(0, (run.texts, -1)), run.mask) for run, part in zip(runs, parts)])


class Packed(nn.Module):
    """A classifier as a function of packed batches."""

    def __init__(self, model: BertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        vectors = pooled(self.model, batch)
        return self.model.head(vectors), vectors


def classify(model: BertClassifier, batch: PackedBatch, half: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """What model.forward gives for the same texts, (B, C), and what its head read, (B, D), with the matrices of `half`
    in place of the model's.
    """
    packed = Packed(model)
    if not half:
        return packed(batch)
    return functional_call(packed, {f"model.{name}": weight for name, weight in half.items()}, (batch,))


def half_weights(model: BertClassifier, precision: Precision) -> dict[str, Tensor]:
    """{name of a parameter: its copy in bfloat16}: the matrices that autocast would cast in each step. Else none."""
    if precision.name != "bf16":
        return {}
    matrices = [name + ".weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights = {name: model.get_parameter(name) for name in matrices}
    return {name: w.detach().bfloat16().requires_grad_() for name, w in weights.items() if w.requires_grad}

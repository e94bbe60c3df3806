"""Does a network answer by its input? A run is `learning`, `collapsed` or `not yet` either.

A classifier that says the same whatever it reads has an accuracy and a loss like any other; what tells it apart is the
best constant answer beside it, and whether anything inside still differs from input to input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LEARNING, COLLAPSED, NOT_YET = "learning", "collapsed", "not yet"

SURE = 2.0  # standard errors: by chance in 1 of 44 epochs
FEW = 8  # examples, below which a standard error taken from them means nothing
LOSS_MARGIN = 0.02  # of the class entropy: a random start can lie below it by chance, but hardly by more than 1 %
LEVEL = 0.001  # of the class entropy: where the classes are even, what is left of a blind network's spread wobbles so
ONE_ANSWER = 0.99  # share of the commonest prediction
# Measured on the motion data. Random starts, 2x64 to 12x256, head on [CLS]: 1 - cosine from 7e-6 (layerscale:0.1) to
# 2e-1, spread from 0.8 % of the offset up; one at 7e-5 and 0.8 % learned within 100 steps. Collapsed by lr 1e-3 or
# 1e-2: 1 - cosine from 3e-5 down to 1e-16, spread at most 0.15 % of the offset.
BLIND = 1 - 5e-6  # cosine; above it the vectors alone say enough
ALIKE = 1 - 1e-4  # cosine; below it the network does see its input, whatever its head makes of that
FLAT = 0.002  # spread of the logits in units of their offset; with vectors ALIKE
SHUT = 0.03  # largest gate: ReZero starts at 0, and such a network has not collapsed, it has not opened


@dataclass(frozen=True)
class Verdict:
    """What `judge` found. None: not defined for so few examples.

    Attributes:
        name: "learning", "collapsed" or "not yet".
        prediction_entropy: of the histogram of the predicted classes, nats.
        top_share: share of the class that is predicted most, 0 to 1.
        class_entropy: of the true classes' frequencies, nats: the loss of the best constant answer.
        cosine: mean over all pairs of different examples, of the vectors that the head reads.
        spread: standard deviation of the logits over the examples, mean over the classes.
        offset: standard deviation over the classes of the mean logits.
    """

    name: str
    prediction_entropy: float
    top_share: float
    class_entropy: float
    cosine: float | None
    spread: float
    offset: float


def judge(logits: Tensor, pooled: Tensor | Directions, labels: np.ndarray, shut: bool = False) -> Verdict:
    """
    `learning`: the loss lies below that of the best constant answer, or the accuracy above the commonest class, by more
    than chance gives. `collapsed`: not so, all inputs get one answer, and the network does not see which is which.
    `not yet`: all else, among it a split of one example or one class, which cannot tell.

    Args:
        logits: (n, C); pooled: (n, D), what the head read, or their directions; labels: (n,) in 0 .. C - 1.
        shut: the network's branches are gated and have not opened (see `is_shut`).
    """
    logits, target = logits.double(), torch.from_numpy(labels)
    n, classes = logits.shape
    guess = logits.argmax(dim=1)
    predicted = torch.bincount(guess, minlength=classes).double() / n
    true = torch.bincount(target, minlength=classes).double() / n
    class_entropy, majority = entropy(true), true.max().item()
    # Logits may move together without a word: what softmax does not see is taken out.
    centred = logits - logits.mean(dim=1, keepdim=True)
    spread, offset = centred.std(dim=0, correction=0).mean().item(), centred.mean(dim=0).std(correction=0).item()
    cosine = mean_cosine(pooled)

    # Example by example against the best constant answer, so that what both find hard cancels.
    excess = F.cross_entropy(logits, target, reduction="none") + true.log()[target]
    error = excess.std().item() / math.sqrt(n) if n >= FEW else math.inf
    gain = -excess.mean().item()
    ahead = gain > max(SURE * error, LOSS_MARGIN * class_entropy)
    accuracy = (guess == target).double().mean().item()
    above = accuracy - majority > SURE * math.sqrt(majority * (1 - majority) / n)

    blind = cosine is not None and (cosine > BLIND or (cosine > ALIKE and spread < FLAT * offset))
    constant = predicted.max().item() >= ONE_ANSWER and gain <= LEVEL * class_entropy
    name = NOT_YET
    if ahead or above:
        name = LEARNING
    elif class_entropy > 0 and constant and blind and not shut:
        name = COLLAPSED
    return Verdict(name, entropy(predicted), predicted.max().item(), class_entropy, cosine, spread, offset)


def entropy(shares: Tensor) -> float:
    """Of shares that sum to 1, in nats."""
    return torch.special.entr(shares).sum().item()


class Directions(NamedTuple):
    """What the mean cosine of n vectors needs of them: of very many, nobody has to hold more."""

    n: int
    total: Tensor  # (D,), the sum of the unit vectors
    squares: Tensor  # the sum of their squares: n, but for vectors of zeros

    @classmethod
    def of(cls, vectors: Tensor) -> Directions:
        unit = F.normalize(vectors.double(), dim=1)
        return cls(len(vectors), unit.sum(dim=0), unit.square().sum())

    def __add__(self, other: Any) -> Any:
        return Directions(*(one + another for one, another in zip(self, other)))


def mean_cosine(vectors: Tensor | Directions) -> float | None:
    """(n, D) -> the mean cosine of the n (n - 1) pairs, from one sum: |sum u|^2 = sum |u|^2 + all pairs."""
    n, total, squares = vectors if isinstance(vectors, Directions) else Directions.of(vectors)
    return ((total.square().sum() - squares) / (n * (n - 1))).item() if n > 1 else None


def is_shut(network: torch.nn.Module) -> bool:
    """Whether there are gates (ReZero, LayerScale), and all of them almost shut."""
    gates = [gate.abs().max().item() for name, gate in network.named_parameters() if "_gate." in name]
    return bool(gates) and max(gates) < SHUT


def streak(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The steps at the ends of the last epochs, as far back as all were collapsed: its first is since when."""
    steps: list[int] = []
    for row in reversed(rows):
        if row.get("verdict", {}).get("name") != COLLAPSED:
            break
        steps.insert(0, row["step"])
    return steps


def in_words(rows: Sequence[dict[str, Any]]) -> str:
    """The last epoch's verdict, for the table."""
    steps = streak(rows)
    return f"{COLLAPSED} since step {steps[0]:,}" if steps else rows[-1]["verdict"]["name"]


def advice(rows: Sequence[dict[str, Any]], bias_correction: bool) -> list[str]:
    """Lines for the end of a run that does not learn: what usually helps, and who found it. None for one that does."""
    last = rows[-1]["verdict"]
    if last["name"] == LEARNING or not last["class_entropy"]:
        return []
    if last["name"] == COLLAPSED:
        lines = [f"{in_words(rows)}: one answer for every input. What usually helps:"]
        rate = "a lower --lr, a longer --warmup"
    else:
        lines = ["not yet better than one answer for every input. What usually helps:"]
        rate = "more --epochs, another --lr, a longer --warmup"
    return [
        *lines,
        f"  {rate}{'' if bias_correction else ', --bias-correction'} (Mosbach 2021, arXiv:2006.04884)",
        "  more examples a step, --batch-size or --accumulate: 16 or 32 were BERT's (Devlin 2018, arXiv:1810.04805)",
        "  random starts: --init random:deep (Wang 2022, arXiv:2203.00555), layerscale:0.1 (Touvron 2021,"
        " arXiv:2103.17239), rezero (Bachlechner 2020, arXiv:2003.04887)",
        "  pretrained: --init reinit:K, K from 1 (Zhang 2021, arXiv:2006.05987)",
    ]

"""One optimizer step, for any device, number format and number of processes.

Nothing in it reads a number from the device or branches on one: losses, right answers and skipped steps add up in
`Sums` and are read when somebody wants to print them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.engine.network import Network
from minibert.engine.optimizer import LARGEST, AdamW, LossScaler

Loss = Callable[[Network, Any], tuple[Tensor, Tensor]]  # a batch -> the sum of its losses, how many answers were right
Reduce = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # the sum of each tensor over all processes


def classification(
    network: Network, batch: Any, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of the logits, added up over the examples, and how many answers were right.

    Args:
        weight, label_smoothing: as torch's cross_entropy takes them; (C,), and a number from 0 to 1.
    """
    logits = network(batch)[0].float()
    right = (logits.detach().argmax(dim=1) == batch.labels).sum()
    return F.cross_entropy(logits, batch.labels, weight, reduction="sum", label_smoothing=label_smoothing), right


def balanced(labels: Tensor, classes: int) -> Tensor:
    """(C,) weights n / (C n_c), by which all classes count the same (King and Zeng 2001; scikit-learn's "balanced").

    Their mean over all n examples is 1, so a step goes on dividing by its number of examples. torch's mean divides by
    the batch's sum of weights: in a batch of one class, or of one example, nothing is left of them then.
    """
    counts = torch.bincount(labels, minlength=classes).double()
    return (len(labels) / (classes * counts)).float()


def alone(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The sum over one process."""
    return tensors


class Seen(NamedTuple):
    """`Sums`, on the host: of all steps since it was cleared."""

    loss: float  # mean a counted thing: an example, or a masked word
    accuracy: float
    count: int
    skipped: int  # steps whose gradients were not finite


class Sums:
    """What steps see, added up where they run; of several processes, each one's share."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, right: Tensor, count: Tensor) -> None:
        """Of each batch. One whose loss is not finite is left out: it would hide all others."""
        seen = torch.stack([loss.double(), right.double(), count.double()])
        self.total[:3] += torch.where(loss.isfinite(), seen, 0.0)

    def skip(self, finite: Tensor) -> None:
        """Of each step, whether its gradients were finite."""
        self.total[3].add_(~finite)

    def over(self, reduce: Reduce) -> Tensor:
        """`total` over all processes. A step that one of them skips, all skip."""
        return torch.cat([*reduce([self.total[:3].clone()]), self.total[3:]])

    def read(self, total: Tensor | None = None) -> Seen:
        loss, right, count, skipped = (self.total if total is None else total).tolist()
        return Seen(loss / max(1, count), right / max(1, count), int(count), int(skipped))

    def clear(self) -> None:
        self.total.zero_()


@dataclass
class State:
    """All that a step uses, and changes."""

    network: Network
    optimizer: AdamW
    scaler: LossScaler
    sums: Sums
    numbers: Tensor  # (steps, 2 or 4, 5): those of every update, see AdamW.numbers
    clip: float  # largest global norm of the gradient; 0: any
    loss: Loss = classification


def step(state: State, batches: Sequence[Any], count: Tensor, reduce: Reduce = alone) -> None:
    """The mean loss over the `count` examples of all batches and processes, its gradient, and one update with it."""
    state.optimizer.zero_grad()
    for batch in batches:
        accumulate(state, batch, count)
    update(state, reduce)


def accumulate(state: State, batch: Any, count: Tensor) -> None:
    """Add the gradient of one batch. A sum divided by the count of the whole step: however that is cut into batches."""
    with state.network.autocast():
        loss, right = state.loss(state.network, batch)
    (loss * (state.scaler.scale / count)).backward()
    state.sums.add(loss.detach(), right, torch.full_like(count, len(batch.labels)))


@torch.no_grad()
def update(state: State, reduce: Reduce = alone) -> None:
    """Clip by the global norm and update. Gradients that are not finite leave weights, moments and schedule alone."""
    optimizer, scaler = state.optimizer, state.scaler
    gradients = reduce(optimizer.gradients())
    norm = scaler.unscaled(optimizer.norm(gradients))
    clipping = (state.clip / (norm + 1e-6)).clamp(max=1.0) if state.clip else torch.ones_like(norm)
    finite = norm * clipping < LARGEST  # not so of infinity, whose clipping is 0, nor of NaN
    state.sums.skip(finite)
    numbers = state.numbers.index_select(0, optimizer.steps.view(1))[0]
    optimizer.step(numbers, scaler.unscaled(clipping), finite, gradients)
    scaler.update(finite)

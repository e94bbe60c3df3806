"""AdamW, loss scaling and the learning-rate schedule.

What changes from step to step (steps taken, rate, clipping, loss scale) is a tensor on the device: no step waits for a
number to reach the host, and a step can be recorded as a CUDA graph.
"""

from __future__ import annotations

import getpass
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

# CPU: elements that are updated at a time. The tensors of a piece stay in the processor's cache from one line of the
# update to the next: 44 ms -> 20 ms a step for the 11 million weights of a 6x384 encoder.
PIECE = 1 << 17

# CPU: parameters of fewer elements, biases above all, are updated joined: calling the update takes longer than their
# work. Elsewhere all are: a launch costs as much as a million elements.
JOINED_BELOW = 1 << 13

# Compiled, the update is one pass over memory, but compiling takes seconds, about what it saves over this many updates
# of one element. Shorter runs stay as they are.
WORTH_COMPILING = 5e9

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch's compiler keeps what it made

PART = 1 << 10  # elements whose squares are summed in float32, see norm_of_parts

Norm = Callable[[Tensor], Tensor]

# The largest clipped norm of a gradient whose squares still are float32 numbers.
LARGEST = math.sqrt(torch.finfo(torch.float32).max)


def update(
    w: Tensor, grad: Tensor, m: Tensor, v: Tensor, half: Tensor | None, numbers: Tensor, factor: Tensor, finite: Tensor
) -> None:
    """AdamW for some elements: weights, gradient, first and second moment, in place; `half` is the weights in bf16.

    `numbers` are 1 - beta1, 1 - beta2, what decay leaves of a weight, the rate, and eps: as `AdamW.numbers` has them,
    or 0, 0, 1, 0, eps where there is to be no update. `factor` is that on the gradient. If not `finite`, the gradient
    is not looked at: 0 times infinity would not be 0.
    """
    rest1, rest2, kept, rate, eps = numbers.unbind()
    g = torch.where(finite, grad.to(w.dtype) * factor, 0.0)
    m.lerp_(g, rest1)
    v.lerp_(g * g, rest2)
    w.mul_(kept).sub_(m / (v.sqrt() + eps) * rate)
    if half is not None:
        half.copy_(w)


def norm_of(grad: Tensor) -> Tensor:
    """Of a row of elements, summed in float64: the square of a finite float32 number need not be one."""
    return torch.linalg.vector_norm(grad, dtype=torch.float64)


def norm_of_parts(parts: Tensor) -> Tensor:
    """Of elements (parts, PART): squares are summed in float32 within a part, divided by its largest, then in float64.

    For bf16 on a CPU: AVX512 has no quick way from bf16 to float64, and this takes a third of `norm_of`'s time.
    """
    parts = parts.float()
    largest = parts.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    norms = (parts / largest).square().sum(dim=1).sqrt().double() * largest[:, 0]
    return torch.linalg.vector_norm(norms)


def norm_by_parts(grad: Tensor, of_row: Norm = norm_of, of_parts: Norm = norm_of_parts) -> Tensor:
    """`norm_of`, split between two compiled functions: bf16 goes by parts, all else as one row."""
    if grad.dtype != torch.bfloat16:
        return of_row(grad)
    count = grad.numel() // PART
    if count < 2:  # a dimension of 1 would be compiled anew
        return norm_of(grad)
    norm, rest = of_parts(grad[: count * PART].view(count, PART)), grad[count * PART :]
    return torch.hypot(norm, norm_of(rest)) if len(rest) else norm


def join(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in one row: of a single tensor a view, of more a copy."""
    return torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)


@dataclass
class Group:
    """Parameters that are updated as one row of elements; each of them is a view of `w`, each copy of `half`.

    Attributes:
        leaves: where autograd leaves their gradients: the parameters, or their copies.
        late: they are among those that `AdamW.hold` holds.
        w, exp_avg, exp_avg_sq: weights and moments, (elements,); half: the weights in bf16, or None.
    """

    names: list[str]
    leaves: list[Tensor]
    decays: bool
    late: bool
    w: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    half: Tensor | None

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """A row of elements -> the parts of it that belong to each parameter, in its shape: views."""
        parts = flat.split([leaf.numel() for leaf in self.leaves])
        return [part.view(leaf.shape) for part, leaf in zip(parts, self.leaves)]

    def gradient(self) -> Tensor:
        """(elements,), zeros where there is none; in bfloat16 if it arrived at copies."""
        return join([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves])


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).

    Decay applies to tensors of two dimensions and more: matrices and embeddings, never biases or LayerNorm.

    Args:
        named_parameters: as `model.named_parameters()` gives them, on their device. Their memory moves into rows that
            are updated as one.
        bias_correction: False leaves the moments as they are, as BERT's first code did: the first step is then
            (1 - beta1) / sqrt(1 - beta2) = 3.2 times as large (Mosbach et al. 2021, arXiv:2006.04884).
        half: {name: copy in bf16} of parameters whose gradient arrives at the copy, which follows the parameter.
        late: names of parameters that can be held, frozen until some step.

    Attributes:
        steps: how many were taken, int64.
        held: whether the late ones are frozen now. late_from: `steps` when their training began, int64; -1: not yet.
        shrinkage: the product of all (1 - rate * weight_decay) so far: what decay alone makes of a weight, of a late
            one where there are such, float64.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        half: dict[str, Tensor] | None = None,
        late: Collection[str] = (),
    ) -> None:
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.half, self.late, self.held = half or {}, frozenset(late) & self.parameters.keys(), False
        self.betas, self.eps, self.weight_decay, self.bias_correction = betas, eps, weight_decay, bias_correction
        self.device = next(iter(self.parameters.values())).device
        self.steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.late_from = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.shrinkage = torch.ones((), dtype=torch.float64, device=self.device)
        self.idle = torch.tensor([0.0, 0.0, 1.0, 0.0, eps], dtype=torch.float64, device=self.device)
        self.update, self.norm_of, self.compiled = update, norm_of, False
        self.groups = self._groups()
        self.exp_avg, self.exp_avg_sq = ({} for _ in range(2))
        for group in self.groups:
            self.exp_avg |= zip(group.names, group.pieces(group.exp_avg))
            self.exp_avg_sq |= zip(group.names, group.pieces(group.exp_avg_sq))

    def decays(self, name: str) -> bool:
        return self.parameters[name].dim() >= 2

    @torch.no_grad()
    def _groups(self) -> list[Group]:
        alone = JOINED_BELOW if self.device.type == "cpu" else math.inf
        alike: dict[object, list[str]] = {}
        for name, p in self.parameters.items():
            kind = name if p.numel() >= alone else (self.decays(name), name in self.half, name in self.late, p.dtype)
            alike.setdefault(kind, []).append(name)
        groups = []
        for names in alike.values():
            owners = [self.parameters[name] for name in names]
            w = join(owners).detach()
            moments = [torch.zeros_like(w) for _ in range(2)]
            copies = [self.half[name] for name in names if name in self.half]
            half = join(copies).detach() if copies else None
            group = Group(names, copies or owners, self.decays(names[0]), names[0] in self.late, w, *moments, half)
            for tensors, flat in ((owners, w), (copies, half)):
                if len(tensors) > 1:
                    for tensor, piece in zip(tensors, group.pieces(flat)):
                        tensor.data = piece
            groups.append(group)
        return groups

    def compile(self) -> str | None:
        """Fuse update and norm into one pass over memory each. Returns why not, where no compiler is there or works."""
        # torch keeps what it compiled, and takes it again where a processor has other instructions: half the norm came
        # of that. So each set has a folder of its own, and each number of threads, which versions before 2.13 mixed;
        # and what comes out is held against the plain functions.
        kind = f"{torch.backends.cpu.get_cpu_capability().replace(' ', '')}_{torch.get_num_threads()}"
        theirs = f"{tempfile.gettempdir()}/torchinductor_"
        try:
            if os.environ.get(CACHE, theirs).startswith(theirs):  # not a folder that the user chose
                os.environ[CACHE] = f"{theirs}{kind}_{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"
            fused, norm = torch.compile(update, dynamic=True), torch.compile(norm_of, dynamic=True)
            if self.device.type == "cpu":
                norm = partial(norm_by_parts, of_row=norm, of_parts=torch.compile(norm_of_parts, dynamic=True))
            numbers, count = torch.full((5,), 0.5, device=self.device), 2 * PART
            for half in [None, torch.zeros(count, device=self.device).bfloat16()] if self.half else [None]:
                w, grad, m, v = torch.linspace(1, 2, 4 * count, device=self.device).view(4, count).clone()
                grad = grad if half is None else grad.bfloat16()
                plain = [None if t is None else t.clone() for t in (w, grad, m, v, half)]
                update(*plain, numbers, numbers[0], numbers[0] > 0)
                fused(w, grad, m, v, half, numbers, numbers[0], numbers[0] > 0)
                seen, expected = [w, m, v, norm(grad)], [plain[0], plain[2], plain[3], norm_of(grad)]
                if not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(seen, expected)):
                    return "torch's compiler gave wrong numbers; empty its cache, $" + CACHE
        except Exception as error:  # whatever a compiler may say
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return " ".join(lines[: 1 + lines[0].endswith("raised:")])
        self.update, self.norm_of, self.compiled = fused, norm, True
        return None

    @property
    def active(self) -> list[Group]:
        """The groups that are trained now."""
        return [group for group in self.groups if not (self.held and group.late)]

    def hold(self, held: bool) -> None:
        """Freeze the late parameters, or train them from now on, with steps counted from their own first: as torch's
        AdamW does with parameters that get a gradient at last. Between steps; `numbers` may be others afterwards.
        """
        if held != self.held:  # only then: recordings of steps hold on to the gradients' memory
            self.held = held
            for leaf in (leaf for group in self.groups if group.late for leaf in group.leaves):
                leaf.requires_grad_(not held)
                leaf.grad = None
        if not held and self.late_from < 0:
            self.late_from.copy_(self.steps)

    def gradients(self) -> list[Tensor]:
        """Of each active group in one row."""
        return [group.gradient() for group in self.active]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The norm of all gradients together, float64, without dimensions."""
        return torch.linalg.vector_norm(torch.stack([self.norm_of(gradient) for gradient in gradients]))

    def zero_grad(self, keep: bool = False) -> None:
        """Clear the gradients. keep: their memory stays, filled with zeros: graphs that share them need it."""
        for leaf in (leaf for group in self.active for leaf in group.leaves):
            if not keep:
                leaf.grad = None
            elif leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
            else:
                leaf.grad.zero_()

    def numbers(self, rates: Tensor, steps: Tensor) -> Tensor:
        """The numbers of some updates: with the learning rates (T,), as the steps (T,), counted from 1.

        Returns:
            (T, 2, 5) float64 where the parameters are: for those that decay and for those that do not, the numbers that
            `update` takes; (T, 4, 5) where some are late: then for these, whose steps are counted from their own first.
        """
        if not self.late:
            return self._numbers(rates, steps)
        own = (steps - self.late_from.cpu().clamp(min=0)).clamp(min=1)
        return torch.cat([self._numbers(rates, steps), self._numbers(rates, own)], dim=1)

    def _numbers(self, rates: Tensor, steps: Tensor) -> Tensor:
        """(T, 2, 5)."""
        rates, steps = rates.double(), steps.double()
        # w -= rate * (m / correction1) / (sqrt(v / correction2) + eps), with the corrections drawn out of the quotient
        correction1, correction2 = (1 - beta**steps if self.bias_correction else 1 + 0 * steps for beta in self.betas)
        rest1, rest2 = (torch.full_like(rates, 1 - beta) for beta in self.betas)
        root, one = correction2.sqrt(), torch.ones_like(rates)
        kinds = [
            torch.stack([rest1, rest2, kept, rates * root / correction1, self.eps * root], dim=-1)
            for kept in (1 - rates * self.weight_decay, one)
        ]
        return torch.stack(kinds, dim=1).to(self.device)

    @torch.no_grad()
    def step(
        self,
        rate: float | Tensor,
        factor: float | Tensor = 1.0,
        finite: bool | Tensor = True,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        """One update. A parameter without a gradient counts as one whose gradient is zero.

        Args:
            rate: the learning rate, or what `numbers` gave for this step, (2 or 4, 5).
            factor: multiplies every gradient on the way in: clipping and loss scaling cost no pass.
            finite: False leaves all as it is, whatever the gradients hold.
            gradients: as `gradients` gave them; None: it is asked.
        """
        if not isinstance(rate, Tensor):
            rate = self.numbers(torch.tensor([rate], dtype=torch.float64), self.steps.cpu()[None] + 1)[0]
        finite = torch.as_tensor(finite, device=self.device)
        numbers = torch.where(finite, rate, self.idle)
        self.steps.add_(finite)
        if not self.held:
            self.shrinkage.mul_(numbers[-2, 2])
        dtype = self.groups[0].w.dtype
        numbers, factor = numbers.to(dtype), torch.as_tensor(factor, device=self.device).to(dtype)
        piece = PIECE if self.device.type == "cpu" and not self.compiled else None
        for group, gradient in zip(self.active, self.gradients() if gradients is None else gradients):
            rows = [group.w, gradient, group.exp_avg, group.exp_avg_sq] + [group.half] * (group.half is not None)
            own = numbers[2 * group.late + (not group.decays)]
            for w, g, m, v, *half in zip(*[row.split(piece or len(row)) for row in rows]):
                self.update(w, g, m, v, half[0] if half else None, own, factor, finite)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat, tensors only: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step`, `shrinkage`; `late_from` if some are late."""
        moments = {f"exp_avg.{name}": t for name, t in self.exp_avg.items()}
        moments |= {f"exp_avg_sq.{name}": t for name, t in self.exp_avg_sq.items()}
        late = {"late_from": self.late_from} if self.late else {}
        return moments | {"step": self.steps, "shrinkage": self.shrinkage} | late

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """
        Raises:
            KeyError: a tensor of `state_dict` is missing.
        """
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class LossScaler:
    """Keeps fp16 gradients out of underflow: the loss is multiplied by `scale`, the gradients divided by it.

    Micikevicius et al. 2018, arXiv:1710.03740. A step whose gradients overflowed is skipped and the scale halved; after
    `patience` good steps it doubles. Not `enabled`, the scale is 1 for ever.
    """

    def __init__(
        self, enabled: bool, scale: float = 2.0**16, patience: int = 2000, device: torch.device | str = "cpu"
    ) -> None:
        self.enabled, self.patience = enabled, patience
        self.scale = torch.full((), scale if enabled else 1.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def spent(self) -> bool:
        """Whether gradients that are not finite cannot be mended by a smaller scale. Reads the device."""
        return not self.enabled or bool(self.scale < 2**-24)

    def unscaled(self, number: Tensor) -> Tensor:
        """A number that belongs to scaled gradients -> to those of the loss itself."""
        return number / self.scale if self.enabled else number

    def update(self, finite: Tensor) -> None:
        """Say of each step whether all its gradients were finite."""
        if not self.enabled:
            return
        good = (self.good_steps + 1) * finite
        grown = good == self.patience
        self.scale.mul_(torch.where(finite, 1.0 + grown, 0.5))
        self.good_steps.copy_(good * ~grown)

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def warmup_steps(warmup: float, total: int) -> int:
    """A fraction below 1 of `total` steps, rounded up; from 1 on a number of steps. A single step has none: with a
    warmup its rate would be 0.
    """
    if total == 1:
        return 0
    return math.ceil(warmup * total) if warmup < 1 else int(warmup)


def linear_schedule(step: int, total: int, warmup: int) -> float:
    """The factor on the learning rate for step 0, 1, ...: up from 0 over `warmup` steps, then down to 0 at `total`.

    Devlin et al. 2018, appendix A.2. The first step of a warmup has rate 0.
    """
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


@dataclass(frozen=True)
class Schedule:
    """`lr` times linear_schedule."""

    lr: float
    total: int
    warmup: int

    def rate(self, step: int) -> float:
        """Of a step, counted from 0."""
        return self.lr * linear_schedule(step, self.total, self.warmup)

    def rates(self) -> Tensor:
        """Of every step, and one more, (total + 1,) float64."""
        return torch.tensor([self.rate(step) for step in range(self.total + 1)], dtype=torch.float64)

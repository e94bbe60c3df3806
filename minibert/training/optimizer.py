"""AdamW and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minibert.precision import LossScaler

# Elements that are updated at a time. The tensors of a piece stay in the processor's cache from one line of the update
# to the next: 44 ms -> 20 ms a step for the 11 million weights of a 6x384 encoder.
PIECE = 1 << 17

# Parameters of fewer elements, biases above all, are updated joined: calling the update takes longer than their work.
# 11.6 ms a step -> 8.9 for the same encoder, compiled.
SMALL = 1 << 13

# Compiled, the update is one pass over memory, but compiling takes seconds, about what it saves over this many updates
# of one element. Shorter runs stay as they are.
WORTH_COMPILING = 5e9


def update(w: Tensor, grad: Tensor, m: Tensor, v: Tensor, half: Tensor | None = None, *, numbers: Tensor) -> None:
    """AdamW for some elements: weights, gradient, first and second moment, in place; `half` is the weights in bf16.

    `numbers` are 1 - beta1, 1 - beta2, what decay leaves of a weight, the rate, eps and the factor on the gradient.
    """
    rest1, rest2, kept, rate, eps, grad_scale = numbers.to(w.dtype).unbind()
    g = grad.float() * grad_scale
    m.add_((g - m) * rest1)
    v.add_((g * g - v) * rest2)
    w.mul_(kept).sub_(m / (v.sqrt() + eps) * rate)
    if half is not None:
        half.copy_(w)


def square_sum(grad: Tensor) -> Tensor:
    """Of one row of elements, added up in float32."""
    return torch.dot(flat := grad.float(), flat)


def join(tensors: list[Tensor]) -> Tensor:
    """All elements in one row: of a single tensor a view, of more a copy."""
    return torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).

    Decay applies to tensors of two dimensions and more: matrices and embeddings, never biases or LayerNorm.

    Args:
        named_parameters: as `model.named_parameters()` gives them.
        lr: used by `step` where it gets none.
        bias_correction: False leaves the moments as they are, as BERT's first code did: the first step is then
            (1 - beta1) / sqrt(1 - beta2) = 3.2 times as large (Mosbach et al. 2021, arXiv:2006.04884).
        half: {name: copy in bf16} of parameters whose gradient arrives at the copy, which follows the parameter.

    Attributes:
        shrinkage: the product of all (1 - lr * weight_decay) so far: what decay alone makes of a weight.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        half: dict[str, Tensor] | None = None,
    ) -> None:
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.bias_correction = bias_correction
        self.half = half or {}
        self.update, self.compiled = update, False
        self.steps = 0
        self.shrinkage = 1.0
        self.exp_avg = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        kinds: dict[object, list[str]] = {}  # the small parameters that are treated alike, and each large one
        for name, p in self.parameters.items():
            kinds.setdefault(name if p.numel() >= SMALL else (self.decays(name), name in self.half), []).append(name)
        self.groups = list(kinds.values())

    def decays(self, name: str) -> bool:
        return self.parameters[name].dim() >= 2

    def compile(self) -> str | None:
        """Fuse the update into one pass over memory. Returns why not, where there is no compiler or it fails."""
        try:
            fused = torch.compile(update, dynamic=True)
            for half in [[], [torch.zeros(64).bfloat16()]] if self.half else [[]]:
                w, grad, m, v = torch.zeros(4, 64)
                grad = grad.bfloat16() if half else grad
                fused(w, grad, m, v, *half, numbers=torch.ones(6, dtype=torch.float64))
        except Exception as error:  # whatever a compiler may say
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        self.update, self.compiled = fused, True
        return None

    def gradients(self) -> list[Tensor]:
        """Of each group in one row, zeros where there is none; in bfloat16 if it arrived at a copy."""
        owners = [[self.half.get(name, self.parameters[name]) for name in names] for names in self.groups]
        return [join([torch.zeros_like(p) if p.grad is None else p.grad for p in group]) for group in owners]

    def gradient_norm(self) -> float:
        """The norm of all gradients together."""
        return torch.stack([square_sum(grad) for grad in self.gradients()]).sum().sqrt().item()

    def zero_grad(self) -> None:
        for p in (*self.parameters.values(), *self.half.values()):
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float | None = None, grad_scale: float = 1.0) -> None:
        """One update. `grad_scale` multiplies every gradient on the way in: clipping and loss scaling cost no pass.

        A parameter without a gradient counts as one whose gradient is zero.
        """
        lr = self.lr if lr is None else lr
        beta1, beta2 = self.betas
        self.steps += 1
        self.shrinkage *= 1 - lr * self.weight_decay
        correction1 = 1 - beta1**self.steps if self.bias_correction else 1.0
        correction2 = 1 - beta2**self.steps if self.bias_correction else 1.0
        # w -= lr * (m / correction1) / (sqrt(v / correction2) + eps), with the corrections drawn out of the quotient
        rate = lr * math.sqrt(correction2) / correction1
        eps = self.eps * math.sqrt(correction2)
        numbers = {
            decays: torch.tensor([1 - beta1, 1 - beta2, kept, rate, eps, grad_scale], dtype=torch.float64)
            for decays, kept in ((True, 1 - lr * self.weight_decay), (False, 1.0))
        }
        for names, grad in zip(self.groups, self.gradients()):
            sources = [self.parameters, self.exp_avg, self.exp_avg_sq] + [self.half] * (names[0] in self.half)
            tensors = [[source[name].view(-1) for name in names] for source in sources]
            w, *rest = joined = [join(column) for column in tensors]
            size = w.numel() if self.compiled else PIECE
            for piece in zip(*[t.split(size) for t in (w, grad, *rest)]):
                self.update(*piece, numbers=numbers[self.decays(names[0])])
            if len(names) > 1:  # what was joined is a copy
                for column, new in zip(tensors, joined):
                    torch._foreach_copy_(column, new.split([t.numel() for t in column]))

    def state_dict(self) -> dict[str, Tensor]:
        """Flat, tensors only: `exp_avg.NAME`, `exp_avg_sq.NAME`, `step`, `shrinkage`."""
        moments = {f"exp_avg.{name}": t for name, t in self.exp_avg.items()}
        moments |= {f"exp_avg_sq.{name}": t for name, t in self.exp_avg_sq.items()}
        return moments | {
            "step": torch.tensor(self.steps),
            "shrinkage": torch.tensor(self.shrinkage, dtype=torch.float64),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """
        Raises:
            KeyError: a tensor of `state_dict` is missing.
        """
        for name in self.parameters:
            self.exp_avg[name].copy_(state[f"exp_avg.{name}"])
            self.exp_avg_sq[name].copy_(state[f"exp_avg_sq.{name}"])
        self.steps = int(state["step"])
        self.shrinkage = float(state["shrinkage"])


def clipped_step(optimizer: AdamW, lr: float, clip: float, scaler: LossScaler) -> bool:
    """One update with the gradients of a scaled loss, clipped to the global norm `clip` (0: not).

    Gradients that are not finite leave the weights alone. Returns, and tells the scaler, whether they were finite.
    """
    norm = optimizer.gradient_norm() / scaler.scale
    finite = math.isfinite(norm)
    if finite:
        clipping = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        optimizer.step(lr, clipping / scaler.scale)
    scaler.update(finite)
    return finite


def warmup_steps(warmup: float, total: int) -> int:
    """A fraction below 1 of `total` steps, rounded up; from 1 on a number of steps."""
    return math.ceil(warmup * total) if warmup < 1 else int(warmup)


def linear_schedule(step: int, total: int, warmup: int) -> float:
    """The factor on the learning rate for step 0, 1, ...: up from 0 over `warmup` steps, then down to 0 at `total`.

    Devlin et al. 2018, appendix A.2. The first step of a warmup has rate 0.
    """
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))

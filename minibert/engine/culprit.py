"""Which tensor of a step was not finite first: asked after the fact, by taking the step's passes once more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minibert.engine import Engine

NORM = "the gradient's norm"


def first_not_finite(engine: Engine, batches: Sequence[Any], count: Tensor) -> str:
    """Weights, then the modules' outputs in the order of the forward pass, the loss, the gradients from the last on.

    A step whose gradient is not finite changes no weight, so the passes find what it found, under the same seed.

    Returns:
        What it is, in words; NORM where it is none of these, or lay in the batches of another process.
    """
    state, optimizer = engine.state, engine.state.optimizer
    for name, weight in engine.trained.named_parameters():
        if not is_finite(weight):
            return f"the weight {name}"
    found: list[str] = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        if not all(is_finite(part) for part in parts if isinstance(part, Tensor)):
            found.append(name)

    model = state.network.model
    hooks = [module.register_forward_hook(partial(after, name)) for name, module in model.named_modules() if name]
    try:
        optimizer.zero_grad()
        for batch in batches:
            with state.network.autocast():
                loss, _ = state.loss(state.network, batch)
            if found:
                return f"the output of {found[0]}"
            if not is_finite(loss):
                return "the loss"
            (loss * (state.scaler.scale / count)).backward()
    finally:
        for hook in hooks:
            hook.remove()
    leaves = {name: leaf for group in optimizer.groups for name, leaf in zip(group.names, group.leaves)}
    for name in reversed(optimizer.parameters):
        if leaves[name].grad is not None and not is_finite(leaves[name].grad):
            return f"the gradient of {name}"
    return NORM


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())

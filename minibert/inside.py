"""What a network does to real inputs, part by part: its weights, its hidden states, its gradients.

The probe looks before the first step, training at the end of each epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.data import Examples
from minibert.data.batches import Batch, collate
from minibert.initialization import Manifest
from minibert.model import BertClassifier
from minibert.seeds import derive
from minibert.verdict import mean_cosine

INPUTS = 24  # examples that training looks at


@dataclass(frozen=True)
class Part:
    """One part's weights and what it makes of the inputs. None: it has no such thing.

    Attributes:
        source: where its tensors come from; sha256: of their hashes in the manifest, one behind the other.
        mean, std: of all numbers of its matrices.
        tokens: mean cosine between the tokens of one input. cls, means: between the [CLS], or the mean vectors, of
            different inputs.
        activation: mean norm of a token's vector. gradient: norm of the loss's gradient for all its parameters.
        attention, feed_forward: norm of F(x), with its gate, over that of what it is added to.
    """

    name: str
    source: str
    sha256: str
    mean: float | None
    std: float | None
    gradient: float
    tokens: float | None = None
    cls: float | None = None
    means: float | None = None
    activation: float | None = None
    attention: float | None = None
    feed_forward: float | None = None


def choose(examples: Examples, count: int, pad_id: int) -> Batch:
    """`count` examples by chance (all, where there are fewer), the same for every scheme and seed of the weights."""
    rows = np.random.default_rng(derive(0, "probe")).choice(len(examples), min(count, len(examples)), replace=False)
    return collate(examples, rows.tolist(), pad_id)


def look(model: BertClassifier, batch: Batch, manifest: Manifest) -> list[Part]:
    """The embeddings, each layer, what comes behind them; figures of one forward and one backward pass."""
    real = torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.attention_mask is None else batch.attention_mask
    with thawed(model.bert), recorded(model) as seen:
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}  # a head may have frozen ones
        loss = F.cross_entropy(model(*batch[:3]), batch.labels)
        # Leaves no .grad. A head may have weights that it does not use.
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    norms = dict(zip(weights, (gradient.norm() for gradient in gradients)))
    names: dict[str, list[str]] = {}
    for name in weights:
        names.setdefault(part_of(name), []).append(name)
    parts = []
    for part, own in names.items():
        matrices = [weights[name].detach().flatten() for name in own if weights[name].dim() >= 2]
        parts.append(
            Part(
                part,
                source="+".join(sorted({str(manifest[name]["source"]) for name in own})),
                sha256=hashlib.sha256("".join(str(manifest[name]["sha256"]) for name in own).encode()).hexdigest(),
                mean=torch.cat(matrices).mean().item() if matrices else None,
                std=torch.cat(matrices).std(correction=0).item() if matrices else None,
                gradient=torch.stack([norms[name] for name in own]).norm().item(),
                **hidden_figures(seen, part, real),
            )
        )
    return parts


def part_of(name: str) -> str:
    """`bert.layers.0.attention.qkv.weight` -> "layer 1"; else embeddings, norm (behind pre-LN layers), pooler, head."""
    pieces = name.removeprefix("bert.").split(".")
    return f"layer {int(pieces[1]) + 1}" if pieces[0] == "layers" else pieces[0]


@contextmanager
def thawed(module: nn.Module) -> Iterator[None]:
    """While open, what is frozen in it asks for a gradient, too."""
    frozen = [parameter.requires_grad_() for parameter in module.parameters() if not parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def recorded(model: BertClassifier) -> Iterator[dict[tuple[str, str], Tensor]]:
    """While open, a forward pass leaves {(part, what): its value}, `what` being out, skip or branch of a residual."""
    seen: dict[tuple[str, str], Tensor] = {}
    bert, hooks = model.bert, []

    def keep(module: nn.Module, *key: str, scale: float | None = None) -> None:
        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[key] = (output if scale is None else scale * inputs[0]).detach()

        hooks.append(module.register_forward_hook(after))

    keep(bert.embeddings, "embeddings", "out")
    keep(bert.norm, "norm", "out")
    for i, layer in enumerate(bert.layers, 1):
        keep(layer, f"layer {i}", "out")
        for branch in ("attention", "feed_forward"):
            first = getattr(layer, f"{branch}_norm" if layer.norm_first else branch)  # what x meets first
            keep(first, f"layer {i}", f"{branch} skip", scale=layer.residual_scale)
            keep(getattr(layer, f"{branch}_gate"), f"layer {i}", f"{branch} branch")
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def hidden_figures(seen: dict[tuple[str, str], Tensor], part: str, real: Tensor) -> dict[str, float]:
    """Part's figures of hidden states: (B, S, D) values in `seen`, real (B, S) bool."""
    if (part, "out") not in seen:
        return {}
    x = seen[part, "out"]
    figures = {
        "tokens": sum(mean_cosine(tokens[own]) for tokens, own in zip(x, real)) / len(x),
        "cls": mean_cosine(x[:, 0]),
        "means": mean_cosine(torch.stack([tokens[own].mean(dim=0) for tokens, own in zip(x, real)])),
        "activation": x[real].norm(dim=-1).mean().item(),
    }
    for branch in ("attention", "feed_forward"):
        if (part, f"{branch} skip") in seen:
            added, skip = (seen[part, f"{branch} {what}"][real].norm() for what in ("branch", "skip"))
            figures[branch] = (added / skip).item()
    return figures

"""Where the starting weights come from: the schemes of --init.

A scheme is a function that gives every tensor of the encoder its start and says of each where it came from.
The head is always newly drawn, from a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from minibert.checkpoint import load_weights
from minibert.errors import InputError
from minibert.model import Bert, BertClassifier, init_weights
from minibert.seeds import Seeds, derive

# name of a tensor -> its source ("pretrained" or "drawn"), mean and standard deviation
Manifest = dict[str, dict[str, str | float]]


def pretrained(bert: Bert, checkpoint: Path, generator: torch.Generator) -> dict[str, str]:
    """Every tensor from the checkpoint."""
    load_weights(bert, checkpoint)
    return dict.fromkeys(bert.state_dict(), "pretrained")


def random(bert: Bert, checkpoint: Path, generator: torch.Generator) -> dict[str, str]:
    """N(0, initializer_range) matrices, zero biases, LayerNorm 1 and 0 (Devlin et al. 2018, google-research/bert)."""
    draw(bert, bert.config.initializer_range, generator)
    return dict.fromkeys(bert.state_dict(), "drawn")


SCHEMES: dict[str, Callable[[Bert, Path, torch.Generator], dict[str, str]]] = {
    "pretrained": pretrained,
    "random": random,
}
NEEDS_WEIGHTS = {"pretrained"}  # the others take only the checkpoint's config.json


def check_scheme(name: str) -> None:
    """
    Raises:
        InputError: no such scheme.
    """
    if name not in SCHEMES:
        raise InputError(f"--init {name}: no such scheme; known: {', '.join(SCHEMES)}")


def initialize(model: BertClassifier, scheme: str, checkpoint: Path, seeds: Seeds) -> Manifest:
    """Give every tensor of `model` its start, in place.

    Args:
        scheme: a key of SCHEMES.
        checkpoint: the folder of a checkpoint with the model's own sizes.
        seeds: `encoder` and `head` are used.

    Returns:
        The manifest: for each tensor its source, mean and standard deviation.

    Raises:
        InputError: an unknown scheme, or a checkpoint that does not fit (see load_weights).
    """
    check_scheme(scheme)
    sources = SCHEMES[scheme](model.bert, checkpoint, stream(seeds.encoder, "encoder"))
    draw(model.head, model.config.initializer_range, stream(seeds.head, "head"))
    manifest: Manifest = {}
    for name, tensor in model.state_dict().items():
        source = sources[name.removeprefix("bert.")] if name.startswith("bert.") else "drawn"
        manifest[name] = {"source": source, "mean": tensor.mean().item(), "std": tensor.std(correction=0).item()}
    return manifest


def draw(module: nn.Module, std: float, generator: torch.Generator) -> None:
    """BERT's random start for every part of `module`."""
    for part in module.modules():
        init_weights(part, std, generator)


def stream(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, purpose))

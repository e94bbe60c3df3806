"""What is not trained: --freeze for good, --freeze-encoder-epochs at first.

A frozen parameter asks for no gradient, so that autograd keeps nothing of the layers below the first trained one; the
optimizer does not know it, so that no decay and no clipping does. Dropout stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.initialization import layer_of
from minibert.model import BertClassifier


def frozen_by(text: str, layers: int) -> Callable[[str], bool]:
    """What --freeze says -> whether it freezes the parameter of a `BertClassifier` of that name.

    Raises:
        InputError: layers that a model of so many has not.
    """
    low_high = []
    for part in text.split(",") if text != "none" else []:
        if part.startswith("layers:"):
            low, high = map(int, part.removeprefix("layers:").split("-"))
            if not 1 <= low <= high <= layers:
                raise InputError(
                    f"--freeze {text}: this model has layers 1 to {layers}; write layers:I-J, such as layers:1-{layers}"
                )
            low_high.append((low, high))
    prefixes = tuple({"embeddings": "bert.embeddings.", "encoder": "bert."}.get(part, "-") for part in text.split(","))

    def frozen(name: str) -> bool:
        layer = layer_of(name.removeprefix("bert.")) or 0
        return name.startswith(prefixes) or any(low <= layer <= high for low, high in low_high)

    return frozen


def freeze(model: BertClassifier, config: TrainConfig) -> list[str]:
    """Freeze what --freeze says, in place.

    Returns:
        Lines that say what is frozen, and for how long.

    Raises:
        InputError: nothing is left to train, or nothing at first.
    """
    frozen, lines = frozen_by(config.freeze, model.config.num_hidden_layers), []
    for name, parameter in model.named_parameters():
        if frozen(name):
            parameter.requires_grad_(False)
    epochs = min(config.freeze_encoder_epochs, config.epochs)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained or (epochs and all(name.startswith("bert.") for name in trained)):
        raise InputError(
            "all that has weights is frozen, and nothing is left to train: the head has none to be trained"
        )
    if config.freeze != "none":
        lines.append(f"frozen: {config.freeze}; {share(model, frozen)}")
    if epochs:
        first = "the first epoch" if epochs == 1 else f"the first {epochs} epochs"
        when = "all epochs" if epochs == config.epochs else first
        lines.append(f"frozen in {when}: encoder; {share(model, frozen_by('encoder', 0))}")
    return lines


def share(model: BertClassifier, chosen: Callable[[str], bool]) -> str:
    """How many of the model's tensors and weights are `chosen`, by name."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    some = [size for name, size in sizes.items() if chosen(name)]
    return f"{len(some)} of {len(sizes)} tensors, {sum(some):,} of {sum(sizes.values()):,} weights"

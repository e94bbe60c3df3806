"""A minimal BERT in PyTorch, to find out what its starting weights are worth.

The names below are imported when they are first used, so that `train.py --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from minibert.checkpoint import load_classifier, load_encoder, save_pretrained
    from minibert.classifier import Classifier, Data, Run, train
    from minibert.config import TrainConfig
    from minibert.errors import InputError
    from minibert.model import Bert, BertClassifier, BertConfig
    from minibert.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOME = {
    "Bert": "minibert.model",
    "BertClassifier": "minibert.model",
    "BertConfig": "minibert.model",
    "Classifier": "minibert.classifier",
    "Data": "minibert.classifier",
    "InputError": "minibert.errors",
    "Run": "minibert.classifier",
    "Tokenizer": "minibert.tokenizer",
    "TrainConfig": "minibert.config",
    "load_classifier": "minibert.checkpoint",
    "load_encoder": "minibert.checkpoint",
    "save_pretrained": "minibert.checkpoint",
    "train": "minibert.classifier",
}
__all__ = ["Bert", "BertClassifier", "BertConfig", "Classifier", "Data", "InputError", "Run", "Tokenizer",
           "TrainConfig", "load_classifier", "load_encoder", "save_pretrained", "train"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minibert' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

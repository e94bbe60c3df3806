"""A minimal BERT in PyTorch, to find out what its starting weights are worth.

The names below are imported when they are first used, so that `train.py --help` does not wait for torch.
"""

from importlib import import_module

_HOME = {
    "Bert": "minibert.model",
    "BertClassifier": "minibert.model",
    "BertConfig": "minibert.model",
    "load_classifier": "minibert.checkpoint",
    "load_encoder": "minibert.checkpoint",
    "save_pretrained": "minibert.checkpoint",
    "InputError": "minibert.errors",
    "Tokenizer": "minibert.tokenizer",
    "TrainConfig": "minibert.config",
    "train": "minibert.training.loop",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'minibert' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

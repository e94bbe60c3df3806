"""A tiny checkpoint that all tests share, and a cache folder of their own."""

import json
import os
import string
import sys
from pathlib import Path

import pytest
import torch

from minibert.checkpoint import save_pretrained
from minibert.model import Bert, BertConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # train.py and eval.py

# Tiny models gain nothing from threads, and lose much where the cores are busy.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *map(str, range(100)),
    *string.ascii_lowercase,
    *(f"##{c}" for c in string.ascii_lowercase + string.digits),
    *".-",
]

# Every number differs from every other, so that no two can be swapped unseen.
TINY = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    hidden_dropout_prob=0.11,
    attention_probs_dropout_prob=0.17,
    classifier_dropout=0.23,
    max_position_embeddings=64,
    type_vocab_size=3,
    layer_norm_eps=1e-7,
    initializer_range=0.05,
    num_labels=5,
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a checkpoint: two layers, 24 wide, a vocabulary of numbers and letters."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    torch.manual_seed(0)
    save_pretrained(perturbed(Bert(TINY)), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's own cache; names of checkpoints mean those of the checkout."""
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def labels_of(folder):
    """The class names that FOLDER/config.json holds, in the order of the logits."""
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    return [names[str(place)] for place in range(len(names))]


@torch.no_grad()
def perturbed(model):
    """Move every tensor off its start: a test with zero biases or unit norms cannot see them mixed up."""
    for tensor in model.parameters():
        tensor += torch.randn_like(tensor) * 0.1
    return model

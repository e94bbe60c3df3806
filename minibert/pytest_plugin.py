"""Fixtures for tests of what reads BERT: pytest finds them where minibert is installed.

Imports torch inside the fixtures alone, since pytest loads this module in every run.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from minibert.model import BertClassifier, BertConfig

# Any lower-cased text has its pieces here.
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.digits,
    *string.ascii_lowercase,
    *(f"##{character}" for character in string.digits + string.ascii_lowercase),
    *".,-?!'",
]


class EncoderOutputs(NamedTuple):
    """What a head reads: tokens (B, S, D), mask (B, S) bool, True where a token is real, and pooled (B, D)."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


@pytest.fixture
def tiny_config() -> BertConfig:
    """The numbers of a BERT of 2 layers, 24 wide, 3 classes; no two sizes are equal, so that none can be mixed up."""
    from minibert.model import BertConfig

    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        hidden_dropout_prob=0.11,
        attention_probs_dropout_prob=0.17,
        classifier_dropout=0.23,
        max_position_embeddings=32,
        type_vocab_size=5,
        initializer_range=0.05,
        num_labels=3,
    )


@pytest.fixture
def tiny_classifier(tiny_config: BertConfig) -> BertClassifier:
    """A BertClassifier of tiny_config, in eval mode, the same in every test; no bias is zero and no norm is one."""
    import torch

    from minibert.model import BertClassifier

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        model = BertClassifier(tiny_config)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def tiny_checkpoint(tiny_classifier: BertClassifier, tmp_path: Path) -> Path:
    """A folder of tiny_classifier's config.json, model.safetensors and vocab.txt; the test may spoil it."""
    from minibert.checkpoint import save_pretrained

    folder = tmp_path / "tiny_checkpoint"
    save_pretrained(tiny_classifier, folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def encoder_outputs(tiny_classifier: BertClassifier) -> EncoderOutputs:
    """Tokens, mask and pooled of 4 texts of 9, 5, 2 and 7 tokens, from tiny_classifier's encoder."""
    import torch

    config = tiny_classifier.config
    mask = torch.arange(9) < torch.tensor([9, 5, 2, 7])[:, None]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, mask.shape, generator=generator)
    ids[:, 0] = WORDS.index("[CLS]")
    with torch.no_grad():
        tokens, pooled = tiny_classifier.bert(ids.where(mask, torch.tensor(config.pad_token_id)), mask)
    return EncoderOutputs(tokens, mask, pooled)

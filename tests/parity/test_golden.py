"""The real MiniLM checkpoint against what the reference implementation made of the same sentences.

The golden file and its recipe: tests/golden/make_minilm.py. Needs weights/minilm-l6, which
`python -m minibert fetch minilm-l6` or the first train.py brings; skipped without it.
"""

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from minibert.checkpoint import load_encoder
from minibert.tokenizer import Tokenizer

CHECKPOINT = ROOT / "weights" / "minilm-l6"
GOLDEN = ROOT / "tests" / "golden"
EVERY = 24  # of the hidden states the file holds every 24th number
TOLERANCE = {"rtol": 0, "atol": 1e-5}

pytestmark = pytest.mark.skipif(
    not CHECKPOINT.is_dir(), reason="weights/minilm-l6 is not there: python -m minibert fetch minilm-l6"
)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "minilm_l6.safetensors")


@pytest.fixture(scope="module")
def ids(golden):
    return list(golden["input_ids"].long().split(golden["lengths"].tolist()))


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(CHECKPOINT)


def test_the_same_words(ids):
    sentences = (GOLDEN / "sentences.txt").read_text(encoding="utf-8").splitlines()
    assert len(sentences) >= 100
    assert Tokenizer.load(CHECKPOINT).encode(sentences)[0] == [row.tolist() for row in ids]


@torch.no_grad()
def test_padded(golden, ids, encoder):
    x = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    real = torch.arange(x.shape[1]) < golden["lengths"][:, None]
    hidden, pooled = encoder(x, real)
    torch.testing.assert_close(hidden[real][:, ::EVERY], golden["hidden"], **TOLERANCE)
    torch.testing.assert_close(pooled, golden["pooled"], **TOLERANCE)
    mean = load_encoder(CHECKPOINT, pool="mean")(x, real)[1]
    torch.testing.assert_close(mean, golden["mean"], **TOLERANCE)


@torch.no_grad()
def test_unpadded(golden, ids, encoder):
    for row, hidden, pooled in zip(ids, golden["hidden"].split(golden["lengths"].tolist()), golden["pooled"]):
        ours, ours_pooled = encoder(row[None])
        torch.testing.assert_close(ours[0, :, ::EVERY], hidden, **TOLERANCE)
        torch.testing.assert_close(ours_pooled[0], pooled, **TOLERANCE)

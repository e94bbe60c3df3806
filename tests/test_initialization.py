"""minibert/initialization.py."""

import pytest
import torch
from conftest import TINY

from minibert.checkpoint import load_encoder
from minibert.errors import InputError
from minibert.initialization import SCHEMES, initialize
from minibert.model import BertClassifier
from minibert.seeds import Seeds


def start(scheme, tiny, **seeds):
    model = BertClassifier(TINY)
    return model, initialize(model, scheme, tiny, Seeds(**seeds))


def equal(a, b):
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_manifest_covers_every_parameter_once_and_tells_the_truth(tiny, scheme):
    model, manifest = start(scheme, tiny)
    assert list(manifest) == [name for name, _ in model.named_parameters()]
    for name, tensor in model.named_parameters():
        assert manifest[name]["mean"] == pytest.approx(tensor.mean().item())
        assert manifest[name]["std"] == pytest.approx(tensor.std(correction=0).item())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_seeds_are_apart(tiny, scheme):
    first, _ = start(scheme, tiny, encoder=1, head=2)
    assert equal(first, start(scheme, tiny, encoder=1, head=2, order=9, dropout=9)[0])
    other_head, _ = start(scheme, tiny, encoder=1, head=3)
    assert equal(first.bert, other_head.bert)
    assert not torch.equal(first.head.linear.weight, other_head.head.linear.weight)


def test_pretrained_is_the_checkpoint(tiny):
    model, manifest = start("pretrained", tiny)
    assert equal(load_encoder(tiny), model.bert)
    assert {name for name, entry in manifest.items() if entry["source"] == "drawn"} == {
        "head.linear.weight",
        "head.linear.bias",
    }


def test_random_is_drawn_from_its_seed(tiny):
    model, manifest = start("random", tiny, encoder=1)
    assert {entry["source"] for entry in manifest.values()} == {"drawn"}
    assert not equal(model.bert, start("random", tiny, encoder=2)[0].bert)
    weights = torch.cat([p.flatten() for p in model.bert.parameters() if p.dim() == 2])
    assert weights.std().item() == pytest.approx(TINY.initializer_range, rel=0.02)
    assert model.bert.layers[0].attention_norm.weight.unique().tolist() == [1.0]


def test_encoder_and_head_share_no_stream(tiny):
    model, _ = start("random", tiny)
    head, word = model.head.linear.weight.flatten(), model.bert.embeddings.word.weight.flatten()
    assert not torch.isin(head, word).any()


def test_unknown_scheme_names_the_known(tiny):
    with pytest.raises(InputError, match="known: pretrained, random"):
        start("xavierr", tiny)

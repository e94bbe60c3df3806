"""minibert/model.py: sizes, masks, poolers, heads, dropout switches. Parity with a reference is in tests/parity."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY, perturbed
from torch import nn

from minibert.model import Bert, BertClassifier, BertConfig, ClassificationHead, Layer, attend


@pytest.fixture
def bert():
    torch.manual_seed(1)
    return perturbed(Bert(TINY)).eval()


def ids(*shape):
    return torch.randint(1, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(2))


def test_default_config_is_bert_base():
    with torch.device("meta"):
        model = Bert(BertConfig())
    assert sum(p.numel() for p in model.parameters()) == 109_482_240


def test_output_shapes(bert):
    sequence, pooled = bert(ids(3, 7))
    assert sequence.shape == (3, 7, 24)
    assert pooled.shape == (3, 24)
    assert BertClassifier(TINY)(ids(3, 7)).shape == (3, 5)


def test_padding_changes_nothing(bert):
    x = ids(2, 9)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    sequence, pooled = bert(x, mask)
    short_sequence, short_pooled = bert(x[1:, :5])
    torch.testing.assert_close(sequence[1, :5], short_sequence[0])
    torch.testing.assert_close(pooled[1], short_pooled[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.uint8])
def test_mask_of_any_type(bert, dtype):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]])
    torch.testing.assert_close(bert(ids(2, 4), mask.to(dtype))[0], bert(ids(2, 4), mask.bool())[0])


def test_mask_of_ones_is_no_mask(bert):
    torch.testing.assert_close(bert(ids(2, 4), torch.ones(2, 4))[0], bert(ids(2, 4))[0])


def test_no_gradient_reaches_padding(bert):
    x = bert.embeddings.word(ids(2, 6)).detach().requires_grad_()
    bert.embeddings.word.forward = lambda _: x
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    sequence, pooled = bert(ids(2, 6), mask)
    (sequence[:, :3].sum() + pooled.pow(2).sum()).backward()
    assert x.grad[1, 3:].abs().max() == 0
    assert x.grad[1, :3].abs().min() > 0
    assert x.grad[0, 3:].abs().min() > 0


def test_token_types_default_to_the_first_text(bert):
    zeros = torch.zeros(2, 5, dtype=torch.long)
    torch.testing.assert_close(bert(ids(2, 5), None, zeros)[0], bert(ids(2, 5))[0])
    assert not torch.allclose(bert(ids(2, 5), None, zeros + 1)[0], bert(ids(2, 5))[0])


def test_positions_matter(bert):
    x = ids(1, 4)
    assert not torch.allclose(bert(x)[0][0, 1:], bert(x[:, [0, 3, 2, 1]])[0][0, [3, 2, 1]], atol=1e-3)


def test_too_long_says_how_long(bert):
    with pytest.raises(ValueError, match="65 tokens.*64 positions"):
        bert(ids(1, 65))


def test_mean_pool_counts_real_tokens_only():
    bert = perturbed(Bert(replace(TINY, pool="mean"))).eval()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    sequence, pooled = bert(ids(2, 4), mask)
    torch.testing.assert_close(pooled[0], sequence[0].mean(0))
    torch.testing.assert_close(pooled[1], sequence[1, :2].mean(0))
    torch.testing.assert_close(bert(ids(2, 4))[1], bert(ids(2, 4))[0].mean(1))


def test_any_module_is_a_head():
    head = nn.Sequential(nn.Linear(24, 11), nn.ReLU(), nn.Linear(11, 3))
    model = BertClassifier(TINY, head=head, pool="mean").eval()
    assert model(ids(2, 5)).shape == (2, 3)
    assert model.config.pool == "mean"
    torch.testing.assert_close(model(ids(2, 5)), head(model.bert(ids(2, 5))[1]))


def layer_of(**change):
    torch.manual_seed(5)
    layer = perturbed(Layer(replace(TINY, **change))).eval()
    return layer, torch.randn(2, 3, 24)


def test_scaled_residual():
    layer, x = layer_of(residual_scale=2.5)
    h = layer.attention_norm(2.5 * x + layer.attention(x))
    torch.testing.assert_close(layer(x), layer.feed_forward_norm(2.5 * h + layer.feed_forward(h)))


@pytest.mark.parametrize(("gate", "shape"), [("scalar", ()), ("channel", (24,))])
def test_gated_branches(gate, shape):
    layer, x = layer_of(branch_gate=gate)
    assert layer.attention_gate.weight.shape == layer.feed_forward_gate.weight.shape == shape
    h = layer.attention_norm(x + layer.attention_gate.weight * layer.attention(x))
    torch.testing.assert_close(
        layer(x), layer.feed_forward_norm(h + layer.feed_forward_gate.weight * layer.feed_forward(h))
    )


def test_norm_first():
    layer, x = layer_of(norm_first=True)
    h = x + layer.attention(layer.attention_norm(x))
    torch.testing.assert_close(layer(x), h + layer.feed_forward(layer.feed_forward_norm(h)))
    model = perturbed(Bert(replace(TINY, norm_first=True))).eval()
    x = model.embeddings(ids(2, 5))
    for layer in model.layers:
        x = layer(x)
    torch.testing.assert_close(model(ids(2, 5))[0], model.norm(x))


def test_only_berts_own_layers_are_called_bert():
    assert TINY.is_bert
    assert TINY.to_dict()["model_type"] == replace(TINY, pool="mean").to_dict()["model_type"] == "bert"
    for change in ({"residual_scale": 2.0}, {"branch_gate": "scalar"}, {"norm_first": True}):
        other = replace(TINY, **change)
        assert not other.is_bert
        assert other.to_dict()["model_type"] == "minibert"
        assert BertConfig.from_dict(other.to_dict()) == other


def test_dropout_only_in_training():
    torch.manual_seed(3)
    model = perturbed(BertClassifier(TINY))
    assert not torch.equal(model(ids(2, 5)), model(ids(2, 5)))
    model.eval()
    assert torch.equal(model(ids(2, 5)), model(ids(2, 5)))


def test_head_dropout_defaults_to_the_hidden_rate():
    assert ClassificationHead(TINY).dropout.p == 0.23
    assert ClassificationHead(replace(TINY, classifier_dropout=None)).dropout.p == 0.11
    assert ClassificationHead(replace(TINY, classifier_dropout=0.0)).dropout.p == 0.0


def test_random_start_is_berts():
    torch.manual_seed(4)
    model = BertClassifier(replace(TINY, hidden_size=64, intermediate_size=256, initializer_range=0.03))
    for name, tensor in model.named_parameters():
        if tensor.dim() == 1:
            assert torch.equal(tensor, torch.full_like(tensor, float("norm.weight" in name)))
        elif tensor.numel() > 4000:
            assert tensor.std().item() == pytest.approx(0.03, rel=0.1), name
    assert model.bert.embeddings.word.weight[0].abs().max() == 0
    assert model.head.linear.weight.std().item() == pytest.approx(0.03, rel=0.2)


def test_config_round_trip_and_published_extras():
    assert BertConfig.from_dict(TINY.to_dict()) == TINY
    published = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "use_cache": True,
        "id2label": {"0": "a", "1": "b", "2": "c"},
    }
    config = BertConfig.from_dict(published)
    assert (config.hidden_size, config.num_labels, config.vocab_size) == (8, 3, 30522)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 25}, "not a multiple"),
        ({"hidden_act": "swish"}, "hidden_act.*gelu"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"attention_probs_dropout_prob": 1.0}, "attention_probs_dropout_prob"),
        ({"pool": "max"}, "pool.*cls, mean"),
        ({"branch_gate": "vector"}, "branch_gate.*none, scalar, channel"),
        ({"residual_scale": 0.0}, "residual_scale"),
        ({"vocab_size": 10.5}, "vocab_size"),
    ],
)
def test_bad_config_is_named(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)


@pytest.mark.parametrize(
    "extra", [{"position_embedding_type": "relative_key"}, {"is_decoder": True}, {"model_type": "roberta"}]
)
def test_another_network_is_refused(extra):
    with pytest.raises(ValueError, match=next(iter(extra))):
        BertConfig.from_dict(extra)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_the_fused_one(masked):
    """Dropout turns to the written formula; at a rate that drops nothing both must agree, padding left aside."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 4, 7, 6, requires_grad=True) for _ in range(3))
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None, None, None] if masked else None
    written = attend(q, k, v, nn.Dropout(1e-12).train(), mask)
    fused = attend(q, k, v, nn.Dropout(0.5).eval(), mask)
    torch.testing.assert_close(written, fused, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(fused)
    ours = torch.autograd.grad((written * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((fused * weight).sum(), (q, k, v))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

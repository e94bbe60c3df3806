"""minibert/attribution.py: closed forms where there are some, completeness and padding on a BERT; attention weights."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, perturbed
from torch import nn

from minibert.attribution import attention_weights, attribute
from minibert.heads import AttentionHead
from minibert.model import BertClassifier


class Toy(nn.Module):
    """`score` (B, S, D) -> logits (B, C), behind a word embedding where a BERT has it."""

    def __init__(self, score):
        super().__init__()
        torch.manual_seed(0)
        self.bert = nn.Module()
        self.bert.embeddings = nn.Module()
        self.bert.embeddings.word = nn.Embedding(10, 3)
        self.score = score

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        return self.score(self.bert.embeddings.word(input_ids))


IDS, BASE, LABELS = torch.tensor([[4, 7, 9], [5, 5, 1]]), torch.zeros(2, 3, dtype=torch.long), torch.tensor([1, 0])


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_of_a_linear_model_each_token_gets_its_own_weight_times_what_it_differs_by(steps):
    weight = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(1))  # a token's place, channel, class
    model = Toy(lambda x: torch.einsum("bsd,sdc->bc", x, weight))
    found = attribute(model, IDS, BASE, LABELS, steps=steps)
    words = model.bert.embeddings.word.weight.detach()
    centred = weight - weight.mean(dim=2, keepdim=True)
    expected = torch.stack([
        torch.einsum("sd,sd->s", words[ids] - words[base], centred[:, :, label])
        for ids, base, label in zip(IDS, BASE, LABELS)
    ])  # fmt: skip
    torch.testing.assert_close(found.tokens, expected)
    torch.testing.assert_close(found.gap, torch.zeros(2), atol=1e-6, rtol=0)


def test_a_product_is_shared_by_integrated_gradients_and_counted_twice_by_gradient_x_input():
    """Of f = a b, from 0: each gets a b / 2 by the integral of t b dt a, and a b by the gradient at the end."""

    def product(x):
        f = x[:, 0, 0] * x[:, 1, 0]
        return torch.stack([f, -f], dim=1)

    model = Toy(product)
    model.bert.embeddings.word.weight.data[0] = 0
    a, b = model.bert.embeddings.word.weight.detach()[[4, 7], 0]
    one = [IDS[:1], BASE[:1], torch.tensor([0])]
    integrated, gradient = attribute(model, *one, steps=3), attribute(model, *one, steps=0)
    torch.testing.assert_close(integrated.tokens[0], torch.stack([a * b / 2, a * b / 2, 0 * a]))
    torch.testing.assert_close(gradient.tokens[0], torch.stack([a * b, a * b, 0 * a]))
    torch.testing.assert_close(gradient.gap, (a * b)[None])


@pytest.fixture
def bert():
    torch.manual_seed(0)
    return perturbed(BertClassifier(TINY)).train()


@pytest.mark.parametrize("kind", ["cls", "mean", "head over tokens"])
def test_the_sum_is_the_difference_of_the_centred_logits(kind):
    torch.manual_seed(0)
    own = {"head": AttentionHead(TINY)} if kind == "head over tokens" else {"pool": kind}
    model = perturbed(BertClassifier(TINY, **own))
    ids, base, types = torch.randint(5, 90, (2, 12)), torch.zeros(2, 12, dtype=torch.long), torch.ones(2, 12).long()
    labels = torch.tensor([4, 2])
    found = attribute(model, ids, base, labels, None, types, steps=50)
    assert model.training  # as it was
    model.eval()
    logits = [model(which, None, types).detach().double() for which in (ids, base)]
    by_hand = [(each - each.mean(dim=1, keepdim=True))[[0, 1], labels] for each in logits]
    torch.testing.assert_close(found.difference.double(), by_hand[0] - by_hand[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.tokens.sum(dim=1), found.difference, atol=2e-3, rtol=0)
    coarse = attribute(model, ids, base, labels, None, types, steps=1)
    assert coarse.gap.abs().max() > 10 * found.gap.abs().max()


def test_padding_gets_nothing_and_changes_nothing(bert):
    ids = torch.randint(5, 90, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    base = torch.zeros_like(ids)
    padded = attribute(bert, ids, base, torch.tensor([0, 3]), mask, steps=5)  # what stands there differs from [PAD]
    assert (padded.tokens[1, 6:] == 0).all()
    alone = attribute(bert, ids[1:, :6], base[1:, :6], torch.tensor([3]), steps=5)
    torch.testing.assert_close(padded.tokens[1:, :6], alone.tokens, atol=1e-5, rtol=0)


def test_what_is_as_in_the_baseline_gets_nothing_and_the_model_is_left_as_it_was(bert):
    ids = torch.randint(5, 90, (1, 6))
    base = ids.clone()
    base[0, 2] = 0
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    tokens = attribute(bert, ids, base, torch.tensor([1]), steps=4).tokens[0]
    assert tokens[2] != 0
    assert (tokens[[0, 1, 3, 4, 5]] == 0).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())
    assert all(p.grad is None for p in bert.parameters())
    assert not bert.bert.embeddings.word._forward_hooks


def test_attention_weights_are_those_that_the_model_attends_with(bert):
    bert.eval()
    ids, mask = torch.randint(5, 90, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    weights = attention_weights(bert.bert, ids, mask)
    assert [tuple(each.shape) for each in weights] == [(2, TINY.num_attention_heads, 7, 7)] * TINY.num_hidden_layers
    torch.testing.assert_close(weights[1].sum(dim=-1), torch.ones(2, 4, 7))
    assert (weights[1][1, :, :, 4:] == 0).all()
    # The first layer's by hand, from its own projections: what `encode` with other attention gives is the same.
    x = bert.bert.embeddings(ids)
    attention = bert.bert.layers[0].attention
    q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    scores = torch.einsum("bnqh,bnkh->bnqk", q, k) / q.shape[-1] ** 0.5
    by_hand = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)
    torch.testing.assert_close(weights[0], by_hand)
    context = (by_hand @ v).transpose(1, 2).flatten(2)
    seen = SimpleNamespace()
    hook = attention.output.register_forward_hook(lambda module, inputs, output: vars(seen).update(context=inputs[0]))
    bert(ids, mask)
    hook.remove()
    torch.testing.assert_close(context, seen.context)

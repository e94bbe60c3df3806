"""Dropout in training mode: at each of its sites the config's own rate, kept values scaled by 1 / (1 - rate).

After the embeddings, the attention and the feed-forward stands `hidden_dropout_prob`, on the attention weights
`attention_probs_dropout_prob`, in front of the head `classifier_dropout`. What was dropped is read off the numbers that
went through the network, at all sites in one pass; shares are held to five standard deviations of a binomial.
"""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from conftest import TINY, perturbed

from minibert.model import BertClassifier

HIDDEN, ATTENTION, HEAD = 0.1, 0.3, 0.55
RATES = {"hidden_dropout_prob": HIDDEN, "attention_probs_dropout_prob": ATTENTION, "classifier_dropout": HEAD}
# Heads wider than the texts are long, so that the attention weights can be solved for; see `attention_weights`.
CONFIG = replace(TINY, hidden_size=48, num_attention_heads=2, intermediate_size=40, **RATES)
BATCH, LENGTH, HEAD_SIZE = 64, 20, 24
SIGMAS = 5
SITES = {
    "embeddings": HIDDEN,
    **{f"attention weights {i}": ATTENTION for i in range(CONFIG.num_hidden_layers)},
    **{f"attention output {i}": HIDDEN for i in range(CONFIG.num_hidden_layers)},
    **{f"feed-forward {i}": HIDDEN for i in range(CONFIG.num_hidden_layers)},
    "head": HEAD,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return perturbed(BertClassifier(CONFIG)).double()


def ids(batch=BATCH):
    return torch.randint(1, CONFIG.vocab_size, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def decisions(model, seed):
    """One pass in training mode -> {site: which values were kept}; that the others are scaled right is checked here."""
    ins, outs, handles = {}, {}, []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: ins.update({name: inputs[0]})))
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: outs.update({name: output})))
    torch.manual_seed(seed)
    model.train()(ids())
    for handle in handles:
        handle.remove()

    kept = {"embeddings": kept_of(outs["bert.embeddings"], outs["bert.embeddings.norm"], HIDDEN)}
    for i in range(CONFIG.num_hidden_layers):
        layer = f"bert.layers.{i}"
        weights = attention_weights(outs[f"{layer}.attention.qkv"], ins[f"{layer}.attention.output"])
        kept[f"attention weights {i}"] = kept_of(*weights, ATTENTION)
        # What LayerNorm gets is the residual, which is never dropped, and what dropout left of the part's output.
        after = ins[f"{layer}.attention_norm"] - ins[layer]
        kept[f"attention output {i}"] = kept_of(after, outs[f"{layer}.attention"], HIDDEN)
        after = ins[f"{layer}.feed_forward_norm"] - ins[f"{layer}.feed_forward"]
        kept[f"feed-forward {i}"] = kept_of(after, outs[f"{layer}.feed_forward"], HIDDEN)
    kept["head"] = kept_of(ins["head.linear"], outs["bert.pooler"], HEAD)
    assert kept.keys() == SITES.keys()
    return kept


def attention_weights(qkv, context):
    """The attention weights (B, N, S, S) that were used, and what they would have been without dropout.

    Used: context = weights v, S equations of H numbers for every query, which v's pseudo-inverse solves as S <= H.
    """
    q, k, v = qkv.view(BATCH, LENGTH, 3, -1, HEAD_SIZE).permute(2, 0, 3, 1, 4)
    context = context.view(BATCH, LENGTH, -1, HEAD_SIZE).transpose(1, 2)
    return context @ torch.linalg.pinv(v), torch.softmax(q @ k.mT / math.sqrt(HEAD_SIZE), -1)


def kept_of(after, before, rate):
    """Which values were kept; the others must be 0, these must be 1 / (1 - rate) as large as before."""
    kept = after.abs() > 1e-3 * before.abs()  # far below what is kept, far above the rounding of a difference
    expected = torch.where(kept, before / (1 - rate), 0.0)
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-9)
    assert (before.abs() > 1e-6).double().mean() > 0.999  # else a value that is kept could look dropped
    return kept


def holds(kept, rate):
    """The share of True is 1 - rate, within SIGMAS."""
    share, sigma = kept.double().mean().item(), math.sqrt(rate * (1 - rate) / kept.numel())
    assert abs(share - (1 - rate)) < SIGMAS * sigma, f"{1 - share:.4f} of {kept.numel()} dropped, not {rate}"


def independent(a, b, what=""):
    """The correlation of two sets of decisions is that of chance; of the first values of each where one has more."""
    n = min(a.numel(), b.numel())
    pair = torch.stack([a.flatten()[:n].double(), b.flatten()[:n].double()])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < SIGMAS / math.sqrt(n), what


def test_every_site_has_its_rate(model):
    for site, kept in decisions(model, seed=2).items():
        holds(kept, SITES[site])


def test_every_value_is_decided_by_itself(model):
    """Not whole tokens, features, heads, queries or keys at a time, nor the same ones in all examples."""
    for site, kept in decisions(model, seed=2).items():
        rate = SITES[site]
        for dim in range(kept.dim()):
            if kept.shape[dim] > 1:
                independent(kept.narrow(dim, 0, 1), kept.narrow(dim, 1, 1), f"{site}, dimension {dim}")
            shares = kept.double().mean(dim=[d for d in range(kept.dim()) if d != dim])
            sigma = math.sqrt(rate * (1 - rate) * len(shares) / kept.numel())
            assert (shares - (1 - rate)).abs().max() < SIGMAS * sigma, f"{site}, dimension {dim}"


def test_sites_are_independent_of_each_other(model):
    for (site, a), (other, b) in combinations(decisions(model, seed=2).items(), 2):
        independent(a, b, f"{site}, {other}")


def test_every_step_draws_anew(model):
    first, second = decisions(model, seed=5), decisions(model, seed=6)
    for name in first:
        independent(first[name], second[name], name)
    model.train()
    torch.manual_seed(7)
    outputs = [model(ids()) for _ in range(3)]
    for a, b in combinations(outputs, 2):
        assert not torch.equal(a, b)


def test_the_same_seed_draws_the_same(model):
    assert all(map(torch.equal, decisions(model, seed=5).values(), decisions(model, seed=5).values()))
    outputs = []
    for seed in (7, 8, 7):
        torch.manual_seed(seed)
        outputs.append(model.train()(ids()))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_eval_mode_drops_nothing(model):
    """The same numbers as a model that has no dropout at all, whose training mode changes nothing either."""
    dry = BertClassifier(
        replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)
    ).double()
    dry.load_state_dict(model.state_dict())
    expected = dry.train()(ids())
    assert torch.equal(model.eval()(ids()), expected)
    assert torch.equal(dry.eval()(ids()), expected)
    state = torch.get_rng_state()
    model(ids())
    assert torch.equal(torch.get_rng_state(), state)  # nor does it draw


@pytest.mark.parametrize("site", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"])
def test_each_rate_alone_makes_training_random(site):
    """Each of the three is used, and used without the others."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    torch.manual_seed(0)
    model = perturbed(BertClassifier(replace(CONFIG, **rates | {site: 0.4}))).train()
    pooled = [model.bert(ids(4))[1] for _ in range(2)]
    assert torch.equal(*pooled) == (site == "classifier_dropout")
    assert not torch.equal(model(ids(4)), model(ids(4)))

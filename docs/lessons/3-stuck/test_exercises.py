"""Tests of lesson 3: your measures beside minibert's probe and verdict."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checks import need, same

from minibert import verdict as ours
from minibert.data.batches import Batch
from minibert.engine.optimizer import linear_schedule
from minibert.initialization import Start, deepnorm, deepnorm_layer
from minibert.lab import probe
from minibert.model import Bert, BertConfig


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mean_cosine(mine):
    vectors = draw(7, 5) + 1
    unit = F.normalize(vectors, dim=1)
    plain = vectors @ vectors.T
    same(
        mine.mean_cosine(vectors), ours.mean_cosine(vectors), "mean_cosine",
        {
            "a row is paired with itself, which always gives 1": (unit @ unit.T).mean(),
            "this is the mean inner product; divide the rows by their norms": (plain.sum() - plain.trace()) / 42,
            "normalize over the D numbers of a row, not over the rows": ours.mean_cosine(F.normalize(vectors, dim=0)),
        },
    )  # fmt: skip


def test_spread(mine):
    vectors = draw(7, 5) + 1
    centred = vectors - vectors.mean(dim=0)
    same(
        mine.spread(vectors), probe.spread(vectors), "spread",
        {
            "it is not divided by the norm": centred.square().sum(dim=1).mean().sqrt(),
            "the mean is over everything; it must be over the rows, (D,)": (vectors - vectors.mean()).norm()
            / vectors.norm(),
            "the mean is over each row; it must be over the rows, (D,)": (
                vectors - vectors.mean(dim=1, keepdim=True)
            ).norm() / vectors.norm(),
        },
    )  # fmt: skip
    same(mine.spread(torch.ones(4, 3)), 0.0, "spread of rows that are all alike")


@pytest.mark.parametrize("counts", [[10, 10, 10], [50, 3, 2], [7, 0, 9]])
def test_constant_answer(mine, counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    accuracy, loss = mine.constant_answer(labels, 3)
    shares = torch.tensor(counts) / sum(counts)
    same(accuracy, max(counts) / sum(counts), "the accuracy of the constant answer")
    same(
        loss, ours.entropy(shares.double()), "the loss of the constant answer",
        {
            "this is -log of the largest frequency; it is a sum over all": -math.log(max(counts) / sum(counts)),
            "this is ln(classes), which holds for even classes alone": math.log(3),
            "this is in bits; take the natural logarithm": ours.entropy(shares.double()) / math.log(2),
        },
    )  # fmt: skip


def cases():
    """Logits, what the head read, and labels of networks of which there is no doubt."""
    labels = torch.arange(120) % 3
    answer, blind = torch.tensor([0.3, 0.0, -0.1]).expand(120, 3), torch.ones(120, 8)
    right = F.one_hot(labels, 3).float()
    return {
        "a network that knows": (3 * right, draw(120, 8), labels),
        "one answer, from vectors that are the same for all": (answer, blind + 1e-6 * draw(120, 8), labels),
        "one answer, from vectors that differ": (answer + 1e-3 * draw(120, 3), draw(120, 8), labels),
        "answers that differ and are no better than chance": (draw(120, 3), draw(120, 8), labels),
        "vectors that are nearly the same, and answers that are right": (right, blind + 1e-6 * draw(120, 8), labels),
        "two kinds of answers, from vectors that are the same for all": (
            torch.where((torch.arange(120) < 20)[:, None], -answer, answer), blind + 1e-6 * draw(120, 8), labels,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(cases()))
def test_verdict(mine, name):
    logits, read, labels = cases()[name]
    want = ours.judge(logits, read, labels.numpy()).name
    got = mine.verdict(logits, read, labels)
    need(got == want, f"{name}: verdict is {got!r}; it must be {want!r}")


def test_spread_after(mine, tiny_classifier):
    ids = torch.randint(5, 60, (6, 9), generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in tiny_classifier.state_dict().items()}
    got = [mine.spread_after(tiny_classifier, ids, t) for t in (0.0, 3e-3)]
    for name, tensor in tiny_classifier.state_dict().items():
        need(torch.equal(tensor, before[name]), f"spread_after changed {name} of the model; move a copy")
    same(got[0], 1.0, "spread_after for t = 0")
    same(got[1], by_hand(tiny_classifier, ids, 3e-3), "spread_after for t = 0.003", {
        "the weights went up the gradient; the loss must fall": by_hand(tiny_classifier, ids, -3e-3),
        "the weights went by t times the gradient; by its sign": by_hand(tiny_classifier, ids, 3e-3, torch.clone),
    }, tolerance=1e-3)  # fmt: skip
    curve = probe.tolerance(tiny_classifier, Batch(ids, None, None, torch.zeros(6, dtype=torch.int64)))["curve"]
    for t, share in curve:
        same(
            mine.spread_after(tiny_classifier, ids, t),
            share,
            f"spread_after for t = {t:.2g}",
            None,
            1e-3,
        )


def by_hand(model, ids, t, direction=torch.sign):
    weights = dict(model.bert.named_parameters())
    read = model.bert(ids)[1]
    loss = F.cross_entropy(model.head(read), torch.zeros(len(ids), dtype=torch.int64))
    gradients = torch.autograd.grad(loss, list(weights.values()))
    moved = {name: w - t * direction(g) for (name, w), g in zip(weights.items(), gradients)}
    return probe.spread(torch.func.functional_call(model.bert, moved, (ids,))[1]) / probe.spread(read)


@pytest.mark.parametrize("warmup", [0, 1, 5, 15])
def test_highest_rate(mine, warmup):
    got = mine.highest_rate(1.6e-3, warmup)
    want = probe.highest_rate(1.6e-3, warmup)
    same(got / want, 1.0, f"highest_rate(1.6e-3, warmup={warmup}), as a share of the probe's,", {
        "the warmup is not used": 1.6e-3 / 0.28 / 10 / want,
        "step 0 has rate 0 in a warmup: step / warmup": 1.6e-3 / 0.28
        / sum(linear_schedule(step + 1, 10**6, warmup) for step in range(10)) / want,
        "a weight moves by only `agreement` of the summed rates": probe.highest_rate(1.6e-3, warmup) * 0.28 / want,
    }, tolerance=1e-3)  # fmt: skip


def test_deepnorm(mine):
    config = BertConfig(
        vocab_size=30, hidden_size=128, num_hidden_layers=9, num_attention_heads=4, intermediate_size=256
    )
    bert = Bert(config)
    deepnorm(Start(bert, Path(), torch.Generator().manual_seed(0), (), {}))
    layer = bert.layers[0]
    a, _ = mine.deepnorm(9, 128, 128)
    same(a, deepnorm_layer(9)["residual_scale"], "deepnorm's a for 9 layers")
    for name, matrix in [
        ("W_O", layer.attention.output.weight),
        ("the feed-forward's first map", layer.feed_forward.input.weight),
    ]:
        fan_out, fan_in = matrix.shape
        gain = (8 * 9) ** -0.25
        std = mine.deepnorm(9, fan_in, fan_out)[1]
        drawn = matrix.std().item()
        same(std / drawn, 1.0, f"deepnorm's std for {name}, as a share of that of minibert's weights,", {
            "the gain is not the standard deviation: times Xavier's": gain / drawn,
            "this is Xavier's, without the gain": math.sqrt(2 / (fan_in + fan_out)) / drawn,
        }, tolerance=0.03)  # fmt: skip

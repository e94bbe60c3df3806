"""Lesson 3: what a network sees of its input, when it has collapsed, and what rate it bears.

One way to solve it.
"""

import math

import torch
import torch.nn.functional as F
from torch.func import functional_call

# Exercise 3.1


def mean_cosine(vectors):
    """(n, D) -> a number: the mean cosine of all pairs of different rows."""
    unit = F.normalize(vectors, dim=1)
    n = len(vectors)
    return ((unit @ unit.T).sum() - n) / (n * (n - 1))


# Exercise 3.2


def spread(vectors):
    """(n, D) -> the rows' root mean square distance from their mean, divided by their root mean square norm.

    0: all rows alike. 1: their mean is 0.
    """
    return (vectors - vectors.mean(dim=0)).norm() / vectors.norm()


# Exercise 3.3


def spread_after(model, ids, t):
    """The share of its spread that what the head reads has left when all weights of the encoder have moved by t.

    model: a BertClassifier in eval mode; ids (B, S). Each weight goes by t against the sign of its gradient. The loss
    is the cross-entropy with class 0 for every input. The head stays as it is, and so does `model` itself.

    model.bert(ids)[1] is what the head reads, (B, D); model.head(...) makes logits of it.
    """
    weights = dict(model.bert.named_parameters())
    read = model.bert(ids)[1]
    loss = F.cross_entropy(model.head(read), torch.zeros(len(ids), dtype=torch.int64))
    gradients = torch.autograd.grad(loss, list(weights.values()))
    moved = {name: w - t * grad.sign() for (name, w), grad in zip(weights.items(), gradients)}
    return (spread(functional_call(model.bert, moved, (ids,))[1]) / spread(read)).item()


# Exercise 3.4


def highest_rate(tolerance, warmup, agreement=0.28, horizon=10):
    """The learning rate behind the warmup at which a weight moves by `tolerance` in the first `horizon` steps.

    In these steps a weight moves by `agreement` times the sum of their rates. Step 0, 1, ... of a warmup has the rate
    times step / warmup; those behind it, or without a warmup, have the whole rate.
    """
    factors = [step / warmup if step < warmup else 1.0 for step in range(horizon)]
    return tolerance / agreement / sum(factors)


# Exercise 3.5


def constant_answer(labels, classes):
    """(n,) whole numbers -> (accuracy, loss) of the best answer that is the same for every input.

    The accuracy is that of the commonest class; the loss is the entropy of the classes' frequencies, in nats.
    """
    shares = torch.bincount(labels, minlength=classes) / len(labels)
    return shares.max().item(), -sum(p * math.log(p) for p in shares.tolist() if p)


# Exercise 3.6


def verdict(logits, read, labels):
    """logits (n, C), read (n, D): what the head reads, labels (n,) -> "learning", "collapsed" or "not yet".

    learning: the mean cross-entropy is more than 2 % below that of the best constant answer. collapsed: it is not, at
    least 99 % of the answers are one class, and the mean cosine of `read` is above 0.999995. not yet: all else.
    """
    _, entropy = constant_answer(labels, logits.shape[1])
    if F.cross_entropy(logits, labels) < 0.98 * entropy:
        return "learning"
    commonest = torch.bincount(logits.argmax(dim=1)).max() / len(logits)
    if commonest >= 0.99 and mean_cosine(read.double()) > 0.999995:
        return "collapsed"
    return "not yet"


# Exercise 3.7


def deepnorm(layers, fan_in, fan_out):
    """(a, std): DeepNorm's residual factor, and the standard deviation of W_V, W_O and the feed-forward.

    N layers LayerNorm(a x + F(x)), a = (2 N)^(1/4). Their matrices are Xavier normal with gain g = (8 N)^(-1/4):
    N(0, std) with std = g sqrt(2 / (fan_in + fan_out)) (Wang et al. 2022; Glorot and Bengio 2010).
    """
    gain = (8 * layers) ** -0.25
    return (2 * layers) ** 0.25, gain * math.sqrt(2 / (fan_in + fan_out))

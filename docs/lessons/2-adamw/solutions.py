"""Lesson 2: AdamW, clipping, the schedule, and mistakes seen in a curve.

One way to solve it.
"""

import math

import torch
import torch.nn.functional as F

# Exercise 2.1


def adamw_step(w, grad, m, v, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """One AdamW update (Loshchilov and Hutter 2019, algorithm 2): the new w, m and v, all of w's shape.

    m and v: the moments so far, zeros in front of the first step; step: 1, 2, ...; lr: this step's learning rate.
    """
    w = w - lr * weight_decay * w
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return w - lr * m_hat / (v_hat.sqrt() + eps), m, v


# Exercise 2.2


def decays(name, parameter):
    """Whether weight decay is for this parameter: matrices and tables, not biases, not LayerNorm."""
    return parameter.dim() >= 2


# Exercise 2.3


def clip(gradients, most):
    """A list of tensors -> the same, scaled by one factor so that the norm of all of them together is at most `most`.

    Where it is already, nothing changes.
    """
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient * min(1.0, most / (norm.item() + 1e-6)) for gradient in gradients]


# Exercise 2.4


def linear_schedule(step, total, warmup):
    """The factor on the learning rate at step 0, 1, ..., total: from 0 up to 1 in `warmup` steps, then down to 0."""
    if step < warmup:
        return step / warmup
    return (total - step) / max(1, total - warmup)


# Exercise 2.5


def fit(model, batches, lr, warmup, most=1.0, weight_decay=0.01):
    """Train `model` with your four functions, a step for each batch. Returns the loss in front of each step.

    model: (B, S) ids -> (B, C) logits; batches: a list of (ids (B, S), labels (B,)). The loss: the mean cross-entropy.
    The order: gradients of this batch alone, clip, this step's rate, update in place.
    """
    parameters = dict(model.named_parameters())
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
    losses = []
    for step, (ids, labels) in enumerate(batches):
        loss = F.cross_entropy(model(ids), labels)
        gradients = clip(torch.autograd.grad(loss, list(parameters.values())), most)
        rate = lr * linear_schedule(step, len(batches), warmup)
        with torch.no_grad():
            for (name, p), grad in zip(parameters.items(), gradients):
                decay = weight_decay if decays(name, p) else 0.0
                new, *moments[name] = adamw_step(p, grad, *moments[name], step + 1, rate, weight_decay=decay)
                p.copy_(new)
        losses.append(loss.item())
    return losses


# Exercise 2.6


def batch_size_of(loss, classes):
    """The notebook's batch size, from the loss that it prints for a network that says each class is equally likely.

    It adds up the mean losses of the batches, and divides by the number of examples.
    """
    return round(math.log(classes) / loss)


# Exercise 2.7


def find_the_bugs():
    """What was wrong with each loop of mystery.svg, A to F, in the words of BUGS in loops.py."""
    return {
        "A": "optimizer.step() missing",  # flat, though the rate is as it should be
        "B": "softmax in front of the cross-entropy",  # learns, but cannot come below ln(e + 5) - 1 = 1.04
        "C": "scheduler.step() once an epoch",  # flat, and the rate hardly moves
        "D": "none",
        "E": "loss divided by the batch size twice",  # starts at ln(6) / 8
        "F": "learning rate a hundred times too high",  # worse than a guess, ln 6
    }

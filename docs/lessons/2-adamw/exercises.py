"""Lesson 2: AdamW, clipping, the schedule, and mistakes seen in a curve.

Write what is missing; the tests say what is wrong.
"""

import math

import torch
import torch.nn.functional as F

# Exercise 2.1


def adamw_step(w, grad, m, v, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """One AdamW update (Loshchilov and Hutter 2019, algorithm 2): the new w, m and v, all of w's shape.

    m and v: the moments so far, zeros in front of the first step; step: 1, 2, ...; lr: this step's learning rate.
    """
    raise NotImplementedError("exercise 2.1")


# Exercise 2.2


def decays(name, parameter):
    """Whether weight decay is for this parameter: matrices and tables, not biases, not LayerNorm."""
    raise NotImplementedError("exercise 2.2")


# Exercise 2.3


def clip(gradients, most):
    """A list of tensors -> the same, scaled by one factor so that the norm of all of them together is at most `most`.

    Where it is already, nothing changes.
    """
    raise NotImplementedError("exercise 2.3")


# Exercise 2.4


def linear_schedule(step, total, warmup):
    """The factor on the learning rate at step 0, 1, ..., total: from 0 up to 1 in `warmup` steps, then down to 0."""
    raise NotImplementedError("exercise 2.4")


# Exercise 2.5


def fit(model, batches, lr, warmup, most=1.0, weight_decay=0.01):
    """Train `model` with your four functions, a step for each batch. Returns the loss in front of each step.

    model: (B, S) ids -> (B, C) logits; batches: a list of (ids (B, S), labels (B,)). The loss: the mean cross-entropy.
    The order: gradients of this batch alone, clip, this step's rate, update in place.
    """
    raise NotImplementedError("exercise 2.5")


# Exercise 2.6


def batch_size_of(loss, classes):
    """The notebook's batch size, from the loss that it prints for a network that says each class is equally likely.

    It adds up the mean losses of the batches, and divides by the number of examples.
    """
    raise NotImplementedError("exercise 2.6")


# Exercise 2.7


def find_the_bugs():
    """What was wrong with each loop of mystery.svg, A to F, in the words of BUGS in loops.py."""
    raise NotImplementedError("exercise 2.7")

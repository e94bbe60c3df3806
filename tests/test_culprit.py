"""minibert/engine/culprit.py: which tensor of a step was not finite first."""

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed

from minibert.data import Examples
from minibert.engine import assemble
from minibert.engine.culprit import first_not_finite
from minibert.engine.machine import Machine
from minibert.engine.optimizer import Schedule
from minibert.model import BertClassifier

EXAMPLES = Examples([np.array([1, 7, 8, 9])] * 4, None, np.array([0, 1, 2, 3]), np.arange(4))


def culprit(spoil, precision="fp32"):
    torch.manual_seed(0)
    machine = Machine(precision, "", torch.device("cpu"))
    engine = assemble(perturbed(BertClassifier(TINY)), [EXAMPLES], machine, Schedule(1e-3, 1, 0), say=str)
    with torch.no_grad():
        spoil(engine.trained)
        for name, copied in engine.state.optimizer.half.items():
            copied.copy_(engine.state.optimizer.parameters[name])
    batch = engine.network.batch(engine.splits[0], [0, 1, 2, 3])
    found = first_not_finite(engine, [batch], engine.count(4))
    assert not any(module._forward_hooks for module in engine.network.model.modules())
    return found


def a_weight(model):
    model.bert.layers[1].attention.output.weight[3, 4] = torch.nan


def an_output(model):
    model.bert.layers[0].feed_forward.input.weight.fill_(1e38)


def the_loss(model):
    model.head.linear.bias[0], model.head.linear.bias[1] = 3e38, -3e38


def a_gradient(model):
    """In float16 the gradient behind a large matrix overflows where the loss does not."""
    model.bert.pooler.dense.weight.mul_(0.01)
    model.head.linear.weight.mul_(2e4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [(str, "the gradient's norm"), (a_weight, "the weight bert.layers.1.attention.output.weight"),
     (an_output, "the output of bert.layers.0.feed_forward.input"), (the_loss, "the loss")],
)  # fmt: skip
def test_the_first_one_is_named(spoil, expected, precision):
    assert culprit(spoil, precision) == expected


def test_a_gradient_is_named_where_all_before_it_was_finite():
    """The last of them, where the backward pass came by first."""
    assert culprit(a_gradient, "fp16") == "the gradient of bert.pooler.dense.bias"

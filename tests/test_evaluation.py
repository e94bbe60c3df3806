"""minibert/evaluation.py: figures against hand-made ones."""

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed

from minibert.data import Examples
from minibert.engine.machine import choose_machine
from minibert.engine.network import Padded
from minibert.evaluation import Outputs, format_report, predict, report
from minibert.model import BertClassifier


def test_report_against_figures_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    guesses = [0, 0, 1, 1, 0, 1]
    logits = torch.nn.functional.one_hot(torch.tensor(guesses), 4).float()
    result = report(Outputs(logits, logits, False), labels, ["a", "b", "c", "d"])
    assert result["n"] == 6
    assert result["accuracy"] == pytest.approx(3 / 6)
    assert result["majority"] == pytest.approx(3 / 6)
    assert result["majority_class"] == "a"
    assert result["confusion"] == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    a, b, c = (result["classes"][name] for name in "abc")
    assert a == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert b == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2})
    assert c["f1"] == 0
    assert result["macro_f1"] == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)  # d neither occurs nor is predicted
    right, wrong = -np.log(np.e / (np.e + 3)), -np.log(1 / (np.e + 3))
    assert result["loss"] == pytest.approx((3 * right + 3 * wrong) / 6, rel=1e-6)


def test_predictions_come_in_the_order_of_the_examples():
    torch.manual_seed(0)
    model = perturbed(BertClassifier(TINY)).train()
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, TINY.vocab_size, n).astype(np.int32) for n in generator.integers(2, 30, 150)]
    examples = Examples(ids, None, np.zeros(150, np.int64), np.arange(150))
    logits, pooled, shut = predict(Padded(model, choose_machine("fp32", torch.device("cpu"))), examples)
    assert not shut
    assert model.training
    model.eval()
    for i in (0, 1, 77, 149):
        alone = torch.from_numpy(ids[i]).long()[None]
        torch.testing.assert_close(logits[i], model(alone)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pooled[i], model.bert(alone)[1][0], rtol=1e-4, atol=1e-5)


def test_printed_report_has_every_class():
    result = report(Outputs(torch.eye(3), torch.eye(3), False), np.array([0, 1, 1]), ["walking", "b", "c"])
    text = format_report("test", result)
    assert "accuracy 0.667" in text
    assert "always 'b': 0.667" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["walking", "b", "c", "not"]
    assert text.endswith("not yet: loss of the best constant answer 0.637, predicted classes have entropy 1.099,"
                         " the commonest 0.333; cosine between inputs 0.000000, logits spread 0.47")  # fmt: skip

"""minibert/verdict.py: what learns, what has collapsed, and above all what has not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY

from minibert.initialization import Init, initialize, layer_config
from minibert.model import BertClassifier
from minibert.seeds import Seeds
from minibert.verdict import advice, in_words, is_shut, judge, mean_cosine, streak

LABELS = np.array([0, 1, 2] * 40)  # balanced: the best constant answer has loss ln 3 and accuracy 1/3
OFFSET = torch.tensor([0.3, 0.0, -0.3])
NOISE = torch.randn(120, 50, generator=torch.Generator().manual_seed(0))
ONE_VECTOR = torch.ones(120, 50)


def vectors(distance):
    """Vectors with a mean cosine of about 1 - distance."""
    return ONE_VECTOR.double() + math.sqrt(distance) * NOISE


def logits(share, signal=0.0, labels=LABELS):
    """An offset, a spread of `share` of it that says nothing, and of the right class `signal`."""
    noise = NOISE[:, :3] - NOISE[:, :3].mean(dim=1, keepdim=True)
    noise = noise / noise.std(dim=0).mean() * OFFSET.std(correction=0)
    return OFFSET + share * noise[: len(labels)] + signal * torch.nn.functional.one_hot(torch.from_numpy(labels), 3)


def test_figures_by_hand():
    labels = np.array([0, 0, 0, 1])
    found = judge(torch.tensor([[2.0, 0], [2, 0], [2, 0], [0, 2]]), torch.eye(4)[[0, 0, 1, 1]], labels)
    assert found.class_entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert (found.top_share, found.prediction_entropy) == (0.75, pytest.approx(found.class_entropy))
    assert found.cosine == pytest.approx(2 / 6)
    assert found.spread == pytest.approx(np.std([1, 1, 1, -1]))
    assert found.offset == pytest.approx(0.5)
    moved = judge(torch.tensor([[3.0, 1], [9, 7], [2, 0], [0, 2]]), torch.eye(4)[[0, 0, 1, 1]], labels)
    assert moved == found  # what softmax does not see does not count


def test_the_cosine_is_the_mean_over_all_pairs():
    x = NOISE.double() + 0.5
    pairs = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    assert mean_cosine(x) == pytest.approx(pairs[~torch.eye(120, dtype=torch.bool)].mean().item(), rel=1e-12)
    assert mean_cosine(ONE_VECTOR.double()) == pytest.approx(1, abs=1e-12)
    assert mean_cosine(x[:1]) is None


@pytest.mark.parametrize(
    ("distance", "share", "name"),
    [
        (0.0, 0.0, "collapsed"),
        (1e-9, 1e-4, "collapsed"),
        (1e-6, 0.1, "collapsed"),  # by the vectors alone: the offset of the logits can be small by chance
        (3e-5, 1e-3, "collapsed"),
        (3e-5, 8e-3, "not yet"),  # a random 2-layer network at its start, which went on to learn
        (1e-5, 9e-3, "not yet"),  # layerscale:0.1 at its start
        (5e-4, 1e-3, "not yet"),  # the network sees its input, though its head makes nothing of it
        (0.1, 0.0, "not yet"),
    ],
)
def test_collapsed_is_blind_and_constant(distance, share, name):
    found = judge(logits(share), vectors(distance), LABELS)
    assert found.top_share == 1
    assert found.name == name
    if distance:
        assert 1 - found.cosine == pytest.approx(distance, rel=0.2)
    assert found.spread / found.offset == pytest.approx(share, rel=0.1)
    assert judge(logits(share), vectors(distance), LABELS, shut=True).name == "not yet"


def test_collapsed_gives_one_answer_and_no_better_loss():
    two = logits(0.0)
    two[:2] = -OFFSET  # 2 of 120 answers differ
    assert judge(two, ONE_VECTOR, LABELS).name == "not yet"
    two[1] = OFFSET
    assert judge(two, ONE_VECTOR, LABELS).name == "collapsed"
    assert judge(logits(0.0, signal=0.02), ONE_VECTOR, LABELS).name == "collapsed"  # 1.13 where a constant has 1.10
    wobble = 1e-4 * torch.nn.functional.one_hot(torch.from_numpy(LABELS), 3) + torch.tensor([2e-4, 0, 0])
    assert judge(wobble, ONE_VECTOR, LABELS).name == "collapsed"  # 1e-4 nats below, by what rounding left of the inputs
    better = torch.zeros(120, 3) + logits(0.0, signal=0.01) - OFFSET
    better[:, 0] += 0.02
    assert judge(better, ONE_VECTOR, LABELS).name == "not yet"  # one answer, yet below: something still goes through


@pytest.mark.parametrize(
    ("signal", "name"),
    [(0.0, "not yet"), (0.03, "not yet"), (0.3, "learning"), (3.0, "learning")],  # the margin is 0.022 nats
)
def test_learning_by_the_loss(signal, name):
    even = logits(0.0, signal) - OFFSET
    even[:, 0] += 1.01 * signal  # the answer is always 0: the loss alone tells
    assert judge(even, vectors(0.3), LABELS).name == name


def test_learning_by_the_accuracy_though_the_loss_is_bad():
    sure = 20.0 * torch.nn.functional.one_hot(torch.from_numpy(LABELS), 3)
    for wrong, name in ((40, "learning"), (78, "not yet")):  # 42 of 120 right: 0.4 standard errors above a third
        answers = sure.clone()
        answers[:wrong] = sure[:wrong].roll(1, dims=1)
        assert torch.nn.functional.cross_entropy(answers, torch.from_numpy(LABELS)) > math.log(3)
        assert judge(answers, vectors(0.3), LABELS).name == name


def test_a_rare_class_is_ranked_though_never_predicted():
    labels = np.array([0] * 990 + [1] * 10)
    said = torch.zeros(1000, 2)
    said[:, 0] = 6.0
    said[990:, 0] = 1.0
    found = judge(said, torch.ones(1000, 4), labels)
    assert (found.top_share, found.name) == (1.0, "learning")


def test_chance_is_seldom_taken_for_learning():
    generator = torch.Generator().manual_seed(0)
    names = []
    for _ in range(300):
        said = torch.randn(100, 3, generator=generator) * 0.1
        labels = torch.randint(0, 3, (100,), generator=generator).numpy()
        names.append(judge(said, vectors(0.3)[:100], labels).name)
    assert names.count("collapsed") == 0
    assert names.count("learning") <= 15


@pytest.mark.parametrize("labels", [[0], [0, 0, 0, 0], [2, 2]])
def test_one_example_or_one_class_cannot_tell(labels):
    labels = np.array(labels)
    for said in (logits(0.0, labels=labels), logits(0.0, 9.0, labels)):
        assert judge(said, ONE_VECTOR[: len(labels)], labels).name == "not yet"


def test_two_examples_are_not_enough_to_have_learned():
    labels = np.array([0, 1])
    assert judge(logits(0.0, 1.0, labels), vectors(0.3)[:2], labels).name == "not yet"
    assert judge(logits(0.0, labels=labels), ONE_VECTOR[:2], labels).name == "collapsed"


def test_logits_that_are_no_numbers_are_no_verdict():
    assert judge(torch.full((120, 3), math.nan), ONE_VECTOR, LABELS).name == "not yet"


@pytest.mark.parametrize(
    ("scheme", "shut"), [("random", False), ("rezero", True), ("layerscale:0.02", True), ("layerscale:0.1", False)]
)
def test_gates_that_have_not_opened(tiny, scheme, shut):
    init = Init.parse(scheme)
    model = BertClassifier(layer_config(init, replace(TINY)))
    initialize(model, init, tiny, Seeds())
    assert is_shut(model.bert) == shut
    if shut:
        with torch.no_grad():
            model.bert.layers[1].feed_forward_gate.weight += 0.1
        assert not is_shut(model.bert)


def rows(*names, entropy=1.0):
    return [{"step": 10 * i + 10, "verdict": {"name": name, "class_entropy": entropy}} for i, name in enumerate(names)]


def test_since_when():
    c, n = "collapsed", "not yet"
    assert streak(rows(n, c, c)) == [20, 30]
    assert streak(rows(c, n, c)) == [30]
    assert streak(rows(c, n)) == streak([]) == streak([{"step": 1}]) == []  # the last: of an older version
    assert in_words(rows(n, c, c)) == "collapsed since step 20"
    assert in_words(rows(c, n)) == "not yet"


def test_advice():
    assert advice(rows("collapsed", "learning"), True) == []
    assert advice(rows("not yet", entropy=0.0), True) == []
    said = advice(rows("not yet", "collapsed"), True)
    assert said[0].startswith("collapsed since step 20: one answer for every input")
    assert "lower --lr" in said[1]
    assert "--bias-correction" not in said[1]  # it is on
    assert "--bias-correction (Mosbach 2021" in advice(rows("collapsed"), False)[1]
    assert "more --epochs" in advice(rows("not yet"), True)[1]
    for source in ("Mosbach 2021", "Wang 2022", "Touvron 2021", "Bachlechner 2020", "Zhang 2021"):
        assert sum(source in line for line in said) == 1

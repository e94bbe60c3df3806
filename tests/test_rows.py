"""minibert/training/rows.py: leaving rows out is exact."""

import copy

import numpy as np
import torch
from conftest import TINY, perturbed

from minibert.data import Examples
from minibert.data.batches import collate
from minibert.model import BertClassifier
from minibert.precision import LossScaler, choose_precision
from minibert.training import optimizer as optimizer_module
from minibert.training.loop import training_step
from minibert.training.optimizer import AdamW
from minibert.training.rows import OccurringRows

PRECISION = choose_precision("fp32", torch.device("cpu"))


def examples():
    generator = np.random.default_rng(0)
    ids = [generator.choice([2, 9, 30, 31, 150], n).astype(np.int32) for n in (4, 7, 5, 6)]
    return Examples(ids, None, np.array([0, 1, 2, 3]), np.arange(4))


def model():
    torch.manual_seed(0)
    out = perturbed(BertClassifier(TINY))
    for module in out.modules():  # other random numbers on either side would not be a difference in the method
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return out


def train(net, data, pad_id):
    optimizer = AdamW(net.named_parameters(), weight_decay=0.1)
    for step in range(10):
        batch = [collate(data, [step % 4, (step + 1) % 4], pad_id)]
        training_step(net, optimizer, batch, 1e-3 * (step + 1), 1.0, PRECISION, LossScaler(False))
    return optimizer


def test_training_the_occurring_rows_equals_training_all(monkeypatch):
    # Joined, the norm is summed in another order, and the keys' biases, whose gradient is rounding, follow that.
    monkeypatch.setattr(optimizer_module, "SMALL", 0)
    full = model()
    small = copy.deepcopy(full)
    train(full, examples(), 0)
    rows = OccurringRows(small, [examples()])
    assert small.bert.embeddings.word.weight.shape == (6, 24)  # the five ids, and [PAD]
    optimizer = train(small, rows.renumber(examples()), rows.pad_id)
    with rows.whole(optimizer.shrinkage) as whole:
        for (name, a), b in zip(full.state_dict().items(), whole.state_dict().values()):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)
        idle = [i for i in range(TINY.vocab_size) if i not in rows.ids]
        start = model().bert.embeddings.word.weight
        moved = whole.bert.embeddings.word.weight[idle] / start[idle]
        torch.testing.assert_close(moved, torch.full_like(moved, optimizer.shrinkage), rtol=1e-5, atol=0)
        assert optimizer.shrinkage < 0.996


def test_the_model_is_small_again_afterwards():
    net = model()
    rows = OccurringRows(net, [examples()])
    with rows.whole(1.0):
        assert net.bert.embeddings.word.weight.shape == (TINY.vocab_size, 24)
        assert net.bert.embeddings.word.padding_idx == 0
    assert net.bert.embeddings.word.weight.shape == (6, 24)
    assert net.bert.embeddings.word.padding_idx == rows.pad_id == 0


def test_renumbering_keeps_the_words():
    data = examples()
    rows = OccurringRows(model(), [data])
    for before, after in zip(data.ids, rows.renumber(data).ids):
        assert np.array_equal(rows.ids[after], before)


def test_pad_is_kept_wherever_it_stands():
    net = model()
    net.config = net.bert.config = copy.copy(TINY)
    object.__setattr__(net.config, "pad_token_id", 77)
    rows = OccurringRows(net, [examples()])
    assert rows.ids[rows.pad_id] == 77
    assert rows.pad_id == 4

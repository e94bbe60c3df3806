"""minibert/engine/words.py: leaving rows out is exact."""

import copy

import numpy as np
import torch
from conftest import TINY, one_step, perturbed, without_keys

from minibert.data import Examples
from minibert.data.batches import collate
from minibert.engine import optimizer as optimizer_module
from minibert.engine.machine import choose_machine
from minibert.engine.optimizer import AdamW
from minibert.engine.words import Words
from minibert.model import BertClassifier

PRECISION = choose_machine("fp32", torch.device("cpu"))


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
        one_step(net, optimizer, batch, 1e-3 * (step + 1), 1.0, PRECISION)
    return optimizer


def test_training_the_occurring_words_equals_training_all(monkeypatch):
    # Joined, the norm is summed in another order, and what follows rounding follows that.
    monkeypatch.setattr(optimizer_module, "JOINED_BELOW", 0)
    full = model()
    original = copy.deepcopy(full)
    train(full, examples(), 0)
    words = Words([examples()], TINY.pad_token_id)
    small = words.fewer(original)
    assert small.bert.embeddings.word.weight.shape == (6, 24)  # the five ids, and [PAD]
    optimizer = train(small, words.renumber(examples()), words.pad_id)
    whole = words.all(original, small, optimizer.shrinkage.item())
    for (name, a), b in zip(full.state_dict().items(), whole.state_dict().values()):
        a, b = without_keys(name, a), without_keys(name, b)
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)
    idle = [i for i in range(TINY.vocab_size) if i not in words.ids]
    start = model().bert.embeddings.word.weight
    moved = whole.bert.embeddings.word.weight[idle] / start[idle]
    torch.testing.assert_close(moved, torch.full_like(moved, optimizer.shrinkage.item()), rtol=1e-5, atol=0)
    assert optimizer.shrinkage < 0.996


def test_the_small_model_shares_all_tensors_but_the_words():
    net = model()
    words = Words([examples()], TINY.pad_token_id)
    small = words.fewer(net)
    own = dict(net.named_parameters())
    for name, p in small.named_parameters():
        assert (p is own[name]) == (name != "bert.embeddings.word.weight"), name
    assert net.bert.embeddings.word.weight.shape == (TINY.vocab_size, 24)
    assert net.bert.embeddings.word.padding_idx == 0
    assert small.bert.embeddings.word.padding_idx == words.pad_id == 0
    whole = words.all(net, small, 1.0)
    assert whole.bert.embeddings.word.weight.shape == (TINY.vocab_size, 24)
    assert whole.bert.embeddings.word.padding_idx == 0


def test_renumbering_keeps_the_words():
    data = examples()
    words = Words([data], TINY.pad_token_id)
    for before, after in zip(data.ids, words.renumber(data).ids):
        assert np.array_equal(words.ids[after], before)


def test_pad_is_kept_wherever_it_stands():
    words = Words([examples()], 77)
    assert words.ids[words.pad_id] == 77
    assert words.pad_id == 4

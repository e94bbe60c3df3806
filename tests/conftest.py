"""A tiny checkpoint that all tests share, and a cache folder of their own."""

import json
import os
import signal
import string
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT, flags, obey  # noqa: F401  fixtures

from minibert.checkpoint import save_pretrained
from minibert.engine.network import Padded
from minibert.engine.optimizer import LossScaler
from minibert.engine.step import State, Sums, classification, step
from minibert.model import Bert, BertConfig, attend
from minibert.training import loop

sys.path.insert(0, str(ROOT))  # train.py and eval.py

# Tiny models gain nothing from threads, and lose much where the cores are busy.
THREADS = os.environ.get("TEST_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = THREADS  # for the processes that tests start
torch.set_num_threads(int(THREADS))

# A shell that starts the tests in the background has Ctrl-C ignored, by them and by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *map(str, range(100)),
    *string.ascii_lowercase,
    *(f"##{c}" for c in string.ascii_lowercase + string.digits),
    *".-",
]

# Every number differs from every other, so that no two can be swapped unseen.
TINY = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    hidden_dropout_prob=0.11,
    attention_probs_dropout_prob=0.17,
    classifier_dropout=0.23,
    max_position_embeddings=64,
    type_vocab_size=3,
    layer_norm_eps=1e-7,
    initializer_range=0.05,
    num_labels=5,
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a checkpoint: two layers, 24 wide, a vocabulary of numbers and letters."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    torch.manual_seed(0)
    save_pretrained(perturbed(Bert(TINY)), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's own cache; names of checkpoints mean those of the checkout."""
    monkeypatch.setenv("MINIBERT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def labels_of(folder):
    """The class names that FOLDER/config.json holds, in the order of the logits."""
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    return [names[str(place)] for place in range(len(names))]


@torch.no_grad()
def perturbed(model):
    """Move every tensor off its start: a test with zero biases or unit norms cannot see them mixed up."""
    for tensor in model.parameters():
        tensor += torch.randn_like(tensor) * 0.1
    return model


def seeing(mask):
    """Attention bound to a mask (B, 1, 1, S), None: no padding."""
    return partial(attend, mask=mask)


def recording(monkeypatch, change=lambda engine: engine):
    """From now on every step of `train` leaves its mean loss, the rate asked for, and whether weights moved."""
    seen, real = [], loop.engine_of

    def engine_of(*arguments):
        engine = change(real(*arguments))

        def step(batches, count):
            optimizer, sums = engine.state.optimizer, engine.state.sums
            before, taken = sums.total.clone(), int(optimizer.steps)
            engine.step(batches, count)
            loss, _, examples, *_ = (sums.total - before).tolist()
            seen.append(
                SimpleNamespace(
                    loss=loss / examples, rate=engine.schedule.rate(taken), stepped=int(optimizer.steps) > taken
                )
            )

        return replace(engine, step=step)

    monkeypatch.setattr(loop, "engine_of", engine_of)
    return seen


def without_keys(name, tensor):
    """What mathematics determines of a parameter after training: a key's bias adds the same to all scores of a query,
    which softmax does not see. Its gradient is rounding alone, another on each processor, and Adam makes steps of it.
    """
    if not name.endswith("attention.qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def one_step(
    model, optimizer, batches, rate, clip, machine, scaler=None, network=Padded, loss=classification
):  # fmt: skip
    """The step that `train` takes, on a model and batches of a test's own. What it saw, and whether weights moved."""
    network = network(model.train(), machine)
    sums = Sums(optimizer.device)
    numbers = optimizer.numbers(torch.full((1000,), rate, dtype=torch.float64), torch.arange(1, 1001))
    state = State(network, optimizer, scaler or LossScaler(False), sums, numbers, clip, loss)
    count = sum(len(batch.labels) for batch in batches)
    step(state, batches, torch.tensor(float(count)))
    total, correct, seen, skipped = sums.total.unbind()
    assert seen == count
    return SimpleNamespace(loss_sum=total, correct=correct, count=count, stepped=not skipped)

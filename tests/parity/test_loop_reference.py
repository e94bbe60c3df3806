"""A whole run of `train` on real data against the same loop written with the reference model and torch's optimizer.

Dropout off. The parts that need transformers (extra `parity`) are skipped without it; those about accumulation and
padding always run.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, perturbed, recording
from safetensors.torch import load_file

from minibert import setup as preparing
from minibert.config import TrainConfig
from minibert.data import Dataset, Examples, load_dataset
from minibert.data.batches import collate
from minibert.engine.network import Padded
from minibert.model import BertClassifier
from minibert.seeds import derive
from minibert.setup import prepare
from minibert.training import loop
from minibert.training.run import train

CHECKPOINT = ROOT / "weights" / "minilm-l6"
DRY = replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)


@pytest.fixture
def reference_of():
    """Our model -> the reference's with the same weights."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'minibert[parity]'")
    from test_reference import reference_of

    return reference_of


def part_of(examples, count):
    """`count` examples from all over the split. The word [PAD] stands in one of them, as a text may hold it."""
    chosen = range(0, len(examples), len(examples) // count)[:count]
    ids = [examples.ids[i].copy() for i in chosen]
    ids[0][2] = 0
    return Examples(
        ids,
        examples.types and [examples.types[i] for i in chosen],
        examples.labels[list(chosen)],
        examples.rows[list(chosen)],
    )


@pytest.fixture(params=["packed", "padded"])
def run(request, monkeypatch):
    """TrainConfig -> what `train` made of the first examples of its data: losses of the steps, and the folder. By the
    network that suits a CPU, and by the one for other devices.
    """
    if request.param == "padded":
        monkeypatch.setattr(loop, "assemble", partial(loop.assemble, network=Padded))

    def go(config, examples):
        def few(*arguments) -> Dataset:
            data = load_dataset(*arguments)
            return replace(data, train=part_of(data.train, examples), val=part_of(data.val, 6))

        with monkeypatch.context() as patch:
            patch.setattr(preparing, "load_dataset", few)
            setup = prepare(config, lambda _: None)
            seen = recording(patch)
            path = train(config, lambda _: None)
        return setup, [step.loss for step in seen], path

    return go


def reference_run(reference, config, data):
    """The loop as it is written everywhere."""
    from transformers import get_linear_schedule_with_warmup

    spared = ("bias", "LayerNorm.weight")
    named = list(reference.named_parameters())
    groups = [
        {"params": [p for n, p in named if not n.endswith(spared)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if n.endswith(spared)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), eps=1e-8)
    size = config.batch_size * config.accumulate
    total = config.epochs * math.ceil(len(data.train) / size)
    warmup = math.ceil(config.warmup * total) if config.warmup < 1 else config.warmup
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    losses = []
    reference.train()
    for epoch in range(1, config.epochs + 1):
        generator = torch.Generator().manual_seed(derive(0, "order", epoch))
        order = torch.randperm(len(data.train), generator=generator).tolist()
        for first in range(0, len(order), size):
            ids, mask, _, labels = collate(data.train, order[first : first + size])
            loss = reference(ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def compare(setup, losses, path, reference, config, weights=5e-6, key_bias=None):
    """Every loss to 1e-5 relative, every final weight within `weights`; each moved at least ten times as far."""
    start = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    expected_losses = reference_run(reference, config, setup.data)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    saved, expected = load_file(path / "model" / "model.safetensors"), reference.state_dict()
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        # The key's bias adds the same to all scores of a query, so its gradient is zero but for rounding, and Adam
        # enlarges rounding to steps of any size up to the rate's. It changes no output.
        noise = name.endswith("self.key.bias")
        assert (saved[name] - tensor).abs().max() <= (key_bias or config.lr if noise else weights), name
        if not noise:
            assert (tensor - start[name]).abs().max() > 10 * weights, f"{name} did not move: nothing is shown"


# Lengths from 38 to 54 tokens, so that most batches hold padding; rates at which every weight moves by some 0.01.
TINY_RUN = {
    **{"encoding": "decimals", "steps": 4, "dropout": "0", "precision": "fp32"},
    **{"lr": 1e-3, "warmup": 0.2, "weight_decay": 0.1, "clip": 1.5},
}


@pytest.mark.parametrize(
    ("examples", "change"),
    [
        (100, {"epochs": 1}),  # 50 steps
        (101, {"epochs": 1, "accumulate": 3}),  # the last step holds 5 examples, its last batch 1
        (40, {"epochs": 3, "warmup": 7, "clip": 0.05, "batch_size": 4}),
    ],
)
def test_a_run_is_the_references_loop(run, reference_of, tiny, tmp_path, monkeypatch, examples, change):
    # The last epoch is the one to keep, however good: what is compared are the final weights.
    accuracy, real = iter((0.1, 0.2, 0.3)), loop.report
    monkeypatch.setattr(loop, "report", lambda *a: real(*a) | {"accuracy": next(accuracy)})
    config = TrainConfig(model=str(tiny), out=str(tmp_path / "run"), **{**TINY_RUN, **change})
    setup, losses, path = run(config, examples)
    assert len(losses) == config.epochs * math.ceil(examples / config.batch_size / config.accumulate)
    compare(setup, losses, path, reference_of(setup.model), config)


@pytest.mark.skipif(
    not CHECKPOINT.is_dir(), reason="weights/minilm-l6 is not there: python -m minibert fetch minilm-l6"
)
def test_fifty_steps_with_real_weights(run, reference_of, tmp_path):
    """The settings a user would take: fine-tuning the real encoder on the motion data, at batch 2."""
    config = TrainConfig(
        model=str(CHECKPOINT), dropout="0", precision="fp32", lr=2e-5, epochs=1, out=str(tmp_path / "run")
    )
    setup, losses, path = run(config, 100)
    assert len(losses) == 50
    compare(setup, losses, path, reference_of(setup.model), config, weights=1e-5, key_bias=1e-5)
    (path / "model" / "model.safetensors").unlink()  # 90 MB, and pytest keeps the folders of three runs


# ------------------------------------------------------------------------------------ accumulation and padding


def test_accumulation_is_a_larger_batch_over_many_steps(run, tiny, tmp_path):
    small, large = (
        run(TrainConfig(model=str(tiny), out=str(tmp_path / name), **{**TINY_RUN, **change}), 107)
        for name, change in (
            ("small", {"epochs": 1, "batch_size": 2, "accumulate": 4}),
            ("large", {"epochs": 1, "batch_size": 8, "accumulate": 1}),
        )
    )
    assert small[1] == pytest.approx(large[1], rel=1e-5)
    assert len(small[1]) == 14
    ours, theirs = (load_file(path / "model" / "model.safetensors") for _, _, path in (small, large))
    for name, tensor in theirs.items():
        if not name.endswith("self.key.bias"):  # see compare
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5, msg=name)


def classifier(pool):
    torch.manual_seed(0)
    return perturbed(BertClassifier(DRY, pool=pool)).double()


def examples(types):
    """Of 9, 4, 1 and 6 tokens; the word [PAD] among the real ones too."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, TINY.vocab_size, (n,), generator=generator).numpy() for n in (9, 4, 1, 6)]
    kinds = [torch.randint(0, 3, (len(row),), generator=generator).numpy() for row in ids] if types else None
    labels = torch.tensor([0, 3, 1, 4]).numpy()
    return Examples(ids, kinds, labels, labels)


@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_padded_batch_is_its_examples_one_by_one(pool, types):
    data = examples(types)
    padded, alone = classifier(pool), classifier(pool)
    ids, mask, kinds, labels = collate(data, range(4))
    assert mask.sum(1).tolist() == [9, 4, 1, 6]
    logits = padded(ids, mask, kinds)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    for place in range(4):
        one_ids, one_mask, one_kinds, label = collate(data, [place])
        assert one_mask is None
        one = alone(one_ids, None, one_kinds)
        torch.testing.assert_close(logits[place], one[0], rtol=0, atol=1e-12)
        F.cross_entropy(one, label).backward()
    for (name, a), b in zip(padded.named_parameters(), alone.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12, msg=name)
        assert b.grad.abs().max() > (0 if name.endswith("qkv.bias") else 1e-3), name


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_no_gradient_comes_out_of_padding(pool):
    """Through the whole classifier and its loss: to the embedded padding, to its words, positions and types."""
    model, data = classifier(pool), examples(types=True)
    other = 77  # a word that may learn: the embedding holds [PAD]'s own row still, which would hide a leak
    data = replace(data, ids=[(row % 70).astype(row.dtype) for row in data.ids])
    ids, mask, kinds, labels = collate(data, [1, 2, 3], pad_id=other)
    kinds = torch.where(mask, kinds.clamp(max=1), 2)
    embedded = []
    model.bert.embeddings.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    model.bert.embeddings.register_forward_hook(lambda _module, _inputs, output: output.retain_grad())
    F.cross_entropy(model(ids, mask, kinds), labels).backward()
    gradient = embedded[0].grad
    assert gradient[~mask].abs().max() == 0
    assert gradient[mask].abs().amax(-1).min() > 0
    table = model.bert.embeddings
    assert table.word.weight.grad[other].abs().max() == 0
    assert table.token_type.weight.grad[2].abs().max() == 0
    assert table.token_type.weight.grad[:2].abs().amax(-1).min() > 0
    assert table.position.weight.grad[6:].abs().max() == 0
    assert table.position.weight.grad[:6].abs().amax(-1).min() > 0


def test_the_row_of_the_padding_word_holds_still():
    """Even where [PAD] stands among the real tokens, as in the reference: its row gets no gradient."""
    model, data = classifier("mean"), examples(types=False)
    ids, mask, _, labels = collate(data, range(4))
    ids[:, 0] = 0
    F.cross_entropy(model(ids, mask), labels).backward()
    used = ids[mask].unique()
    assert model.bert.embeddings.word.weight.grad[0].abs().max() == 0
    assert model.bert.embeddings.word.weight.grad[used[used > 0]].abs().amax(-1).min() > 0

"""bf16 and fp16 against float32, on a CPU: how far off they may be, and what loss scaling is for.

One rounding step of the format, `torch.finfo(dtype).eps`, is the unit of all tolerances: 0.0078 for bf16, 0.00098 for
fp16. Bounds are on both sides: a format that is not used at all is too good, a coarser one, or one that the weights
and the LayerNorm run in too, is too bad.
"""

import copy
import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, one_step, perturbed, recording, without_keys

from minibert.config import TrainConfig
from minibert.data import Examples
from minibert.data.batches import Batch
from minibert.engine.machine import DTYPES, choose_machine
from minibert.engine.network import Padded
from minibert.engine.optimizer import AdamW, LossScaler, linear_schedule
from minibert.evaluation import predict
from minibert.model import BertClassifier
from minibert.training import run

DRY = replace(
    TINY, hidden_size=48, intermediate_size=160, num_hidden_layers=3,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0,
)  # fmt: skip


def classifier(seed=0):
    torch.manual_seed(seed)
    return perturbed(BertClassifier(DRY))


def batch(seed, examples=32, length=24):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, DRY.vocab_size, (examples, length), generator=generator)
    mask = torch.arange(length) < torch.randint(3, length + 1, (examples, 1), generator=generator)
    return Batch(ids, mask, None, torch.randint(0, DRY.num_labels, (examples,), generator=generator))


def precision_of(name):
    return choose_machine(name, torch.device("cpu"))


def gradients(model, precision, scaler, inputs):
    """What one real training step computes, its scale taken out; the weights stand still."""
    model = copy.deepcopy(model)
    result = one_step(model, AdamW(model.named_parameters(), weight_decay=0.0), [inputs], 0.0, 0.0, precision, scaler)
    assert result.stepped
    return result, {name: p.grad.double() / scaler.scale for name, p in model.named_parameters()}


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def off(found, truth):
    return ((found.double() - truth.double()).norm() / truth.double().norm()).item()


def examples(inputs):
    """A batch, as the split of a data set."""
    rows = [row[keep].numpy() for row, keep in zip(inputs.input_ids, inputs.attention_mask)]
    return Examples(rows, None, inputs.labels.numpy(), np.arange(len(rows)))


def half_weights(model, dtype, inputs):
    """What autocast is there to avoid: weights, LayerNorm and sums in the format too. Logits and gradients."""
    model = copy.deepcopy(model).to(dtype)
    logits = model(*inputs[:3])
    (F.cross_entropy(logits.float(), inputs.labels) * 1024).backward()
    return logits, {name: p.grad.double() / 1024 for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_logits_and_gradients_are_within_a_few_rounding_steps(name):
    step = torch.finfo(DTYPES[name]).eps
    worst, worst_half = 0.0, 0.0
    for seed in range(3):
        model, inputs = classifier(seed), batch(seed)
        truth = predict(Padded(model, precision_of("fp32")), examples(inputs)).logits
        logits = predict(Padded(model, precision_of(name)), examples(inputs)).logits
        assert logits.dtype == torch.float32
        assert 0.3 * step < off(logits, truth) < 2 * step

        exact, wanted = gradients(model, precision_of("fp32"), LossScaler(False), inputs)
        result, found = gradients(model, precision_of(name), LossScaler(name == "fp16", 2.0**10), inputs)
        assert result.loss_sum.dtype == torch.float64  # the sum of 32 losses would lose its last digits in the format
        assert off(result.loss_sum, exact.loss_sum) < 0.2 * step
        # The angle between the gradients is about as large as this: a cosine of 1 - (4 * step)^2 / 2 at least.
        assert 0.3 * step < off(flat(found), flat(wanted)) < 4 * step
        each = {part: off(found[part], wanted[part]) for part in wanted}
        assert max(each.values()) < 10 * step, max(each, key=each.get)
        worst += max(each.values())
        _, coarse = half_weights(model, DTYPES[name], inputs)
        worst_half += max(off(coarse[part], wanted[part]) for part in wanted)
    assert worst < 0.6 * worst_half


def test_gradients_too_small_for_fp16_survive_by_loss_scaling():
    model, inputs = classifier(), batch(0)
    with torch.no_grad():
        model.head.linear.weight *= 1e-3  # so much of what goes down into the encoder is below 6e-8, fp16's smallest
    _, wanted = gradients(model, precision_of("fp32"), LossScaler(False), inputs)
    _, lost = gradients(model, precision_of("fp16"), LossScaler(False), inputs)
    _, found = gradients(model, precision_of("fp16"), LossScaler(True), inputs)
    step = torch.finfo(torch.float16).eps
    for part in wanted:
        assert off(found[part], wanted[part]) < 4 * step, part
        if part.startswith("bert.embeddings."):
            assert off(lost[part], wanted[part]) > 50 * step, f"{part}: nothing is shown"


STEPS, FORCED = 14, 5


def train(force, patience=2000, scale=2.0**12):
    """STEPS steps in fp16. Before step FORCED the scale may be raised so far that the gradient overflows.

    Returns:
        the weights at the end, but for the keys' biases, the loss of every step taken, and the scale at every try.
    """
    model = classifier()
    optimizer, scaler = AdamW(model.named_parameters(), weight_decay=0.1), LossScaler(True, scale, patience)
    losses, scales, taken = [], [], 0
    while taken < STEPS:
        if force and taken == FORCED and len(scales) == FORCED:
            scaler.scale.fill_(2.0**40)
        before = [p.detach().clone() for p in model.parameters()]
        moments = {name: t.clone() for name, t in optimizer.state_dict().items()}
        scales.append(scaler.scale.item())
        lr = 3e-3 * linear_schedule(taken, STEPS, 4)
        result = one_step(model, optimizer, [batch(taken, 8)], lr, 1.0, precision_of("fp16"), scaler)
        overflow = not all(p.grad.isfinite().all() for p in model.parameters())
        assert result.stepped != overflow
        if overflow:
            assert scaler.scale == scales[-1] / 2
            assert scaler.good_steps == 0
            assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before))
            assert all(torch.equal(t, moments[name]) for name, t in optimizer.state_dict().items())
        else:
            assert any(not torch.equal(p, was) for p, was in zip(model.parameters(), before)) == (lr > 0)
            losses.append((result.loss_sum / result.count).item())
        assert result.loss_sum.isfinite()
        taken += result.stepped
    weights = [without_keys(name, p.detach()).flatten() for name, p in model.named_parameters()]
    return torch.cat(weights), losses, scales


def test_an_overflow_leaves_no_trace():
    """Some 20 tries fail; then training goes on from where it was, as if they had never been made."""
    smooth, smooth_losses, scales = train(force=False)
    assert scales == [2.0**12] * STEPS
    assert len(set(smooth_losses)) == STEPS
    bumpy, bumpy_losses, scales = train(force=True)
    skipped = len(scales) - STEPS
    assert skipped > 10
    assert scales[:FORCED] == [2.0**12] * FORCED
    assert scales[FORCED] == 2.0**40
    assert scales[-1] == 2.0 ** (40 - skipped)
    assert bumpy_losses == pytest.approx(smooth_losses, rel=torch.finfo(torch.float16).eps)
    apart = (bumpy - smooth).abs()
    assert apart.mean() < 1e-5  # of weights that moved by some 0.01
    # None by more than a tenth of that; the keys' biases are left aside. How far in truth hangs on the order in which a
    # processor adds up: 2e-6 and 6e-5 were seen, on one thread and on two.
    assert apart.max() < 1e-3


def test_a_scale_that_grows_meets_its_limit_and_comes_back():
    """Doubled after every two good steps, it overflows every few tries, and all steps are taken nevertheless."""
    _, losses, scales = train(force=False, patience=2, scale=2.0**17)
    assert len(losses) == STEPS
    changes = [b / a for a, b in pairwise(scales)]
    assert set(changes) == {0.5, 1.0, 2.0}
    assert changes.count(0.5) == len(scales) - STEPS > 1


def test_a_run_whose_first_scale_is_too_high(tiny, tmp_path, monkeypatch):
    """The first rates of the warmup go to the first steps that are taken, not to those that overflow."""
    rows = [{"text": " ".join(str((7 * i + j) % 100) for j in range(5)), "label": "ab"[i % 2]} for i in range(100)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    places = {"data": str(tmp_path / "numbers.jsonl"), "model": str(tiny), "out": str(tmp_path / "run")}
    config = TrainConfig(**places, precision="fp16", epochs=2, batch_size=4, warmup=5, lr=1e-3)

    def higher(engine):
        engine.state.scaler.scale.fill_(2.0**24)
        return engine

    seen = recording(monkeypatch, higher)
    path = run.train(config, lambda _: None)
    tries = [(step.rate, step.stepped) for step in seen]
    epochs = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert not tries[0][1]
    skipped = [stepped for _, stepped in tries].count(False)
    assert 2 < skipped < 12
    assert sum(row["skipped_steps"] for row in epochs) == skipped
    assert epochs[-1]["step"] == len(tries) - skipped
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"]) for row in epochs)
    step = 0
    for lr, stepped in tries:
        assert lr == 1e-3 * linear_schedule(step, len(tries), 5)
        step += stepped

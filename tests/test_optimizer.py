"""minibert/training/optimizer.py. AdamW against torch's own and the schedule against the reference: tests/parity."""

import math
import os
import shutil
import tempfile

import pytest
import torch
from conftest import TINY
from torch import nn

from minibert.engine import optimizer as module
from minibert.engine.optimizer import (
    PART,
    AdamW,
    LossScaler,
    Schedule,
    linear_schedule,
    norm_by_parts,
    norm_of,
    norm_of_parts,
    warmup_steps,
)
from minibert.model import BertClassifier


def model_with_gradients(seed=0):
    torch.manual_seed(seed)
    model = BertClassifier(TINY)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def test_decay_is_for_matrices_only():
    model = model_with_gradients()
    optimizer = AdamW(model.named_parameters())
    decayed = {name for name in optimizer.parameters if optimizer.decays(name)}
    assert decayed == {n for n in optimizer.parameters if n.endswith("weight") and "norm" not in n}


def test_pieces_change_nothing(monkeypatch):
    whole, pieces = model_with_gradients(), model_with_gradients()
    AdamW(whole.named_parameters()).step(0.1)
    monkeypatch.setattr(module, "PIECE", 7)
    AdamW(pieces.named_parameters()).step(0.1)
    for a, b in zip(whole.parameters(), pieces.parameters()):
        assert torch.equal(a, b)


def test_joining_small_parameters_changes_nothing(monkeypatch):
    joined, single = model_with_gradients(), model_with_gradients()
    together = AdamW(joined.named_parameters())
    monkeypatch.setattr(module, "JOINED_BELOW", 0)
    apart = AdamW(single.named_parameters())
    assert len(together.groups) < len(apart.groups) == len(list(single.parameters()))
    for _ in range(2):
        together.step(0.1)
        apart.step(0.1)
    for a, b in zip(joined.parameters(), single.parameters()):
        assert torch.equal(a, b)
    assert together.state_dict().keys() == apart.state_dict().keys()
    for name, moment in apart.state_dict().items():
        assert torch.equal(moment, together.state_dict()[name]), name


def test_gradient_scale_is_a_scaled_gradient():
    scaled, by_hand = model_with_gradients(), model_with_gradients()
    AdamW(scaled.named_parameters()).step(0.1, factor=0.25)
    for p in by_hand.parameters():
        p.grad *= 0.25
    AdamW(by_hand.named_parameters()).step(0.1)
    for a, b in zip(scaled.parameters(), by_hand.parameters()):
        assert torch.equal(a, b)


def test_the_gradients_themselves_are_left_alone():
    model = model_with_gradients()
    before = [p.grad.clone() for p in model.parameters()]
    AdamW(model.named_parameters()).step(1e-5, factor=0.5)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before))


def test_gradient_norm_is_global():
    model = model_with_gradients()
    expected = math.sqrt(sum(p.grad.pow(2).sum().item() for p in model.parameters()))
    optimizer = AdamW(model.named_parameters())
    assert optimizer.norm(optimizer.gradients()).item() == pytest.approx(expected, rel=1e-6)


def test_without_bias_correction_the_first_step_is_larger():
    steps = []
    for correct in (True, False):
        p = nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3)
        AdamW([("p", p)], bias_correction=correct).step(1.0)
        steps.append(p[0].item())
    assert steps[0] == pytest.approx(-1.0, rel=1e-6)
    assert steps[1] / steps[0] == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-4)


def test_state_goes_over_exactly():
    one, other = model_with_gradients(), model_with_gradients()
    first = AdamW(one.named_parameters())
    first.step(0.01)
    other.load_state_dict(one.state_dict())
    second = AdamW(other.named_parameters())
    second.load_state_dict(first.state_dict())
    first.step(0.01)
    second.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert (second.steps, second.shrinkage) == (2, first.shrinkage)


def test_shrinkage_is_what_decay_makes_of_an_idle_weight():
    p = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = AdamW([("p", p)], weight_decay=0.1)
    for lr in (0.1, 0.3, 0.0, 0.2):
        optimizer.step(lr)
    assert p[0, 0].item() == pytest.approx(optimizer.shrinkage.item(), rel=1e-12)
    assert optimizer.shrinkage.item() == pytest.approx(0.99 * 0.97 * 0.98)


def test_frozen_parameters_are_left_out():
    model = model_with_gradients()
    model.bert.requires_grad_(False)
    before = model.bert.embeddings.word.weight.clone()
    optimizer = AdamW(model.named_parameters())
    optimizer.step(0.1)
    assert list(optimizer.parameters) == ["head.linear.weight", "head.linear.bias"]
    assert torch.equal(before, model.bert.embeddings.word.weight)


def test_schedule():
    factors = [linear_schedule(step, 10, 4) for step in range(12)]
    assert factors[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert factors[5:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0])
    assert linear_schedule(0, 10, 0) == 1
    assert linear_schedule(5, 10, 20) == 0.25  # a warmup longer than the run never reaches the top


def test_warmup_is_a_fraction_or_steps():
    assert [warmup_steps(w, 1) for w in (0, 0.1, 1, 7)] == [0] * 4  # a step at rate 0 would train nothing
    assert [warmup_steps(w, 101) for w in (0, 0.1, 0.5, 1, 7, 500)] == [0, 11, 51, 1, 7, 500]


def test_scaler_halves_on_overflow_and_doubles_after_patience():
    scaler = LossScaler(True, scale=8.0, patience=3)
    scaler.update(torch.tensor(False))
    assert scaler.scale == 4
    scaler.update(torch.tensor(True))
    scaler.update(torch.tensor(True))
    scaler.update(torch.tensor(False))  # counts anew
    assert scaler.scale == 2
    for _ in range(3):
        scaler.update(torch.tensor(True))
    assert scaler.scale == 4
    assert scaler.good_steps == 0


def test_scaler_that_is_off():
    scaler = LossScaler(False)
    scaler.update(torch.tensor(False))
    assert scaler.scale == 1


@pytest.mark.parametrize(("total", "warmup"), [(10, 4), (10, 0), (10, 20), (1, 0), (7, 7)])
@pytest.mark.parametrize("correct", [True, False])
def test_the_numbers_of_a_run_are_those_of_its_steps(total, warmup, correct):
    """Looked up or computed when asked for: the same updates."""
    one, other = model_with_gradients(), model_with_gradients()
    by_table, by_rate = (AdamW(m.named_parameters(), weight_decay=0.1, bias_correction=correct) for m in (one, other))
    rates = Schedule(3e-2, total, warmup).rates()
    assert rates.tolist() == [3e-2 * linear_schedule(step, total, warmup) for step in range(total + 1)]
    table = by_table.numbers(rates, torch.arange(1, total + 2))
    for step in range(total):
        by_table.step(table[step])
        by_rate.step(3e-2 * linear_schedule(step, total, warmup))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert by_table.shrinkage == by_rate.shrinkage
    assert by_table.steps == total


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_what_was_compiled_for_other_instructions_is_not_taken(monkeypatch):
    """torch's cache may hand out code for another processor, which then adds up half of the numbers."""
    monkeypatch.setenv(module.CACHE, f"{tempfile.gettempdir()}/torchinductor_somebody")
    optimizer = AdamW(nn.Linear(4, 4).named_parameters())
    monkeypatch.setattr(torch, "compile", lambda work, dynamic: work)
    assert optimizer.compile() is None
    kind = f"{torch.backends.cpu.get_cpu_capability().replace(' ', '')}_{torch.get_num_threads()}_"
    assert f"torchinductor_{kind}" in os.environ[module.CACHE]
    monkeypatch.setenv(module.CACHE, "/own")
    half = lambda grad: module.norm_of(grad[::2])  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda work, dynamic: half if work is module.norm_of else work)
    assert "wrong numbers" in optimizer.compile()
    layer = nn.Linear(4, 4)
    copies = {"weight": nn.Parameter(layer.weight.detach().bfloat16())}
    optimizer = AdamW(layer.named_parameters(), half=copies)
    half = lambda parts: module.norm_of_parts(parts[::2])  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda work, dynamic: half if work is module.norm_of_parts else work)
    assert "wrong numbers" in optimizer.compile()
    assert os.environ[module.CACHE] == "/own"


@pytest.mark.parametrize("count", [1, PART, 2 * PART - 1, 2 * PART, 5000, 8 * PART])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_norm_by_parts_is_the_norm(count, scale):
    """Also where squares leave float32's range, above and below."""
    gradient = torch.randn(count, generator=torch.Generator().manual_seed(count)) * scale
    gradient[: count // 3] *= 1e-3
    assert torch.equal(norm_by_parts(gradient), norm_of(gradient))
    gradient, asked = gradient.bfloat16(), []
    norm = norm_by_parts(gradient, of_parts=lambda parts: (asked.append(parts.shape), norm_of_parts(parts))[1])
    torch.testing.assert_close(norm, gradient.double().norm(), rtol=1e-6, atol=0)
    assert asked == ([(count // PART, PART)] if count >= 2 * PART else [])


def test_the_norm_by_parts_of_nothing_and_of_what_is_not_finite():
    assert norm_by_parts(torch.zeros(3 * PART).bfloat16()) == 0
    for bad in (math.inf, -math.inf, math.nan):
        for place in (0, PART + 1, 2 * PART + 5):
            gradient = torch.ones(2 * PART + 9).bfloat16()
            gradient[place] = bad
            assert not norm_by_parts(gradient).isfinite()

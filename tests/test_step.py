"""minibert/engine/step.py: the same step on any device, without a look at a number; how many operators it takes."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, one_step, perturbed
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from minibert.data.batches import Batch
from minibert.engine.dropout import OneKernelDropout
from minibert.engine.machine import Machine
from minibert.engine.network import Padded, call_again, half_weights, with_copies
from minibert.engine.optimizer import AdamW, LossScaler, Schedule
from minibert.engine.step import State, Sums, accumulate, alone, classification, step, update
from minibert.model import BertClassifier, BertConfig

META, CPU = torch.device("meta"), torch.device("cpu")
DRY = replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)
BASE = BertConfig(num_labels=6)

# Operators that launch nothing: they make another view of the same memory, or memory without content.
VIEWS = """view t transpose expand unsqueeze squeeze select slice split unbind detach alias as_strided permute unflatten
_unsafe_view split_with_sizes _reshape_alias lift_fresh empty empty_like empty_strided new_empty new_empty_strided"""


class Counted(TorchDispatchMode):
    """Counts the operators that reach a device."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in VIEWS.split():
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self):
        return sum(self.seen.values())


class Fused(torch.autograd.Function):
    """Stands for the one kernel each way that a GPU has for attention, which the meta device has not."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return torch.zeros_like(q)

    @staticmethod
    def backward(ctx, grad):
        joined = torch.zeros(sum(t.numel() for t in ctx.saved_tensors), dtype=grad.dtype, device=grad.device)
        parts = joined.split([t.numel() for t in ctx.saved_tensors])
        return tuple(part.view(t.shape) for part, t in zip(parts, ctx.saved_tensors))


class AttentionInOneKernel(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def numbers(optimizer):
    return optimizer.numbers(Schedule(1e-3, 10, 0).rates(), torch.arange(1, 12))


def on_meta(config, name="fp32", examples=2, length=128, masked=False):
    """A state on the device that has shapes and no numbers, where a look at a number raises."""
    machine = Machine(name, "", META)
    with torch.device("meta"):
        model = BertClassifier(config, dropout=OneKernelDropout).train()
        half = half_weights(model, machine)
        ids, labels = torch.zeros(examples, length, dtype=torch.int64), torch.zeros(examples, dtype=torch.int64)
        mask = torch.zeros(examples, length, dtype=torch.bool) if masked else None
    optimizer = AdamW(model.named_parameters(), half=half)
    network = Padded(with_copies(model, half).train(), machine)
    # autocast knows no meta device; what it would cast, the copies need not
    network.autocast = lambda: torch.autocast("cpu", enabled=False)
    scaler = LossScaler(name == "fp16", device=META)
    state = State(network, optimizer, scaler, Sums(META), numbers(optimizer), 1.0)
    return state, Batch(ids, mask, None, labels), torch.ones((), device=META)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_a_step_never_looks_at_a_number(name, masked):
    """On the meta device there is none to look at, and tensors of other devices do not mix."""
    state, batch, count = on_meta(TINY, name, 3, 12, masked)
    if masked:
        state.loss = partial(classification, weight=torch.ones(5, device=META), label_smoothing=0.1)
    step(state, [batch], count)
    step(state, [batch, batch], count)
    assert state.sums.total.device == state.optimizer.steps.device == state.scaler.scale.device == META
    with pytest.raises((RuntimeError, NotImplementedError)):
        state.sums.total.sum().item()


def test_the_optimizer_takes_few_operators():
    """Norm, clipping, AdamW and loss scale of bert-base, not compiled. Pieces for a CPU's cache took 11,894."""
    for name in ("fp32", "bf16", "fp16"):
        state, _, _ = on_meta(BASE)
        if name == "bf16":
            half = half_weights(state.network.model, Machine("bf16", "", META))
            state.optimizer = AdamW(state.network.model.named_parameters(), half=half)
        if name == "fp16":
            state.scaler = LossScaler(True, device=META)
        for group in state.optimizer.groups:
            for leaf in group.leaves:
                leaf.grad = torch.zeros_like(leaf)
        with Counted() as counted:
            update(state)
        assert len(state.optimizer.groups) == (3 if name == "bf16" else 2)
        assert counted.total <= 60, (name, counted.seen)


def test_forward_and_backward_take_few_operators():
    """bert-base at 2 x 128, with attention and dropout in one kernel each way, as on a GPU."""
    state, batch, count = on_meta(BASE)
    with Counted() as counted, AttentionInOneKernel():
        accumulate(state, batch, count)
    assert counted.seen["native_dropout"] == 2 * 12 + 2
    assert counted.total <= 500, counted.seen


def test_activations_computed_again_take_one_more_forward_pass_of_the_layers_below_the_last():
    """And no look at a number, on a device that has none."""
    seen = []
    for call in (None, call_again):
        state, batch, count = on_meta(BASE)
        state.network.call = call or state.network.call
        with Counted() as counted:  # attention in pieces: what stands for one kernel is not seen in the second pass
            accumulate(state, batch, count)
        seen.append(counted.seen)
    assert seen[1]["native_dropout"] - seen[0]["native_dropout"] == 2 * 11
    assert seen[1]["addmm"] - seen[0]["addmm"] == 4 * 11
    assert seen[1]["mm"] == seen[0]["mm"]


# Overflow


def classifier(config=DRY):
    torch.manual_seed(0)
    return perturbed(BertClassifier(config))


def batch(examples=4, length=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, TINY.vocab_size, (examples, length), generator=generator)
    return Batch(ids, None, None, torch.randint(0, 5, (examples,), generator=generator))


FP32 = Machine("fp32", "", CPU)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    """Zero times infinity is not a number: gradients are selected, not multiplied away."""
    model = classifier()
    optimizer = AdamW(model.named_parameters(), weight_decay=0.1)
    one_step(model, optimizer, [batch()], 1e-3, 1.0, FP32)
    before = {name: t.clone() for name, t in (*model.state_dict().items(), *optimizer.state_dict().items())}
    hook = model.bert.layers[0].feed_forward.input.weight.register_hook(lambda g: torch.full_like(g, bad))
    result = one_step(model, optimizer, [batch()], 1e-3, 1.0, FP32)
    assert not result.stepped
    for name, tensor in (*model.state_dict().items(), *optimizer.state_dict().items()):
        assert torch.equal(tensor, before[name]), name
    hook.remove()
    assert one_step(model, optimizer, [batch()], 1e-3, 1.0, FP32).stepped


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_large_finite_gradients_are_finite(clip):
    """Their squares are no float32 numbers. Clipped they can be used; not clipped, their second moment is none."""
    model = classifier()
    optimizer = AdamW(model.named_parameters(), weight_decay=0.0)
    model.head.linear.weight.register_hook(lambda g: torch.full_like(g, 1e30))
    before = model.head.linear.weight.detach().clone()
    result = one_step(model, optimizer, [batch()], 1e-3, clip, FP32)
    assert result.stepped == (clip > 0)
    moved = (model.head.linear.weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 if clip else 0.0), rtol=1e-3, atol=1e-7)


def test_the_gradients_are_handed_over_once_and_whole():
    """What adds up over processes gets every gradient, before norm and clipping."""
    one, two = classifier(), classifier()
    calls = []

    def twice(tensors):
        calls.append(sum(t.numel() for t in tensors))
        return [t * 2 for t in tensors]

    for model, reduce, clip in ((one, twice, 0.5), (two, alone, 0.5)):
        optimizer = AdamW(model.named_parameters())
        state = State(Padded(model, FP32), optimizer, LossScaler(False), Sums(CPU), numbers(optimizer), clip)
        step(state, [batch()], torch.tensor(4.0 if reduce is twice else 2.0), reduce)
    assert calls == [sum(p.numel() for p in one.parameters())]
    for a, b in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_batch_norm_in_a_head_keeps_its_counts():
    """Buffers are shared by the model that computes and the one that is kept."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 5))
    model = BertClassifier(DRY, head=head).train()
    machine = Machine("bf16", "", CPU)
    half = half_weights(model, machine)
    optimizer = AdamW(model.named_parameters(), half=half)
    one_step(with_copies(model, half), optimizer, [batch()], 1e-3, 1.0, machine)
    assert head[0].num_batches_tracked == 1
    assert head[0].running_mean.abs().max() > 0

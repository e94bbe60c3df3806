"""AdamW against torch's and its own formula, the schedule against the reference's, clipping against torch's.

Only the comparison with the reference's schedule needs transformers.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, one_step, perturbed
from torch import nn

from minibert.data.batches import Batch
from minibert.engine.machine import choose_machine
from minibert.engine.optimizer import AdamW, linear_schedule, warmup_steps
from minibert.model import BertClassifier

FP32 = choose_machine("fp32", torch.device("cpu"))
STEPS = 100
BETAS, EPS = (0.87, 0.993), 3e-7  # not the defaults, and no two alike

# Of every number of dimensions that a network may hold; one with gradients that are tiny, one that has none at times.
SHAPES = {
    "word": (31, 8),
    "dense.weight": (8, 5),
    "dense.bias": (8,),
    "norm.weight": (8,),
    "norm.bias": (8,),
    "scale": (),
    "kernel": (3, 2, 4),
    "faint": (6, 7),
    "idle": (4, 3),
}


def rate(step):
    """A rate that is never the same twice, with zeros in between."""
    return 0.0 if step % 17 == 0 else 0.01 * (1 + math.sin(step))


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def gradients(bf16=False):
    """STEPS sets of gradients; sizes differ from step to step by a factor of 1000."""
    generator = torch.Generator().manual_seed(1)
    sizes = 10 ** (3 * torch.rand(STEPS, generator=generator) - 2)
    for size in sizes:
        grads = {name: torch.randn(shape, generator=generator) * size for name, shape in SHAPES.items()}
        grads["faint"] *= 1e-7  # of the size of eps
        yield {name: grad.bfloat16().float() if bf16 else grad for name, grad in grads.items()}


def torchs_adamw(named, weight_decay, lr=1e-3):
    """As BERT is fine-tuned: two groups, matrices with decay, the rest without."""
    groups = [
        {"params": [p for p in named.values() if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS)


def set_rate(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr


def same(ours, theirs, start, tolerance=1e-6):
    """Weights, and how far they moved: each within `tolerance` of the largest."""
    for name, tensor in ours.items():
        expected = theirs[name].detach().double()
        difference = (tensor.detach().double() - expected).abs().max().item()
        assert difference <= tolerance * expected.abs().max().item(), f"{name}: {difference:.2e}"
        moved = (expected - start[name].detach().double()).abs().max().item()
        assert moved > 0.05, f"{name} did not move: nothing is shown"


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16 gradients"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.3])
def test_adamw_is_torchs(weight_decay, bf16):
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours.items(), betas=BETAS, eps=EPS, weight_decay=weight_decay)
    torchs = torchs_adamw(theirs, weight_decay)
    for step, grads in enumerate(gradients(bf16)):
        for name, grad in grads.items():
            ours[name].grad = grad.clone()
            theirs[name].grad = grad.clone()
        optimizer.step(rate(step))
        set_rate(torchs, rate(step))
        torchs.step()
    same(ours, theirs, parameters())
    for name, parameter in theirs.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = torchs.state[parameter][moment]
            torch.testing.assert_close(
                getattr(optimizer, moment)[name], expected, rtol=1e-5, atol=1e-6 * expected.abs().max()
            )


def test_a_parameter_without_a_gradient_is_one_with_gradient_zero():
    """torch leaves such a parameter out; the rows of the word embedding that a data set never uses must decay."""
    ours, theirs = parameters(), parameters()
    optimizer, torchs = AdamW(ours.items(), betas=BETAS, eps=EPS, weight_decay=0.3), torchs_adamw(theirs, 0.3)
    for step, grads in enumerate(gradients()):
        for name, grad in grads.items():
            absent = name == "idle" and step % 3
            ours[name].grad = None if absent else grad
            theirs[name].grad = torch.zeros_like(grad) if absent else grad
        optimizer.step(rate(step))
        set_rate(torchs, rate(step))
        torchs.step()
    same(ours, theirs, parameters())


@pytest.mark.parametrize("bias_correction", [True, False])
def test_adamw_is_its_formula(bias_correction):
    """Loshchilov and Hutter 2019, algorithm 2, in float64; without bias correction as in BERT's first code."""
    ours = parameters()
    start = {name: p.detach().clone() for name, p in ours.items()}
    optimizer = AdamW(ours.items(), betas=BETAS, eps=EPS, weight_decay=0.3, bias_correction=bias_correction)
    w = {name: p.detach().double() for name, p in ours.items()}
    m = {name: torch.zeros_like(p) for name, p in w.items()}
    v = {name: torch.zeros_like(p) for name, p in w.items()}
    (b1, b2), t = BETAS, 0
    for step, grads in enumerate(gradients()):
        lr, t = rate(step), t + 1
        for name, grad in grads.items():
            g = grad.double()
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            m_hat, v_hat = (m[name] / (1 - b1**t), v[name] / (1 - b2**t)) if bias_correction else (m[name], v[name])
            decay = 0.3 * w[name] if w[name].dim() >= 2 else 0.0
            w[name] = w[name] - lr * (m_hat / (v_hat.sqrt() + EPS) + decay)
            ours[name].grad = grad
        optimizer.step(lr)
    same(ours, w, start, 2e-6)


def test_who_decays_and_who_does_not():
    """Matrices and embeddings decay; biases and LayerNorm do not. By name, for the whole classifier."""
    layer = [f"bert.layers.{i}." for i in range(TINY.num_hidden_layers)]
    decayed = {
        "bert.embeddings.word.weight",
        "bert.embeddings.position.weight",
        "bert.embeddings.token_type.weight",
        *(f"{at}attention.qkv.weight" for at in layer),
        *(f"{at}attention.output.weight" for at in layer),
        *(f"{at}feed_forward.input.weight" for at in layer),
        *(f"{at}feed_forward.output.weight" for at in layer),
        "bert.pooler.dense.weight",
        "head.linear.weight",
    }
    spared = {
        "bert.embeddings.norm.weight",
        "bert.embeddings.norm.bias",
        *(f"{at}attention.qkv.bias" for at in layer),
        *(f"{at}attention.output.bias" for at in layer),
        *(f"{at}attention_norm.weight" for at in layer),
        *(f"{at}attention_norm.bias" for at in layer),
        *(f"{at}feed_forward.input.bias" for at in layer),
        *(f"{at}feed_forward.output.bias" for at in layer),
        *(f"{at}feed_forward_norm.weight" for at in layer),
        *(f"{at}feed_forward_norm.bias" for at in layer),
        "bert.pooler.dense.bias",
        "head.linear.bias",
    }
    torch.manual_seed(0)
    model = perturbed(BertClassifier(TINY))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert decayed | spared == before.keys()
    # Not what the optimizer says of itself but what it does: without gradients, decay is all that happens.
    AdamW(model.named_parameters(), weight_decay=0.5).step(0.1)
    for name, p in model.named_parameters():
        expected = before[name] * 0.95 if name in decayed else before[name]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0, msg=name)
        assert p.detach().abs().max() > 0.1


WARMUPS = [0, 0.1, 0.37, 1e-9, 0.999, 1, 7, 43, 50, 500]


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("total", [1, 2, 43, 50])
def test_schedule_is_the_references(warmup, total):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    steps = warmup_steps(warmup, total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps, total)
    for step in range(total + 3):
        assert linear_schedule(step, total, steps) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("total", [1, 2, 43, 50])
def test_schedule_is_a_line_up_and_a_line_down(warmup, total):
    """By its corners: (0, 0), (warmup, 1), (total, 0), and straight in between."""
    steps = math.ceil(warmup * total) if warmup < 1 else warmup  # a fraction is rounded up, as the reference does
    steps = 0 if total == 1 else steps  # the reference trains nothing in a run of one step
    for step in range(total + 3):
        up = step / steps if step < steps else math.inf
        down = (total - step) / (total - steps) if step >= steps and total > steps else math.inf
        expected = max(0.0, min(up, down)) if min(up, down) < math.inf else 0.0
        assert linear_schedule(step, total, warmup_steps(warmup, total)) == pytest.approx(
            expected, rel=1e-12, abs=1e-15
        )


@pytest.mark.parametrize("clip", [1e-4, 0.3, 1.0, 5.0, 1e6])
def test_clipping_is_torchs(clip):
    """Adam forgets the size of its first gradient, so the moments are compared: 0.1 of the clipped gradient."""
    torch.manual_seed(0)
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = perturbed(BertClassifier(replace(TINY, **dry)))
    reference = copy.deepcopy(model)
    ids, labels = torch.randint(1, TINY.vocab_size, (4, 7)), torch.tensor([0, 3, 1, 4])
    optimizer = AdamW(model.named_parameters())
    one_step(model, optimizer, [Batch(ids, None, None, labels)], 1e-3, clip, FP32)
    F.cross_entropy(reference(ids), labels).backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
    assert 1.0 < norm < 1e3  # some of the limits bite, some do not
    for name, parameter in reference.named_parameters():
        ours, theirs = optimizer.exp_avg[name] / 0.1, parameter.grad
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * min(clip, norm.item()), msg=name)

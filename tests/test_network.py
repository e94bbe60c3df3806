"""minibert/engine/network.py and dropout.py: each way to compute equals model.py as it stands, or draws from the same
distribution."""

import copy
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, one_step, perturbed, without_keys
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import minibert.engine as engine_module
from minibert.data import Examples
from minibert.data.batches import collate, pack
from minibert.engine import assemble, network
from minibert.engine.dropout import BitDropout, OneKernelDropout, dropout_for
from minibert.engine.machine import Machine
from minibert.engine.network import Packed, Padded, attend_fused, call_again, half_weights, network_for, with_copies
from minibert.engine.optimizer import AdamW, Schedule
from minibert.evaluation import predict
from minibert.model import BertClassifier, attend

CPU = torch.device("cpu")
FP32, BF16 = Machine("fp32", "", CPU), Machine("bf16", "", CPU)
DRY = replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)
LENGTHS = (9, 4, 7, 4, 12, 3, 9)
KINDS = {
    "cls": {},
    "mean": {"pool": "mean"},
    "deepnorm": {"residual_scale": 1.7},
    "layerscale": {"branch_gate": "channel"},
    "rezero, mean": {"branch_gate": "scalar", "pool": "mean"},
    "prenorm": {"norm_first": True},
    "one layer": {"num_hidden_layers": 1},
    "tokens": {"pool": "tokens"},
    "prenorm, tokens": {"norm_first": True, "pool": "tokens"},
}


class OverTokens(nn.Module):
    """Attention over the tokens and BatchNorm: another mask, padding or cut of the batch would show."""

    reads = "tokens"

    def __init__(self):
        super().__init__()
        self.query, self.norm, self.linear = nn.Linear(24, 1), nn.BatchNorm1d(24), nn.Linear(24, 5)

    def forward(self, tokens, mask):
        weights = self.query(tokens)[..., 0].masked_fill(~mask, -math.inf).softmax(dim=1)
        return self.linear(self.norm((weights[..., None] * tokens).sum(dim=1)))


def logits(model, batch):
    return Packed(model, FP32)(batch)[0]


def examples(lengths=LENGTHS, types=False):
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, TINY.vocab_size, n).astype(np.int32) for n in lengths]
    kinds = [generator.integers(0, 3, n).astype(np.uint8) for n in lengths] if types else None
    return Examples(ids, kinds, generator.integers(0, 5, len(lengths)), np.arange(len(lengths)))


def classifier(config=DRY, seed=0, dropout=nn.Dropout):
    torch.manual_seed(seed)
    head = OverTokens() if config.pool == "tokens" else None
    return perturbed(BertClassifier(config, head, dropout=dropout)).train()


# Packed batches


def test_a_packed_batch_says_where_everything_lies():
    data = examples(types=True)
    batch = pack(data, range(7))
    by_length = [5, 1, 3, 2, 0, 6, 4]  # those of one length as they came
    assert batch.input_ids.tolist() == np.concatenate([data.ids[i] for i in by_length]).tolist()
    assert batch.token_type_ids.tolist() == np.concatenate([data.types[i] for i in by_length]).tolist()
    assert batch.position_ids.tolist() == [p for i in by_length for p in range(LENGTHS[i])]
    assert batch.labels.tolist() == data.labels[by_length].tolist()
    assert all(run.mask is None for run in batch.runs)
    assert [(run.texts, run.length) for run in batch.runs] == [(1, 3), (2, 4), (1, 7), (2, 9), (1, 12)]
    assert batch.first.tolist() == [0, 3, 7, 11, 18, 27, 36]


def test_texts_can_be_packed_to_a_multiple():
    data = examples(types=True)
    batch = pack(data, range(7), pad_id=77, multiple=4)
    assert [(run.texts, run.length) for run in batch.runs] == [(3, 4), (1, 8), (3, 12)]
    assert batch.runs[0].mask[:, 0, 0].tolist() == [[True] * 3 + [False], [True] * 4, [True] * 4]
    assert batch.runs[2].mask.shape == (3, 1, 1, 12)
    assert batch.input_ids[:4].tolist() == [*data.ids[5], 77]
    assert batch.position_ids[8:20].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0]
    assert batch.token_type_ids[12:20].tolist() == [*data.types[2], 0]
    assert batch.first.tolist() == [0, 4, 8, 12, 20, 32, 44]


def test_few_lengths_stay_as_they_are():
    assert network.length_multiple([examples(range(3, 19))]) == 1
    assert network.length_multiple([examples(range(3, 19)), examples([19])]) == 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("types", "multiple"), [(False, 1), (True, 1), (True, 4)])
def test_packed_is_padded_forward_and_backward(kind, types, multiple):
    data, plain = examples(types=types), classifier(replace(DRY, **KINDS[kind]))
    quick = copy.deepcopy(plain)
    packed, padded = pack(data, range(7), 0, multiple), collate(data, [5, 1, 3, 2, 0, 6, 4])
    ours, theirs = logits(quick, packed), plain(*padded[:3])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(packed.labels, padded.labels)
    weight = torch.randn(7, 5)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for (name, a), b in zip(quick.named_parameters(), plain.parameters()):
        expected = torch.zeros_like(b) if b.grad is None else b.grad
        torch.testing.assert_close(a.grad, expected, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_a_head_over_tokens_is_given_all_of_them_and_their_mask(multiple):
    """Padded or packed, from each text its own hidden states of the last layer, whatever else is in the batch."""
    data, seen = examples(), []

    class Watched(OverTokens):
        def forward(self, tokens, mask):
            seen.append((tokens, mask))
            return super().forward(tokens, mask)

    model = BertClassifier(DRY, Watched()).eval()
    for net in (Packed(model, FP32, 0, multiple), Padded(model, FP32, 0, multiple)):
        batch = net.batch(data, [4, 2, 5])
        net(batch)
        tokens, mask = seen.pop()
        assert tokens.shape == (3, 12 if multiple < 8 else 16, 24)
        assert (mask.dtype, mask.shape) == (torch.bool, tokens.shape[:2])
        for text, real, label in zip(tokens, mask, batch.labels):
            place = next(i for i in (4, 2, 5) if data.labels[i] == label and len(data.ids[i]) == real.sum())
            alone = model.bert(torch.from_numpy(data.ids[place])[None].long())[0][0]
            torch.testing.assert_close(text[real], alone, rtol=1e-5, atol=1e-5)
        net(net.batch(data, [0]))
        tokens, mask = seen.pop()
        assert mask.sum() == 9  # also where nothing is padded there is a mask


def test_packed_texts_do_not_see_each_other():
    data, model = examples(), classifier()
    before = logits(model, pack(data, [0, 1]))
    data.ids[0][3] = data.ids[0][3] % 50 + 60
    after = logits(model, pack(data, [0, 1]))
    assert torch.equal(before[0], after[0])  # the shorter one, number 1
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("types", "multiple"), [(False, 1), (True, 8)])
def test_padded_is_the_model_forward_and_backward(kind, types, multiple):
    """With the last layer computed for what the head reads alone, and lengths rounded up."""
    data, plain = examples(types=types), classifier(replace(DRY, **KINDS[kind]))
    other = copy.deepcopy(plain)
    net, rows = Padded(other, FP32, 0, multiple), [5, 1, 3, 2, 0, 6, 4]
    batch = net.batch(data, rows)
    assert batch.input_ids.shape == (7, 12 if multiple == 1 else 16)
    ours, vectors = net(batch)
    theirs = plain(*collate(data, rows)[:3])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vectors, plain.bert(*collate(data, rows)[:3])[1], rtol=1e-5, atol=1e-5)
    weight = torch.randn(7, 5)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for (name, a), b in zip(other.named_parameters(), plain.parameters()):
        expected = torch.zeros_like(b) if b.grad is None else b.grad
        torch.testing.assert_close(a.grad, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_lengths_are_not_rounded_beyond_the_positions():
    data = examples((61, 9))
    assert collate(data, [0], multiple=8).input_ids.shape == (1, 64)
    assert collate(data, [0], multiple=8, longest=62).input_ids.shape == (1, 62)
    assert collate(data, [1], multiple=8, longest=62).input_ids.shape == (1, 16)


@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_attention_is_attention(masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 8)
    mask = (torch.arange(6) < torch.tensor([6, 4])[:, None])[:, None, None] if masked else None
    for dropout in (nn.Dropout(0.0), nn.Dropout(0.5).eval()):
        ours, theirs = attend_fused(q, k, v, dropout, mask), attend(q, k, v, nn.Dropout(0.0).eval(), mask)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    drawn = torch.stack([attend_fused(q, k, v, nn.Dropout(0.3), mask) for _ in range(2000)])
    expected = attend(q, k, v, nn.Dropout(0.0), mask)
    assert ((drawn.mean(0) - expected) / (drawn.std(0) / 2000**0.5)).abs().max() < 5


def test_torchs_fused_attention_takes_padded_runs():
    """A mask of the wrong number of dimensions sends it another way without a word, at twice the time."""
    data, model = examples(), classifier().eval()
    batch = pack(data, range(7), multiple=4)
    assert any(run.mask is not None for run in batch.runs)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it cannot be taken
        alone = logits(model, batch)
    torch.testing.assert_close(alone, logits(model, pack(data, range(7))), rtol=1e-5, atol=1e-5)


def test_portions_are_all_of_it_in_order_and_not_much_too_large(monkeypatch):
    monkeypatch.setattr(network, "PORTION", 20)
    portions = Packed(classifier(), FP32).portions
    lengths = np.random.default_rng(0).integers(1, 9, 100)
    cuts = portions(lengths)
    assert [i for cut in cuts for i in range(100)[cut]] == list(range(100))
    sizes = [lengths[cut].sum() for cut in cuts]
    assert max(sizes) < 20 + 8
    assert min(sizes[:-1]) > 20 - 8
    assert [len(lengths[cut]) for cut in portions(np.array([50, 3, 50]))] == [2, 1]
    assert portions(lengths[:1]) == [slice(0, 1)]


@pytest.mark.parametrize("machine", [FP32, BF16])
@pytest.mark.parametrize("kind", [Packed, Padded])
def test_predictions_in_portions_are_those_of_the_whole(machine, kind, monkeypatch):
    net, data = kind(classifier(), machine), examples()
    whole = predict(net, data)
    monkeypatch.setattr(network, "PORTION", 10)
    monkeypatch.setattr(network, "ROWS", 2)
    calls = []
    monkeypatch.setattr(kind, "batch", lambda *a, real=kind.batch: (calls.append(a), real(*a))[1])
    parts = predict(net, data)
    assert len(calls) > 3
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if machine is FP32 else {"rtol": 0.02, "atol": 0.02}
    for a, b in zip(parts[:2], whole[:2]):
        torch.testing.assert_close(a, b, **tolerance)
    some = predict(net, data, [4, 1, 2])
    torch.testing.assert_close(some.logits, whole.logits[[4, 1, 2]], **tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("device", "kind"), [("cpu", BitDropout), ("cuda", OneKernelDropout)])
def test_a_model_is_built_with_the_dropout_of_its_device(training, device, kind):
    model = BertClassifier(TINY, dropout=dropout_for(torch.device(device))).train(training)
    found = {name: module.p for name, module in model.named_modules() if isinstance(module, kind)}
    assert found == {
        "bert.embeddings.dropout": 0.11, "head.dropout": 0.23,
        "bert.layers.0.attention.dropout": 0.17, "bert.layers.0.dropout": 0.11,
        "bert.layers.1.attention.dropout": 0.17, "bert.layers.1.dropout": 0.11,
    }  # fmt: skip
    assert all(module.training == training for module in model.modules())
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


# Dropout


def kept(rate, shape=(64, 1000), seed=0, calls=1, kind=BitDropout):
    torch.manual_seed(seed)
    dropout = kind(rate)
    out = [dropout(torch.ones(shape)) for _ in range(calls)]
    return out if calls > 1 else out[0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.03, 0.9])
def test_dropout_keeps_its_share_everywhere_and_scales_the_rest(rate):
    out = kept(rate)
    values = out.unique()
    assert values.tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-3)
    spread = (rate * (1 - rate)) ** 0.5
    share = (out != 0).double()
    assert abs(share.mean() - (1 - rate)) < 5 * spread / 64_000**0.5
    lanes = share.view(-1, 4).mean(dim=0)  # four elements come from each random number
    assert (lanes - (1 - rate)).abs().max() < 5 * spread / 16_000**0.5
    assert (share.mean(dim=0) - (1 - rate)).abs().max() < 5.5 * spread / 8  # no column is favoured
    assert abs(out.mean() - 1) < 5 * spread / (1 - rate) / 64_000**0.5


@pytest.mark.parametrize("shift", [1, 2, 4, 1000])
def test_neighbours_are_independent(shift):
    flat = (kept(0.5) != 0).double().flatten() - 0.5
    assert abs((flat[shift:] * flat[:-shift]).mean() * 4) < 5 / 64_000**0.5


def test_calls_and_seeds_are_independent_and_a_seed_repeats():
    one, two = kept(0.5, calls=2)
    again, _ = kept(0.5, calls=2)
    other = kept(0.5, seed=1)
    assert torch.equal(one, again)
    for mask in (two, other):
        agree = ((one != 0) == (mask != 0)).double().mean()
        assert abs(agree - 0.5) < 5 * 0.5 / 64_000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_goes_where_the_value_went(dtype):
    x = torch.ones(7, 13, dtype=dtype, requires_grad=True)
    out = BitDropout(0.4)(x)
    out.sum().backward()
    assert out.dtype == dtype
    assert torch.equal(out.detach(), x.grad)
    assert 0 < (out == 0).sum() < 91


@pytest.mark.parametrize("kind", [BitDropout, OneKernelDropout])
def test_no_dropout_is_no_work(kind):
    x = torch.ones(3)
    assert kind(0.0)(x) is x
    assert kind(0.5).eval()(x) is x


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_in_one_kernel_is_torchs(rate):
    torch.manual_seed(3)
    ours = OneKernelDropout(rate)(torch.ones(400, 50))
    assert ours.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-6)
    assert abs((ours == 0).double().mean() - rate) < 5 * (rate * (1 - rate) / 20_000) ** 0.5


@pytest.mark.parametrize("rate", [1 - 2**-15, 1 - 2**-16, 1 - 2**-40])
def test_the_highest_rates_leave_finite_numbers(rate):
    """15 bits know no rate between 1 - 2^-15 and 1: those are rounded down to it, and nothing is divided by zero."""
    torch.manual_seed(0)
    out = BitDropout(rate)(torch.ones(1 << 20))
    assert set(out.unique().tolist()) == {0.0, 2.0**15}


def test_a_whole_model_under_dropout_has_the_same_distribution():
    """Mean and spread of the logits over 3,000 draws, packed and with fast dropout against model.py as it stands."""
    data = examples((8, 8))
    plain, quick = classifier(TINY), classifier(TINY, dropout=BitDropout)
    ids = torch.from_numpy(np.stack(data.ids)).long()
    with torch.no_grad():
        theirs = torch.cat([plain(ids.repeat(100, 1)).unflatten(0, (100, 2)) for _ in range(30)])
        ours = torch.cat([logits(quick, pack(data, [0, 1] * 100)).unflatten(0, (100, 2)) for _ in range(30)])
    error = ((theirs.var(dim=0) + ours.var(dim=0)) / 3000).sqrt()
    assert ((theirs.mean(dim=0) - ours.mean(dim=0)) / error).abs().max() < 4.5
    ratio = ours.std(dim=0) / theirs.std(dim=0)
    assert (ratio - 1).abs().max() < 5 / (2 * 3000) ** 0.5 * 1.5  # kurtosis is not quite a normal one's


# bf16 copies of the matrices


def test_copies_give_what_autocast_gives_to_the_bit():
    plain = classifier()
    half = half_weights(plain, BF16)
    batch = pack(examples(), range(7))
    assert set(half) == {n for n, p in plain.named_parameters() if p.dim() == 2 and "embeddings" not in n}
    with BF16.autocast():
        ours, theirs = logits(with_copies(plain, half), batch), logits(plain, batch)
    assert torch.equal(ours, theirs)
    ours.float().square().sum().backward()
    grads = {name: weight.grad.float() for name, weight in half.items()}
    assert all(plain.get_parameter(name).grad is None for name in half)
    theirs.float().square().sum().backward()
    for name, grad in grads.items():
        assert torch.equal(grad, plain.get_parameter(name).grad), name


def test_a_model_with_copies_shares_all_else():
    plain = classifier()
    half = half_weights(plain, BF16)
    other = with_copies(plain, half)
    own = dict(plain.named_parameters())
    for name, p in other.named_parameters():
        assert p is half.get(name, own[name]), name
    assert other.head is not plain.head


def test_only_bf16_and_trained_matrices_have_copies():
    model = classifier()
    assert half_weights(model, FP32) == {}
    model.bert.requires_grad_(False)
    assert list(half_weights(model, BF16)) == ["head.linear.weight"]


def test_steps_with_copies_are_steps_without():
    """Five steps in bf16: every weight and moment as under plain autocast, and the copies follow."""
    engines = []
    for accumulate in (1, 2):  # 2: no copies, but the batches below are given whole
        engine = assemble(classifier(), [examples()], BF16, Schedule(1e-3, 5, 0), accumulate=accumulate)
        assert bool(engine.state.optimizer.half) == (accumulate == 1)
        for _ in range(5):
            engine.step([engine.network.batch(engine.splits[0], range(7))], engine.count(7))
        engines.append(engine)
    one, other = engines
    for (name, a), b in zip(one.trained.named_parameters(), other.trained.named_parameters()):
        assert name == b[0]
        torch.testing.assert_close(a, b[1], rtol=1e-6, atol=1e-7, msg=name)
    for name, copy_ in one.state.optimizer.half.items():
        assert torch.equal(copy_, one.trained.get_parameter(name).detach().bfloat16()), name
        assert one.network.model.get_parameter(name) is copy_


# Activations that are computed again


@pytest.mark.parametrize("machine", [FP32, BF16])
@pytest.mark.parametrize("kind", [Packed, Padded])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_activations_computed_again_are_the_same_to_the_bit(machine, kind, accumulate):
    """Under dropout: losses, weights and moments of three steps, and what is drawn afterwards."""
    config, ends = replace(TINY, num_hidden_layers=3), []
    for checkpointing in (False, True):
        engine = assemble(
            classifier(config, dropout=BitDropout), [examples()], machine, Schedule(1e-2, 3, 0), network=kind,
            accumulate=accumulate, checkpointing=checkpointing,
        )  # fmt: skip
        for seed in range(3):
            torch.manual_seed(seed)
            parts = np.array_split(np.arange(7), accumulate)
            engine.step([engine.network.batch(engine.splits[0], part.tolist()) for part in parts], engine.count(7))
        ends.append(engine.state_dict() | {"drawn": torch.rand(3)})
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_layers_below_the_last_are_computed_again_in_training_alone():
    model, calls = classifier(replace(TINY, num_hidden_layers=3)), []
    for place, layer in enumerate(model.bert.layers):
        layer.register_forward_pre_hook(lambda *_, place=place: calls.append(place))
    net = Packed(model, FP32, call=call_again)
    net(net.batch(examples(), range(7)))[0].sum().backward()
    assert calls == [0, 1, 2, 1, 0]
    calls.clear()
    predict(net, examples())
    assert calls == [0, 1, 2]


def test_steps_whose_activations_are_computed_again_are_never_recorded(monkeypatch):
    monkeypatch.setattr(engine_module, "CudaGraphs", lambda device: "graphs")
    machine, said = Machine("fp32", "", torch.device("cuda")), []
    assert isinstance(engine_module.step_of(None, machine, False, said.append), engine_module.Recorded)
    assert said == []
    assert not isinstance(engine_module.step_of(None, machine, True, said.append), engine_module.Recorded)
    assert len(said) == 1


# One pass over the weights


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("machine", [FP32, BF16])
def test_the_compiled_update_is_the_plain_one(machine):
    wide = replace(DRY, hidden_size=128, intermediate_size=256)  # matrices large enough to go the compiled way
    models, calls = [classifier(wide), classifier(wide)], []
    for model, compiled in zip(models, (False, True)):
        half = half_weights(model, machine)
        optimizer = AdamW(model.named_parameters(), weight_decay=0.1, half=half)
        if compiled:
            why_not = optimizer.compile()
            if why_not and os.environ.get("ATEN_CPU_CAPABILITY") == "default":
                pytest.skip(f"torch compiles for no such processor: {why_not}")
            assert why_not is None
            real = optimizer.update
            optimizer.update = lambda *a, **k: (calls.append(a[0].numel()), real(*a, **k))  # noqa: B023
        for _ in range(4):
            batch = pack(examples(), range(7))
            one_step(with_copies(model, half), optimizer, [batch], 1e-3, 1.0, machine, network=Packed)
    # four matrices a layer, words, positions, the pooler; joined: the rest of the tables, biases, the head if a copy
    assert len(calls) == 4 * (11 + 2 + (machine is BF16))
    assert min(calls) == (3 * 128 if machine is BF16 else 3 * 128 + 5 * 128)  # the token types, and the head
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
        a, b = without_keys(name, a), without_keys(name, b)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda told: f"{name}: {told}")  # noqa: B023


def test_without_a_compiler_it_goes_on_and_says_so_once(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(engine_module, "WORTH_COMPILING", 0)
    said = []
    engine = assemble(classifier(), [examples()], FP32, Schedule(1e-3, 10, 0), say=said.append)
    assert len(said) == 1
    assert "no C++ compiler" in said[0]
    assert "much more" not in said[0]
    engine.step([engine.network.batch(engine.splits[0], range(7))], engine.count(7))
    assert (engine.state.optimizer.steps, engine.state.sums.read().skipped) == (1, 0)


def test_short_runs_are_not_compiled(monkeypatch):
    monkeypatch.setattr(AdamW, "compile", lambda self: pytest.fail("compiled"))
    assemble(classifier(), [examples()], FP32, Schedule(1e-3, 100, 0))
    with pytest.raises(pytest.fail.Exception):
        assemble(classifier(), [examples()], FP32, Schedule(1e-3, 10**9, 0))


def test_other_devices_get_padded_batches():
    kinds = {"cpu": Packed, "cuda": Padded, "meta": Padded}
    for device, kind in kinds.items():
        net = network_for(classifier(), Machine("bf16", "", torch.device(device)))
        assert type(net) is kind
    assert network_for(classifier(), Machine("bf16", "", torch.device("meta"))).attend is attend_fused

"""minibert/freezing.py, and what the optimizer and the engine make of frozen parameters."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed, without_keys
from test_classifier import LABELS, TEXTS
from test_loop import Killed
from torch import nn

from minibert import Data, InputError, TrainConfig, load_classifier, load_encoder
from minibert.data import Examples
from minibert.engine import assemble
from minibert.engine.graph import WARM, Calls, Recorded
from minibert.engine.machine import Machine
from minibert.engine.network import Packed, Padded
from minibert.engine.optimizer import AdamW, Schedule
from minibert.freezing import frozen_by
from minibert.heads import HEADS
from minibert.model import BertClassifier
from minibert.setup import prepare
from minibert.training import loop
from minibert.training.folder import load_state, read_history
from minibert.training.keeper import Keeper
from minibert.training.run import resume, train

CPU = torch.device("cpu")
FP32, BF16 = Machine("fp32", "", CPU), Machine("bf16", "", CPU)
FOUR = replace(TINY, num_hidden_layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
               classifier_dropout=0.0)  # fmt: skip


def examples():
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 90, n).astype(np.int32) for n in (9, 4, 7, 4, 12, 3, 9, 5)]
    return Examples(ids, None, generator.integers(0, 5, 8), np.arange(8))


def classifier(head="linear", freeze="none"):
    torch.manual_seed(0)
    model = perturbed(BertClassifier(FOUR, HEADS[head](FOUR)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen_by(freeze, 4)(name))
    return model


def engine_of(model, machine=FP32, network=Packed, late=(), accumulate=1, clip=1.0):
    return assemble(model, [examples()], machine, Schedule(1e-2, 20, 2), network=network, late=late,
                    accumulate=accumulate, clip=clip, weight_decay=0.1)  # fmt: skip


def take(engine, steps=1, rows=range(4)):
    for _ in range(steps):
        engine.step([engine.network.batch(engine.splits[0], rows)], engine.count(len(rows)))


# What is named


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", set()),
        ("embeddings", {"embeddings"}),
        ("layers:2-3", {"layers.1", "layers.2"}),
        ("embeddings,layers:1-1,layers:4-4", {"embeddings", "layers.0", "layers.3"}),
        ("encoder", {"embeddings", "layers.0", "layers.1", "layers.2", "layers.3", "norm", "pooler"}),
    ],
)
def test_names(text, expected):
    frozen = frozen_by(text, 4)
    model = BertClassifier(replace(FOUR, norm_first=True))
    parts = {".".join(name.split(".")[1 : 3 if ".layers." in name else 2])
             for name, _ in model.named_parameters() if frozen(name)}  # fmt: skip
    assert parts == expected
    assert not any(frozen(name) for name, _ in model.named_parameters() if name.startswith("head."))


@pytest.mark.parametrize("text", ["layers:0-1", "layers:2-5", "layers:3-2", "embeddings,layers:5-5"])
def test_layers_that_are_not_there(text):
    with pytest.raises(InputError, match=f"--freeze {text}: this model has layers 1 to 4; write .*layers:1-4"):
        frozen_by(text, 4)


@pytest.mark.parametrize("text", ["", "layer:1-2", "layers:1", "layers:a-b", "embeddings,", "none,encoder", "all"])
def test_no_form(text):
    with pytest.raises(InputError, match="--freeze .*it must be none, or embeddings, layers:I-J, encoder, with commas"):
        TrainConfig(freeze=text)


# What a step does


@pytest.mark.parametrize("machine", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("network", [Packed, Padded])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("freeze", ["encoder", "embeddings,layers:1-2", "layers:3-4"])
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(machine, network, head, freeze):
    model, frozen = classifier(head, freeze), frozen_by(freeze, 4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    engine = engine_of(model, machine, network)
    take(engine, 3)
    for name, tensor in engine.model().state_dict().items():
        assert torch.equal(tensor, before[name]) == frozen(name), name
    assert not any(frozen(name) for name in engine.state.optimizer.parameters)


def test_words_that_do_not_occur_decay_only_where_words_are_trained():
    for freeze, kept in (("embeddings", True), ("layers:1-4", False)):
        model = classifier(freeze=freeze)
        before = model.bert.embeddings.word.weight.detach().clone()
        engine = engine_of(model)
        take(engine, 3)
        after = engine.model().bert.embeddings.word.weight
        assert torch.equal(after[100:], before[100:]) == kept  # no example has these


@pytest.mark.parametrize("network", [Packed, Padded])
def test_below_the_first_trained_layer_nothing_is_kept_for_a_gradient(network):
    """Not the outputs of the frozen layers, and no operator of them runs backward."""
    engine = engine_of(classifier(freeze="embeddings,layers:1-3"), network=network)
    asks = []
    for layer in engine.network.model.bert.layers:
        layer.register_forward_hook(lambda _, inputs, output: asks.append(output.requires_grad))
    take(engine)
    assert asks == [False, False, False, True]


def test_clipping_is_to_the_norm_of_what_is_trained():
    norms = []
    for freeze in ("none", "encoder"):
        engine = engine_of(classifier(freeze=freeze))
        real = engine.state.optimizer.norm
        engine.state.optimizer.norm = lambda g, real=real: norms.append(real(g)) or norms[-1]
        take(engine)
        head = engine.network.model.head
        own = torch.cat([p.grad.flatten() for p in head.parameters()]).norm()
    assert norms[1].item() == pytest.approx(own.item(), rel=1e-5)
    assert norms[0] > 1.5 * norms[1]


# Frozen at first


@pytest.mark.parametrize("correct", [True, False])
def test_held_parameters_are_those_of_torch_without_a_gradient(correct):
    """Against torch.optim.AdamW, whose parameters have no gradient in the first three steps: no decay, no moments, and
    bias correction counted from the fourth. Without correction, against the same formulas (betas' powers left out).
    """
    torch.manual_seed(0)
    shapes = {"early.w": (6, 5), "early.b": (7,), "late.w": (200, 50), "late.b": (4,)}
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    grads = [{name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(8)]
    rates = [1e-2 * (1 + k % 3) for k in range(8)]

    ours = {name: nn.Parameter(t.clone()) for name, t in start.items()}
    optimizer = AdamW(ours.items(), weight_decay=0.1, bias_correction=correct, late=("late.w", "late.b"))
    optimizer.hold(True)
    table = None
    for k in range(8):
        if k in (0, 3):
            optimizer.hold(k < 3)
            table = optimizer.numbers(torch.tensor(rates, dtype=torch.float64), torch.arange(1, 9))
        for name, p in ours.items():
            p.grad = None if k < 3 and "late" in name else grads[k][name].clone()
        optimizer.step(table[k] if k % 2 else rates[k])  # both ways to say it
    assert (optimizer.steps, optimizer.late_from) == (8, 3)
    assert optimizer.shrinkage.item() == pytest.approx(math.prod(1 - 0.1 * rate for rate in rates[3:]), rel=1e-12)

    theirs = {name: nn.Parameter(t.clone()) for name, t in start.items()}
    groups = [{"params": [p], "weight_decay": 0.1 if p.dim() >= 2 else 0.0} for p in theirs.values()]
    reference = torch.optim.AdamW(groups, lr=1.0)
    moments = {name: [torch.zeros_like(t), torch.zeros_like(t)] for name, t in start.items()}
    for k in range(8):
        for name, p in theirs.items():
            p.grad = None if k < 3 and "late" in name else grads[k][name].clone()
        if correct:
            for group in reference.param_groups:
                group["lr"] = rates[k]
            reference.step()
            continue
        with torch.no_grad():
            for name, p in theirs.items():
                if p.grad is not None:
                    m, v = moments[name]
                    m.lerp_(p.grad, 0.1)
                    v.lerp_(p.grad.square(), 0.001)
                    p.mul_(1 - rates[k] * 0.1 * (p.dim() >= 2)).sub_(rates[k] * m / (v.sqrt() + 1e-8))
    for name in shapes:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)
        if correct:
            torch.testing.assert_close(optimizer.exp_avg[name], reference.state[theirs[name]]["exp_avg"])


@pytest.mark.parametrize("machine", [FP32, BF16], ids=["fp32", "bf16"])
def test_held_and_let_go_is_frozen_and_then_all(machine):
    """While held, the steps of a frozen encoder, to the bit; afterwards the encoder's first step is that of a new
    optimizer, while the head goes on.
    """
    encoder = [name for name, _ in classifier().named_parameters() if name.startswith("bert.")]
    held, frozen = engine_of(classifier(), machine, late=encoder), engine_of(classifier(freeze="encoder"), machine)
    held.hold(True)
    take(held, 3)
    take(frozen, 3)
    assert {name for group in held.state.optimizer.groups for name, leaf in zip(group.names, group.leaves)
            if leaf.grad is not None} == {"head.linear.weight", "head.linear.bias"}  # fmt: skip
    with machine.autocast():
        _, read = held.network(held.network.batch(held.splits[0], range(2)))
    assert not read.requires_grad  # nothing is kept for one
    for (name, a), b in zip(held.model().state_dict().items(), frozen.model().state_dict().values()):
        assert torch.equal(a, b), name
    held.hold(False)
    before = {name: p.clone() for name, p in held.trained.named_parameters()}
    rate = held.schedule.rate(3)
    take(held)
    for name, p in held.trained.named_parameters():
        decay = 0.1 if p.dim() >= 2 else 0.0
        moved = without_keys(name, p.detach() - before[name] * (1 - rate * decay)).abs()
        assert moved.max() > 0, name
        if name.startswith("bert."):  # the first step of Adam with bias correction is the rate, whatever the gradient
            assert moved.max().item() == pytest.approx(rate, rel=1e-2), name
    for name, copied in held.state.optimizer.half.items():
        assert torch.equal(copied, held.trained.get_parameter(name).bfloat16()), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_recorded_steps_are_steps_across_the_boundary(accumulate):
    encoder = [name for name, _ in classifier().named_parameters() if name.startswith("bert.")]
    engines = []
    for recorder in (None, Calls()):
        engine = engine_of(classifier(), network=Padded, late=encoder, accumulate=accumulate)
        if recorder is not None:
            engine = replace(engine, step=Recorded(engine.state, recorder, print))
        for held in (True, False, False):  # hold is called at every epoch
            engine.hold(held)
            for _ in range(WARM + 2):
                parts = [range(4), range(4, 8)][:accumulate]
                batches = [engine.network.batch(engine.splits[0], part) for part in parts]
                engine.step(batches, engine.count(4 * accumulate))
        engines.append(engine)
    for (name, a), b in zip(engines[0].state_dict().items(), engines[1].state_dict().values()):
        assert torch.equal(a, b), name
    assert len({key[:2] for key in engines[1].step.recordings}) == 2 * accumulate
    leaves = [leaf for group in engine.state.optimizer.groups for leaf in group.leaves]
    before = [leaf.grad for leaf in leaves]
    engine.hold(False)  # a recording adds to the gradients where they were
    assert all(leaf.grad is grad for leaf, grad in zip(leaves, before))


# Runs


@pytest.fixture
def config(tiny, tmp_path):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TrainConfig(model=str(tiny), data=str(tmp_path / "texts.jsonl"), epochs=3, lr=1e-2, batch_size=16,
                       precision="fp32", out=str(tmp_path / "run"), save_every=0)  # fmt: skip


def state_of(path):
    return load_classifier(path / "model").state_dict()


@pytest.mark.parametrize("settings", [{"freeze": "encoder"}, {"freeze": "embeddings,layers:1-2", "init": "no-pooler"},
                                      {"freeze": "encoder", "head": "attention", "precision": "bf16"}])  # fmt: skip
def test_a_run_leaves_what_is_frozen_as_it_was(config, tiny, settings):
    said = []
    path = train(replace(config, **settings), said.append)
    pretrained, frozen = load_encoder(tiny).state_dict(), frozen_by(settings["freeze"], 2)
    for name, tensor in state_of(path).items():
        if frozen(name):
            assert torch.equal(tensor, pretrained[name.removeprefix("bert.")]), name
    manifest = json.loads((path / "manifest.json").read_text())
    assert state_of(path)["head.linear.weight"].std().item() != manifest["head.linear.weight"]["std"]
    (line,) = [line for line in said if line.startswith("frozen")]
    count = sum(map(frozen, state_of(path)))
    assert line.startswith(f"frozen: {settings['freeze']}; {count} of {len(state_of(path))} tensors, ")
    assert said.index(line) < next(i for i, text in enumerate(said) if "steps, 16 examples per step" in text)


def test_the_encoder_stays_for_some_epochs_and_then_moves(config, tiny, monkeypatch):
    saved, said, real = [], [], loop.folder.save_state

    def save(path, state):
        saved.append({name: tensor.clone() for name, tensor in state.tensors.items()})
        real(path, state)

    monkeypatch.setattr(loop.folder, "save_state", save)
    train(replace(config, freeze="layers:1-1", freeze_encoder_epochs=2), said.append)
    first, second = saved[:2]  # at the end of each epoch
    name = "model.bert.layers.1.feed_forward.input.weight"
    assert torch.equal(first[name], load_encoder(tiny).state_dict()[name.removeprefix("model.bert.")])
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first["model.head.linear.weight"], second["model.head.linear.weight"])
    assert not first["adamw.exp_avg.bert.pooler.dense.weight"].any()
    lines = [line for line in said if line.startswith("frozen")]
    assert lines[0].startswith("frozen: layers:1-1; 12 of 33 tensors")
    assert lines[1].startswith("frozen in the first 2 epochs: encoder; 31 of 33 tensors")


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "precision": "bf16"}, {"precision": "bf16"}])
def test_a_run_goes_on_across_the_boundary_to_the_same_bits(config, tmp_path, monkeypatch, changes):
    """Stopped in the frozen epoch, at the boundary, and behind it."""
    config = replace(config, freeze="embeddings", freeze_encoder_epochs=1, **changes)
    whole = train(replace(config, out=str(tmp_path / "whole")), str)
    steps = math.ceil(64 / 16 / config.accumulate)
    stops = [(1, 1), (1, steps), (2, 1), (3, 1)]

    def look(self, now, save):
        if stops and (now.epoch, now.step) == stops[0]:
            stops.pop(0)
            save(now)
            raise Killed

    monkeypatch.setattr(Keeper, "look", look)
    with pytest.raises(Killed):
        train(config, str)
    for _ in range(3):
        with pytest.raises(Killed):
            resume(tmp_path / "run", str)
    path = resume(tmp_path / "run", str)
    assert not stops
    for name, tensor in state_of(whole).items():
        assert torch.equal(tensor, state_of(path)[name]), name
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in read_history(p)] for p in (whole, path)]
    assert rows[0] == rows[1]


def test_a_state_of_the_boundary_itself_begins_the_encoder(config, tmp_path, monkeypatch):
    config = replace(config, freeze_encoder_epochs=1)
    whole = train(replace(config, out=str(tmp_path / "whole")), str)
    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, "append_row", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(config, str)
    assert load_state(tmp_path / "run").tensors["adamw.late_from"] == -1
    path = resume(tmp_path / "run", str)
    for name, tensor in state_of(whole).items():
        assert torch.equal(tensor, state_of(path)[name]), name


def test_layers_are_looked_at_frozen_or_not(config):
    path = train(replace(config, layers=True, freeze="layers:1-2", freeze_encoder_epochs=1), str)
    for row in read_history(path):
        assert [part["name"] for part in row["parts"]] == ["embeddings", "layer 1", "layer 2", "pooler", "head"]
        assert all(part["gradient"] > 0 for part in row["parts"])


class NoWeights(nn.Module):
    def forward(self, x):
        return x[:, :2]


@pytest.mark.parametrize("settings", [{"freeze": "encoder"}, {"freeze_encoder_epochs": 1}])
def test_nothing_left_to_train(config, settings, tmp_path):
    with pytest.raises(InputError, match="nothing is left to train"):
        train(replace(config, **settings, data="motion"), str, lambda d, c: NoWeights(), Data(TEXTS, LABELS).table())
    assert not (tmp_path / "run").exists()


def test_layers_beyond_the_model_are_refused_first(config):
    said = []
    with pytest.raises(InputError, match="--freeze layers:1-3: this model has layers 1 to 2"):
        prepare(replace(config, freeze="layers:1-3"), said.append)
    assert not any(line.startswith("data") for line in said)


def test_epochs_at_first_may_be_all(config):
    said = []
    prepare(replace(config, freeze_encoder_epochs=7), said.append)
    assert said[-1].startswith("frozen in all epochs: encoder; 31 of 33 tensors, ")

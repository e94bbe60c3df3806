"""minibert/engine/memory.py: what it foretells is what torch holds, and what a process is seen to take."""

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from minibert.config import TrainConfig
from minibert.data import Examples
from minibert.engine import assemble
from minibert.engine.dropout import BitDropout
from minibert.engine.machine import Machine
from minibert.engine.memory import HOLES, SURE, activations, evaluation, foretell, free, remembered
from minibert.engine.network import Packed, Padded, call_again, half_weights, with_copies
from minibert.engine.optimizer import Schedule
from minibert.freezing import freeze
from minibert.lab.memory import MemoryCase, format_row, measure, outlook
from minibert.model import BertClassifier, call

CPU = torch.device("cpu")
FP32, BF16 = Machine("fp32", "", CPU), Machine("bf16", "", CPU)
LENGTHS = [9] * 5
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory is in use")


def examples(lengths=LENGTHS):
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, TINY.vocab_size, n).astype(np.int32) for n in lengths]
    return Examples(ids, None, generator.integers(0, 5, len(lengths)), np.arange(len(lengths)))


def bytes_of(tensors):
    """Of their memory, counted once where they share it."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def kept(config, machine, kind, way, frozen="none"):
    """Bytes of all that a forward pass keeps for the backward pass, weights apart."""
    model = BertClassifier(config, dropout=BitDropout).train()
    freeze(model, TrainConfig(freeze=frozen))
    model = with_copies(model, half_weights(model, machine))
    tensors = []
    net = kind(model, machine, call=way)
    batch = net.batch(examples(), range(len(LENGTHS)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t), machine.autocast():
        loss = net(batch)[0].sum()  # while it lives, so do they
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *batch[:1])}
    assert loss.requires_grad
    return bytes_of(t for t in tensors if t.untyped_storage().data_ptr() not in weights)


@pytest.mark.parametrize("machine", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", [Packed, Padded])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("way", [call, call_again])
def test_a_layer_keeps_what_the_formula_says(machine, kind, pool, way):
    """To the byte; and of a network of two, all but what does not grow with the tokens."""
    configs = [replace(TINY, pool=pool, num_hidden_layers=layers) for layers in (2, 3)]
    seen = [kept(config, machine, kind, way) for config in configs]
    told = [activations(BertClassifier(config), LENGTHS, machine, way is call_again)[0] for config in configs]
    assert seen[1] - seen[0] == told[1] - told[0]
    if pool == "mean":
        assert seen[0] == pytest.approx(told[0], rel=0.1)


def test_frozen_layers_keep_nothing_below_the_first_trained_one():
    config = replace(TINY, num_hidden_layers=4)
    for frozen, layers in (
        ("none", 4),
        ("embeddings", 4),
        ("embeddings,layers:1-2", 2),
        ("layers:1-4", 4),
        ("encoder", 0),
    ):
        model = BertClassifier(config)
        freeze(model, TrainConfig(freeze=frozen))
        assert remembered(model) == layers, frozen
    saved = kept(config, FP32, Packed, call) - kept(config, FP32, Packed, call, "embeddings,layers:1-2")
    model = BertClassifier(config)
    whole, _ = activations(model, LENGTHS, FP32, False)
    freeze(model, TrainConfig(freeze="embeddings,layers:1-2"))
    assert saved == pytest.approx(whole - activations(model, LENGTHS, FP32, False)[0], rel=0.05)


@pytest.mark.parametrize("machine", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("frozen", ["none", "embeddings", "layers:1-1"])
def test_weights_moments_and_gradients_are_those_that_are_there(machine, accumulate, frozen):
    model = BertClassifier(TINY)
    freeze(model, TrainConfig(freeze=frozen))
    engine = assemble(model, [examples()], machine, Schedule(1e-3, 3, 0), accumulate=accumulate)
    engine.step([engine.network.batch(engine.splits[0], range(5))], engine.count(5))
    optimizer, trained = engine.state.optimizer, engine.trained
    told = foretell(model, len(engine.words.ids), [1], 1, machine, accumulate)
    table = model.bert.embeddings.word.weight
    assert told.weights == bytes_of([*trained.parameters(), table, *optimizer.half.values()])
    assert told.moments == bytes_of([*optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values()])
    leaves = [leaf for group in optimizer.groups for leaf in group.leaves]
    assert told.gradients == bytes_of(leaf.grad for leaf in leaves if leaf.grad is not None)


def test_the_moment_that_takes_most_decides():
    """Many tokens: the start of the backward pass, with no gradients yet; few: its end, or what comes after."""
    with torch.device("meta"):
        model = BertClassifier(replace(TINY, vocab_size=30, num_hidden_layers=6))
    many, few = foretell(model, 10, [60] * 10_000, 60, FP32), foretell(model, 10, [4], 4, FP32)
    assert many.gradients == 0
    assert few.gradients == few.moments / 2
    assert few.activations == (1 + HOLES) * evaluation(model, 4, FP32)
    assert foretell(model, 10, [60] * 10_000, 60, FP32, accumulate=2).gradients == few.gradients
    again = foretell(model, 10, [60] * 10_000, 60, FP32, checkpointing=True)
    assert again.activations < many.activations


def test_on_a_gpu_there_are_no_words_but_those_that_occur():
    with torch.device("meta"):
        model = BertClassifier(TINY)
    here, there = (foretell(model, 10, [4], 4, Machine("fp32", "", torch.device(kind))) for kind in ("cpu", "cuda"))
    assert here.weights - there.weights == 4 * TINY.vocab_size * TINY.hidden_size


def test_what_is_free_is_the_least_that_anything_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert free(FP32, tmp_path) is None

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 99 kB\nMemAvailable:   50 kB\nSwapFree: 10 kB\n")
    assert free(FP32, tmp_path) == 60 * 1024
    # version 2: the job's own group is unlimited, the one around it is not
    write("proc/self/cgroup", "0::/jobs/one\n")
    write("sys/fs/cgroup/jobs/one/memory.max", "max\n")
    write("sys/fs/cgroup/jobs/one/memory.current", "900\n")
    write("sys/fs/cgroup/jobs/memory.max", "40000\n")
    write("sys/fs/cgroup/jobs/memory.current", "30000\n")
    assert free(FP32, tmp_path) == 10_000
    write("sys/fs/cgroup/jobs/memory.stat", "anon 20000\ninactive_file 8000\n")
    assert free(FP32, tmp_path) == 18_000
    # version 1, seen from inside a container, where the path is not there
    write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "20000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "15000\n")
    write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 1000\ninactive_file 5\n")
    assert free(FP32, tmp_path) == 6000
    pages = 3
    write("proc/self/statm", f"{pages} 2 1\n")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (pages * resource.getpagesize() + 5000,) * 2)
    assert free(FP32, tmp_path) == 5000


@linux
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_process_takes_what_was_foretold(checkpointing):
    case = MemoryCase("minilm", 8, 128, "fp32", checkpointing)
    told, seen = outlook(case), measure(case)
    assert SURE * told < seen < told / SURE
    row = vars(case) | {"foretold": told, "measured": seen}
    assert len(format_row(row)) <= 80


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("batch", "checkpointing"), [(2, False), (32, True)])
def test_bert_large_trains_in_what_docs_say(batch, checkpointing):
    """335 million weights, in float32; docs/scale.md has the figures."""
    case = MemoryCase("large", batch, 128, "fp32", checkpointing)
    told, seen = outlook(case), measure(case)
    assert SURE * told < seen < told / SURE
    assert seen < 8e9

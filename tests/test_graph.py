"""minibert/engine/graph.py: recorded steps are steps. On a CPU with a stand-in that replays by calling; on a GPU, where
there is one, with real graphs (pytest -m cuda).
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed

from minibert.data import Examples
from minibert.engine import assemble, graph
from minibert.engine.dropout import OneKernelDropout
from minibert.engine.graph import WARM, Calls, CudaGraphs, Recorded
from minibert.engine.machine import Machine
from minibert.engine.network import Padded
from minibert.engine.optimizer import Schedule
from minibert.model import BertClassifier

CPU = torch.device("cpu")
FP32 = Machine("fp32", "", CPU)
DRY = replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)


def examples(lengths):
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, TINY.vocab_size, n).astype(np.int32) for n in lengths]
    return Examples(ids, None, generator.integers(0, 5, len(lengths)), np.arange(len(lengths)))


DATA = examples([9] * 8 + [12] * 8 + [9, 12, 7])


def classifier(config=DRY):
    torch.manual_seed(0)
    return perturbed(BertClassifier(config, dropout=OneKernelDropout))


def engine_on(machine, accumulate=1, config=DRY, recorder=None, say=print, rate=1e-3):
    engine = assemble(
        classifier(config), [DATA], machine, Schedule(rate, 100, 4), accumulate=accumulate, network=Padded, say=say
    )
    return engine if recorder is None else replace(engine, step=Recorded(engine.state, recorder, say))


def take(engine, steps, size=4):
    """Steps of the rows that are named, `size` a batch, seeded each; the losses of all."""
    losses = []
    for place, rows in enumerate(steps):
        torch.manual_seed(place)
        before = engine.state.sums.total.clone()
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        engine.step([engine.network.batch(engine.splits[0], part) for part in parts], engine.count(len(rows)))
        losses.append((engine.state.sums.total - before)[0])
    return [loss.item() for loss in losses]


# Two lengths in turn, and a last batch that is short and needs a mask.
SHORT, LONG = list(range(4)), list(range(8, 12))
STEPS = [SHORT, LONG] * 7 + [[16, 17, 18]] + [LONG, SHORT, SHORT]


class Watched(Calls):
    """Says what it did, and that a recording reads its own buffers only."""

    def __init__(self):
        self.ran, self.recorded, self.replayed = 0, 0, 0

    def run(self, work):
        self.ran += 1
        work()

    def record(self, work):
        self.recorded += 1

        def replay():
            self.replayed += 1
            work()

        return replay


@pytest.mark.parametrize("config", [DRY, TINY])
def test_recorded_steps_are_steps(config):
    plain, recorder = engine_on(FP32, config=config), Watched()
    recorded = engine_on(FP32, config=config, recorder=recorder)
    assert take(recorded, STEPS) == take(plain, STEPS)
    for (name, a), b in zip(plain.state_dict().items(), recorded.state_dict().values()):
        assert torch.equal(a, b), name
    assert recorder.recorded == 2  # the short last batch came too seldom
    assert recorder.ran == 2 * WARM + 1
    assert recorder.replayed == len(STEPS) - recorder.ran


@pytest.mark.parametrize("size", [4, 2])
def test_of_several_processes_only_batches_are_recorded(size):
    """One that has recorded what another has not yet would wait for it in a sum."""
    plain, recorder, sums = engine_on(FP32), Watched(), []
    recorded = engine_on(FP32)

    def reduce(tensors):
        sums.append(recorder.recorded)
        return [t.clone() for t in tensors]

    recorded = replace(recorded, step=Recorded(recorded.state, recorder, print, reduce))
    steps = [*STEPS, []]  # the last: an empty share
    assert take(recorded, steps, size) == take(plain, steps, size)
    for (name, a), b in zip(plain.state_dict().items(), recorded.state_dict().values()):
        assert torch.equal(a, b), name
    assert recorder.recorded == 2
    assert len(sums) == len(steps)


def test_several_batches_a_step_are_recorded_one_by_one():
    """The gradients stay where they are, and each step starts from zero."""
    steps = [SHORT + LONG, LONG + SHORT, list(range(8)), [*SHORT, 16, 17, 18]] * 4
    plain, recorder = engine_on(FP32, accumulate=2), Watched()
    recorded = engine_on(FP32, accumulate=2, recorder=recorder)
    assert take(recorded, steps) == take(plain, steps)
    for (name, a), b in zip(plain.state_dict().items(), recorded.state_dict().values()):
        assert torch.equal(a, b), name
    assert recorder.recorded == 3 + 1  # three shapes of batch, one update
    places = [leaf.grad.data_ptr() for group in recorded.state.optimizer.groups for leaf in group.leaves]
    take(recorded, steps[:1])
    assert places == [leaf.grad.data_ptr() for group in recorded.state.optimizer.groups for leaf in group.leaves]


def test_where_recording_fails_all_goes_on_and_it_is_said_once():
    class Fails(Calls):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    said = []
    plain, recorded = engine_on(FP32), engine_on(FP32, recorder=Fails(), say=said.append)
    assert take(recorded, STEPS) == take(plain, STEPS)
    assert said == [
        "no CUDA graph, so small batches wait for launches: operation not permitted when stream is capturing"
    ]


def test_no_more_shapes_are_recorded_than_memory_can_hold(monkeypatch):
    monkeypatch.setattr(graph, "MOST", 1)
    recorder = Watched()
    take(engine_on(FP32, recorder=recorder), STEPS)
    assert recorder.recorded == 1


def test_what_the_caller_does_with_a_batch_afterwards_is_not_seen():
    """A recording has its own input memory: the next batch may overwrite the caller's."""
    engine = engine_on(FP32, recorder=Watched())
    take(engine, [SHORT] * (WARM + 1))
    ((_, (buffers, count)),) = engine.step.recordings.values()
    batch = engine.network.batch(engine.splits[0], SHORT)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(buffers, batch) if b is not None)
    assert torch.equal(buffers.input_ids, batch.input_ids)
    assert count == 4


# A real GPU


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("config", [DRY, TINY])
def test_graphs_are_eager_steps_to_the_last_bit(cuda, name, accumulate, config):
    """20 steps, lengths in turn, with dropout from the same seeds and without."""
    machine = Machine(name, "", cuda)
    steps = [SHORT, LONG] * 10 if accumulate == 1 else [SHORT + LONG, list(range(8))] * 10
    eager = engine_on(machine, accumulate, config)
    eager = replace(eager, step=Recorded(eager.state, Never(), print))
    graphs = engine_on(machine, accumulate, config, CudaGraphs(cuda))
    assert take(graphs, steps) == take(eager, steps)
    assert graphs.step.recordings
    assert not graphs.step.failed
    for (key, a), b in zip(eager.state_dict().items(), graphs.state_dict().values()):
        assert torch.equal(a, b), key


class Never(Calls):
    """Runs every step as it is."""

    def record(self, work):
        raise RuntimeError("never")


@pytest.mark.cuda
def test_an_overflow_in_a_graph_skips_the_step(cuda):
    engine = engine_on(Machine("fp16", "", cuda), recorder=CudaGraphs(cuda))
    take(engine, [SHORT] * (WARM + 2))
    before = {key: t.clone() for key, t in engine.state_dict().items() if key.startswith(("model.", "adamw."))}
    engine.state.scaler.scale.fill_(2.0**120)
    take(engine, [SHORT])
    assert engine.state.sums.read().skipped == 1
    assert engine.state.scaler.scale == 2.0**119
    assert all(torch.equal(engine.state_dict()[key], t) for key, t in before.items())


@pytest.mark.cuda
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_replay_does_not_wait_for_the_device(cuda, accumulate):
    engine = engine_on(Machine("bf16", "", cuda), accumulate, recorder=CudaGraphs(cuda))
    rows = SHORT if accumulate == 1 else SHORT + LONG
    take(engine, [rows] * (WARM + 2))
    torch.cuda.synchronize()
    parts = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            batches = [engine.network.batch(engine.splits[0], part) for part in parts]
            engine.step(batches, engine.count(len(rows)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(engine.state.sums.read().loss)


@pytest.mark.cuda
def test_a_run_on_a_gpu_goes_on_from_its_state(cuda):
    machine = Machine("bf16", "", cuda)
    whole = engine_on(machine, config=TINY, recorder=CudaGraphs(cuda))
    take(whole, STEPS)
    state = copy.deepcopy(whole.state_dict())
    again = engine_on(machine, config=TINY, recorder=CudaGraphs(cuda))
    again.load_state_dict(state)
    assert take(again, STEPS) == take(whole, STEPS)
    for (key, a), b in zip(whole.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), key


@pytest.mark.cuda
def test_the_update_is_compiled_for_a_gpu(cuda):
    engine = engine_on(Machine("bf16", "", cuda))
    why_not = engine.state.optimizer.compile()
    assert why_not is None, why_not
    other = engine_on(Machine("bf16", "", cuda))
    assert take(engine, STEPS) == pytest.approx(take(other, STEPS), rel=1e-3)

"""minibert/room.py: a run says what it will take, and one that cannot fit is refused before its model is built."""

from dataclasses import replace

import numpy as np
import pytest
from test_memory import FP32, examples

from minibert import room, setup
from minibert.config import TrainConfig
from minibert.engine.memory import SURE, Memory
from minibert.errors import InputError
from minibert.launch import Launch
from minibert.lines import WIDTH
from minibert.room import largest_batch
from minibert.setup import prepare
from minibert.training.run import train


@pytest.fixture
def config(tiny, tmp_path):
    data = tmp_path / "numbers.csv"
    data.write_text("text,label\n" + "".join(f"{i % 50} {i % 7},{'ab'[i % 2]}\n" for i in range(40)))
    return TrainConfig(data=str(data), model=str(tiny), epochs=1, batch_size=8, out=str(tmp_path / "run"), lr=1e-3)


def lines_of(config, monkeypatch, there, told=None):
    """What a run says of memory, where so much is free."""
    monkeypatch.setattr(room, "free", lambda machine: there)
    if told is not None:
        monkeypatch.setattr(room, "foretell", lambda *_: told)
    said = []
    prepare(config, said.append)
    return [line for line in said if line.startswith("memory")]


def test_a_run_says_what_it_takes_of_what_is_free(config, monkeypatch):
    told = Memory(2e9, 3e9, 0.4e9, 0.51e9)
    (line,) = lines_of(config, monkeypatch, 20.14e9, told)
    assert line == "memory: about 5.9 of 20.1 GB free: weights and optimizer 5.4, activations 0.5"
    (line,) = lines_of(config, monkeypatch, 1999e9, Memory(*[150e9] * 4))
    assert len(line) <= WIDTH
    assert lines_of(config, monkeypatch, None) == []


def test_a_run_that_cannot_fit_is_refused_before_its_model_is_built(config, monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "initialize", lambda *_: pytest.fail("a model was built"))
    monkeypatch.setattr(room, "free", lambda machine: 8e9)
    monkeypatch.setattr(room, "foretell", lambda *a: Memory(2e9, 3e9, 0, 2e9 if a[-2] else 9e9))
    with pytest.raises(InputError) as refused:
        train(config, str)
    assert str(refused.value) == (
        "this run would take about 14.0 GB of memory (weights and optimizer 5.0, activations 9.0), and 8.0 GB are"
        " free; lower --batch-size (--accumulate makes up for it) or --max-length, add --gradient-checkpointing"
        " (about 7.0 GB), or take a smaller --model"
    )
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(room, "foretell", lambda *_: Memory(2e9, 3e9, 0, 9e9))
    with pytest.raises(InputError, match=r"or --max-length, or take a smaller --model$"):
        train(replace(config, gradient_checkpointing=True), str)
    monkeypatch.setattr(room, "foretell", lambda *_: Memory(20e9, 30e9, 0, 1))
    with pytest.raises(InputError, match=r"8.0 GB are free; take a smaller --model$"):
        train(config, str)


def test_only_what_clearly_cannot_fit_is_refused(config, monkeypatch):
    told = Memory(10e9, 0, 0, 0)
    assert lines_of(config, monkeypatch, SURE * 10e9, told)
    with pytest.raises(InputError):
        lines_of(config, monkeypatch, SURE * 10e9 - 1, told)


def test_a_small_run_fits_and_asks_for_little(config, monkeypatch):
    """With all its real sizes, and in a network of its own head."""
    (line,) = lines_of(config, monkeypatch, 1e9)
    assert line.startswith("memory: about 0.0 of 1.0 GB free")
    monkeypatch.setattr(room, "free", lambda machine: 1e3)
    with pytest.raises(InputError, match="take a smaller --model"):
        prepare(config, str)
    prepare(config, str, trains=False)


def test_the_largest_batch_is_one_of_the_first_epoch():
    lengths = np.random.default_rng(0).integers(3, 60, 41)
    data = examples(lengths)
    config = TrainConfig(batch_size=4, accumulate=2, seed="3")
    batch = largest_batch(config, data, FP32, 1)
    plan = room.Plan(41, 5, 4, 2, order=3)
    passes = [sorted(lengths[list(part)]) for rows in plan.rows(1) for part in plan.batches(rows)]
    assert sorted(batch) in passes
    assert sum(n * (n + 384) for n in batch) == max(sum(n * (n + 384) for n in part) for part in passes)
    assert all(n % 8 == 0 for n in largest_batch(config, data, FP32, 8))


def test_several_processes_of_a_machine_share_what_is_free(config, monkeypatch):
    monkeypatch.setattr(room, "launch", lambda: Launch(world=8, machines=2))
    (line,) = lines_of(config, monkeypatch, 40e9, Memory(1e9, 0, 0, 0))
    assert "of 10.0 GB free" in line

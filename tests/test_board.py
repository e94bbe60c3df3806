"""minibert/training/board.py: what TensorBoard reads is what metrics.jsonl has."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from minibert import setup
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.training import loop
from minibert.training.board import SCALARS
from minibert.training.run import resume, train


@pytest.fixture
def config(tiny, tmp_path):
    lines = [f"{i % 50 + 50 * (i % 2)},{i % 2}" for i in range(60)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return TrainConfig(
        data=str(tmp_path / "a.csv"), model=str(tiny), epochs=3, batch_size=16, lr=1e-3, tensorboard=True,
        out=str(tmp_path / "run"),
    )  # fmt: skip


def test_without_tensorboard_it_is_one_line_before_anything_long(config, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with pytest.raises(InputError, match=r"--tensorboard needs a package: pip install -e '\.\[tensorboard\]'"):
        train(replace(config, model="./nowhere"), str)
    assert not (tmp_path / "run").exists()


def test_every_epoch_once_also_of_a_run_that_was_killed(config, tmp_path, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    real = loop.folder.save_state
    with monkeypatch.context() as patch:  # epoch 2 is in the events, but not in the state that the run goes on from
        patch.setattr(loop.folder, "save_state", lambda path, state: len(state.history) == 1 and real(path, state))
        patch.setattr(loop.folder, "end", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, str)
    path = resume(tmp_path / "run", str)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    events = accumulators.EventAccumulator(str(path)).Reload()
    assert set(events.Tags()["scalars"]) == set(SCALARS)
    for name, field in SCALARS.items():
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert seen == [(row["epoch"], pytest.approx(row[field], rel=1e-6)) for row in rows]
    assert len(rows) == 3

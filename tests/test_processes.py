"""minibert/engine/processes.py: 2 and 3 processes train what one does, stop as one, and go on as any number of them."""

import json
import random
import signal
from dataclasses import replace

import pytest
import together as jobs
import torch
from safetensors.torch import load_file
from together import new_store, together

from minibert.config import TrainConfig
from minibert.engine.processes import ALONE, here, joined
from minibert.errors import InputError, Stopped
from minibert.launch import Launch, launch
from minibert.training import keeper, loop, run

TRAIN, VAL, TEST = 43, 60, 20  # the last of 8 batches of 6 is a single example


@pytest.fixture(scope="session")
def config(tiny, tmp_path_factory):
    """Low and high numbers, texts of many lengths."""
    folder, generator = tmp_path_factory.mktemp("processes"), random.Random(0)
    rows = [
        {"text": " ".join(str(generator.randrange(50) + 50 * (i % 2)) for _ in range(generator.randrange(2, 12))),
         "label": ("low", "high")[i % 2], "split": split}
        for split, count in (("train", TRAIN), ("val", VAL), ("test", TEST)) for i in range(count)
    ]  # fmt: skip
    (folder / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TrainConfig(
        data=str(folder / "numbers.jsonl"), model=str(tiny), lr=1e-3, epochs=7, batch_size=6, dropout="0",
        precision="fp32", save_every=0,
    )  # fmt: skip


CHANGES = {
    "plain": {},
    "accumulated, clipped": {"accumulate": 3, "clip": 0.05, "epochs": 3},
    "self-mlm": {"init": "self-mlm:1", "epochs": 1},
}


def variants(config, folder):
    return [replace(config, out=str(folder / name), **changes) for name, changes in CHANGES.items()]


@pytest.fixture(scope="module")
def one(config, tmp_path_factory):
    """The folder of what one process makes of all variants."""
    folder = tmp_path_factory.mktemp("one")
    jobs.compare(folder, variants(config, folder))
    return folder


def weights(path):
    """Without the keys' biases, see without_keys."""
    tensors = load_file(path / "model" / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("key.bias")}


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_close(path, expected, tolerance=1e-5):
    """Two runs' best weights and rows, within rounding; counts exactly."""
    mine, others = weights(path), weights(expected)
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(
            tensor, others[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert len(rows_of(path)) == len(rows_of(expected))
    for row, other in zip(rows_of(path), rows_of(expected)):
        for key in ("epoch", "step", "train_accuracy", "val_accuracy", "lr", "skipped_steps"):
            assert row[key] == other[key], key
        for key in ("train_loss", "val_loss"):
            assert row[key] == pytest.approx(other[key], abs=tolerance)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_train_what_one_does(config, one, tmp_path, world):
    codes, printed = together(world, jobs.compare, tmp_path, variants(config, tmp_path))
    assert codes == [0] * world, printed
    expected = json.loads((one / "0.json").read_text())
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    assert [other["hashes"] for other in seen] == [seen[0]["hashes"]] * world  # the same bits in all of them
    assert len({other["seed"] for other in seen}) == world
    assert seen[-1]["empty"] > 0 == seen[0]["empty"]
    assert len(seen[0]["losses"][0]) == 56
    for losses, others in zip(seen[0]["losses"], expected["losses"]):
        assert losses == pytest.approx(others, abs=1e-5)
    for name in CHANGES:
        assert_close(tmp_path / name, one / name)
    assert seen[0]["rows"] == VAL + TEST
    evaluated = [other["evaluated"] for other in seen]
    assert sum(evaluated) == expected["evaluated"] == (7 + 3 + 1 + 1) * VAL + TEST
    assert min(evaluated) > 0
    for split in ("val", "test"):
        assert seen[0]["reports"][split]["confusion"] == expected["reports"][split]["confusion"]
        assert [other["reports"] for other in seen] == [seen[0]["reports"]] * world
    said = printed[0].split("\n")
    assert said[0].startswith("minibert on CPU, 1 thread, ")
    assert f"{world} processes, gloo" in " ".join(said[:2])
    assert sum("next: python eval.py" in line for line in said) == 3
    assert printed[1:] == [""] * (world - 1)


def test_a_signal_to_one_stops_all_behind_one_step_and_any_number_goes_on(config, one, tmp_path):
    """Stopped with 2 inside the first epoch, with 3 inside the second; the rest by one."""
    path, printed = tmp_path / "run", []
    codes, said = together(2, jobs.train, replace(config, out=str(path)), 1, signal.SIGTERM, 3)
    assert codes == [128 + signal.SIGTERM] * 2, said
    assert said[0].strip().endswith(f"train.py: stopped; python train.py --resume {path} goes on behind this step")
    assert said[1] == ""
    assert load_file(path / "state" / "state.safetensors")["cursor"].tolist() == [1, 3]
    with pytest.MonkeyPatch.context() as patch:
        real = loop.Keeper.look

        def look(self, cursor, save):
            self.told = signal.SIGINT if (cursor.epoch, cursor.step) == (2, 4) else None
            real(self, cursor, save)

        patch.setattr(loop.Keeper, "look", look)
        with pytest.raises(Stopped):
            run.resume(path, printed.append, force=True)
    assert any("2 processes, gloo" in line and "last bits may differ" in line for line in printed)
    codes, said = together(3, jobs.resume, path)
    assert codes == [0] * 3, said
    assert_close(path, one / "plain")
    assert not (path / "lock").exists()


def test_a_killed_process_ends_the_run_and_a_restart_goes_on(config, one, tmp_path):
    path = tmp_path / "run"
    given, store = replace(config, out=str(path), save_every=1e-9), new_store()  # it outlives the processes
    codes, said = together(3, jobs.train, given, 1, signal.SIGKILL, 12, store=store, TORCHELASTIC_MAX_RESTARTS=2)
    assert codes == [2, -signal.SIGKILL, 2], said
    for rank in (0, 2):
        line = said[rank].strip().splitlines()[-1]
        assert line.startswith(f"train.py: error: process {rank} of 3: another one was killed, or cannot be reached; ")
        assert line.endswith(f"python train.py --resume {path} goes on from its last snapshot")
        assert "Traceback" not in said[rank]
    again = {"TORCHELASTIC_MAX_RESTARTS": 2, "TORCHELASTIC_RESTART_COUNT": 1}
    other = replace(given, lr=2e-3)
    codes, said = together(2, jobs.train, other, store=store, **again)  # what lies there is not this command's
    assert codes == [2, 2]
    assert "already holds a run" in said[0]
    assert said[1] == ""
    again["TORCHELASTIC_RESTART_COUNT"] = 2
    codes, said = together(2, jobs.train, given, store=store, **again)
    assert codes == [0, 0], said
    assert "resuming in epoch 2, after step" in said[0]
    assert_close(path, one / "plain")


def test_a_refusal_is_one_line_of_the_first(tmp_path):
    codes, said = together(2, jobs.command, "--data", str(tmp_path / "nothing.csv"))
    assert codes == [2, 2]
    assert said[0].count("error: ") == 1
    assert "nothing.csv" in said[0]
    assert said[1] == ""
    codes, said = together(2, jobs.command, "--lr", "7")
    assert [text.count("--lr 7.0: it must be") for text in said] == [1, 0]


def test_a_gradient_that_is_not_finite_ends_all_at_one_step(config, tmp_path):
    codes, said = together(2, jobs.overflow, replace(config, out=str(tmp_path / "run")), 1)
    assert codes == [2, 2]
    assert "the gradient is not finite at step 1 " in said[0]
    assert ": the gradient of head.linear.weight was so first; rows " in said[0]
    assert said[1] == ""


def test_one_process_does_nothing(monkeypatch):
    for name in ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list", "init_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, name=name: pytest.fail(name))
    tensors = [torch.ones(2)]
    assert ALONE.add(tensors) is tensors
    ALONE.spread(tensors)
    assert (ALONE.most(3, 4), ALONE.gather(5), ALONE.share([1, 2]), ALONE.join([1, 2])) == ([3, 4], [5], [1, 2], [1, 2])
    assert (ALONE.once(max, 1, 2), ALONE.each(max, 1, 2)) == (2, 2)
    with joined() as processes:
        assert processes is ALONE is here()


def test_what_torchrun_says(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # some systems set it by itself
    assert launch() == Launch()
    given = {"RANK": 3, "LOCAL_RANK": 1, "MASTER_ADDR": "host", "WORLD_SIZE": 4, "GROUP_WORLD_SIZE": 2,
             "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": 2,
             "TORCHELASTIC_MAX_RESTARTS": 5}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    assert launch() == Launch(3, 4, 1, 2, True, 2, 5)


def test_a_restart_needs_to_know_the_folder(config, monkeypatch):
    monkeypatch.setattr(run, "launch", lambda: Launch(max_restarts=1))
    with pytest.raises(InputError, match="--max-restarts needs --out"):
        run.goes_on(config, 0)


def test_under_torchrun_a_signal_may_come_twice(tmp_path, monkeypatch):
    """From a terminal or a scheduler, and from torchrun, which hands it on."""
    monkeypatch.setattr(keeper, "launch", lambda: Launch(torchrun=True))
    one = keeper.Keeper(tmp_path, 0, obeys=True)
    with one.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert one.told == signal.SIGTERM

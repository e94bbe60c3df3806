"""A run that is stopped goes on to the same bits, whatever its settings; what changed meanwhile is told."""

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minibert.classifier import Classifier
from minibert.config import TrainConfig
from minibert.engine.epochs import Cursor
from minibert.engine.optimizer import AdamW
from minibert.errors import InputError, Stopped
from minibert.initialization import SCHEMES
from minibert.setup import prepare
from minibert.training import loop
from minibert.training.folder import read_history
from minibert.training.keeper import Keeper
from minibert.training.outcome import evaluate_run
from minibert.training.run import resume, train

FORMS = {"K": "1", "I-J": "1-1", "E": "1", "G": "0.1"}
STARTS = [f"{name}:{FORMS[scheme.form]}" if scheme.form else name for name, scheme in SCHEMES.items()]


@pytest.fixture
def config(tiny, tmp_path):
    """Two epochs of four steps."""
    rows = [{"text": " ".join(str((7 * i + n) % 50 + 50 * (i % 2)) for n in range(3 + i % 4)), "label": i % 2}
            for i in range(40)]  # fmt: skip
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TrainConfig(
        data=str(tmp_path / "numbers.jsonl"), model=str(shutil.copytree(tiny, tmp_path / "tiny")), lr=3e-3, epochs=2,
        batch_size=8, out=str(tmp_path / "run"), save_every=0,
    )  # fmt: skip


def end_of(path):
    """Weights bit by bit, the rows of the epochs but for times, what eval finds."""
    rows = [{key: value for key, value in row.items() if "second" not in key} for row in read_history(path)]
    reports, predictions = evaluate_run(path)
    return (path / "model" / "model.safetensors").read_bytes(), rows, reports, list(predictions)


def stopped_behind(monkeypatch, count):
    """From now on a run stops behind every so many steps that it takes."""
    steps, real = 0, Keeper.look

    def look(self, *arguments):
        nonlocal steps
        steps += 1
        if steps % count == 0:
            self.told = 2
        real(self, *arguments)

    monkeypatch.setattr(Keeper, "look", look)


def to_its_end(config):
    """With as many stops as there come; how many there were."""
    stops = 0
    while True:
        try:
            _ = resume(Path(config.out), str) if stops else train(config, str)
            return stops
        except Stopped:
            stops += 1


CASES = [
    {"precision": "bf16"}, {"precision": "fp16"}, {"accumulate": 2, "batch_size": 3},
    {"accumulate": 2, "batch_size": 3, "precision": "bf16"}, {"dropout": "0.3,0,0.2"}, {"dropout": "0"},
    {"layers": True}, {"pool": "mean"}, {"clip": 0.0, "bias_correction": False, "weight_decay": 0.1},
    {"examples": "20"}, {"seed": "3,order=5"}, {"on_nonfinite": "skip:3"},
    {"head": "mlp"}, {"head": "attention", "class_weights": "balanced", "label_smoothing": 0.1},
    {"freeze_encoder_epochs": 1}, {"select": "loss", "early_stopping": 1},
    *({"init": start, "epochs": 1} for start in STARTS),
]  # fmt: skip


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()))
def test_stopped_and_gone_on_with_is_never_stopped(config, tmp_path, monkeypatch, changes):
    config = replace(config, **changes)
    whole = end_of(train(replace(config, out=str(tmp_path / "whole")), str))
    stopped_behind(monkeypatch, 3)
    assert to_its_end(config) >= config.epochs
    assert end_of(tmp_path / "run") == whole


@pytest.mark.slow
def test_compiled_too(config, tmp_path, monkeypatch):
    real, told = loop.assemble, []
    monkeypatch.setattr("minibert.engine.WORTH_COMPILING", 0)
    monkeypatch.setattr(loop, "assemble", lambda *a, **more: real(*a, **more | {"say": told.append}))
    whole = end_of(train(replace(config, out=str(tmp_path / "whole")), str))
    if told:
        pytest.skip(told[0])
    stopped_behind(monkeypatch, 3)
    assert to_its_end(config) >= 2
    assert end_of(tmp_path / "run") == whole


def stopped(config, monkeypatch, steps=5):
    """A run that stands in its second epoch."""
    with monkeypatch.context() as patch:
        stopped_behind(patch, steps)
        with pytest.raises(Stopped):
            train(config, str)
    return Path(config.out)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"device": "CPU, 64 threads"}, "device CPU, 64 threads (now CPU, "), ({"processor": "i486"}, "processor i486"),
     ({"instructions": "MMX"}, "instructions MMX"), ({"versions": {"torch": "1.0"}}, "torch 1.0 (now ")],
)  # fmt: skip
def test_where_bits_would_change_it_goes_on_only_by_force(config, monkeypatch, changes, told):
    path = stopped(config, monkeypatch)
    content, said = json.loads((path / "config.json").read_text()), []
    (path / "config.json").write_text(json.dumps(content | changes))
    with pytest.raises(InputError) as refused:
        resume(path, str)
    assert told in str(refused.value)
    assert str(refused.value).endswith("--force goes on so")
    stopped_behind(monkeypatch, 2)
    with pytest.raises(Stopped):
        resume(path, said.append, force=True)
    assert any(line.startswith(f"it began with {told}") for line in said)
    resume(path, str)  # where it stands now it is at home
    kept = json.loads((path / "config.json").read_text())
    assert [(move["epoch"], move["step"]) for move in kept["moved"]] == [(2, 1)]
    assert (kept["started"], kept["device"]) == (content["started"], content["device"])


@pytest.mark.parametrize("init", ["pretrained", "random"])
@pytest.mark.parametrize("file", ["config.json", "vocab.txt", "model.safetensors"])
def test_all_that_a_run_is_made_from_must_be_what_it_was(config, monkeypatch, init, file):
    path = stopped(replace(config, init=init), monkeypatch)
    there = Path(config.model) / file
    if file == "config.json":
        there.write_text(json.dumps(json.loads(there.read_text()) | {"hidden_act": "relu"}))
    elif file == "vocab.txt":
        there.write_text(there.read_text().replace("\n1\n2\n", "\n2\n1\n"))
    else:
        there.write_bytes(there.read_bytes()[:-1] + b"\1")
    part = "" if file == "model.safetensors" else f"'s {file}"
    with pytest.raises(InputError, match=rf"the checkpoint{part} of .*run changed since it started"):
        resume(path, str)


def test_another_tokenizer_in_model_is_refused_and_put_right(config, monkeypatch):
    path = stopped(config, monkeypatch)
    tokenizer, refused = (
        path / "model" / "tokenizer.json",
        r"tokenizer.json is not the run's own; .*--resume .* puts it",
    )
    whole = tokenizer.read_text()
    for spoil in (lambda: tokenizer.write_text(whole.replace('"1"', '"one"')), tokenizer.unlink):
        spoil()
        for reads in (evaluate_run, Classifier.load):
            with pytest.raises(InputError, match=refused):
                reads(path)
        with monkeypatch.context() as patch:
            stopped_behind(patch, 1)
            with pytest.raises(Stopped):
                resume(path, str)
        assert tokenizer.read_text() == whole
    resume(path, str)
    report, _ = evaluate_run(path)
    tokenizer.unlink()
    with pytest.raises(InputError, match=refused):
        evaluate_run(path)
    assert resume(path, str) == path  # it has ended: nothing else is done
    assert evaluate_run(path)[0] == report
    tokenizer.unlink()
    vocabulary = Path(config.model) / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text().replace("\n99\n", "\n98b\n"))
    with pytest.raises(InputError, match="has lost its tokenizer, and --model .* has another one now"):
        resume(path, str)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_best_epoch_that_is_gone_is_said_by_all(config, monkeypatch, name):
    path = stopped(config, monkeypatch)
    (path / "model" / name).unlink()
    for act in (evaluate_run, resume):
        with pytest.raises(InputError, match="model, the best epoch.*, is gone, and nothing else holds it; start"):
            act(path)


def test_a_run_that_has_ended_and_lost_its_model_says_so(config):
    path = train(config, str)
    shutil.rmtree(path / "model")
    for act, said in ((evaluate_run, "the best epoch, is gone"), (resume, "has ended, and .*, its best epoch, is")):
        with pytest.raises(InputError, match=f"{said}.*; start the run anew"):
            act(path)


def test_a_run_without_a_model_yet_says_how_it_gets_one(config, monkeypatch):
    path = stopped(config, monkeypatch, steps=2)
    with pytest.raises(InputError, match=r"no model yet; its first epoch has not ended \(python train.py --resume"):
        evaluate_run(path)


def test_a_collapsed_run_goes_on_to_a_collapsed_run(config, tmp_path, monkeypatch):
    config = replace(config, init="random", lr=0.3, warmup=0.0, epochs=5, bias_correction=False, stop_on_collapse=3)
    whole = end_of(train(replace(config, out=str(tmp_path / "whole")), str))
    assert [row["verdict"]["name"] for row in whole[1]][-3:] == ["collapsed"] * 3
    stopped_behind(monkeypatch, 5)
    assert to_its_end(config) >= 2
    assert end_of(tmp_path / "run") == whole
    ended = [json.loads((tmp_path / name / "config.json").read_text())["ended"] for name in ("whole", "run")]
    assert ended[0]["collapsed_since"] == ended[1]["collapsed_since"]


def test_times_never_run_backwards(config, monkeypatch):
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(now))
    assert all(row["seconds"] > 0 and row["examples_per_second"] > 0 for row in read_history(train(config, str)))


def bad_at(monkeypatch, *steps):
    """From now on the gradients of these steps, counted from 1, are not finite."""
    taken = 0

    def norm(self, gradients):
        nonlocal taken
        taken += 1
        return torch.tensor(math.nan if taken in steps else 1.0, dtype=torch.float64)

    monkeypatch.setattr(AdamW, "norm", norm)


def test_a_gradient_that_is_not_finite_ends_the_run_and_the_line_says_where(config, monkeypatch):
    with monkeypatch.context() as patch:
        bad_at(patch, 6)
        with pytest.raises(InputError) as told:
            train(config, str)
    setup, path = prepare(config, str), Path(config.out)
    chosen = loop.plan_of(setup).rows(2)[1]
    rows = ", ".join(str(setup.data.train.rows[i]) for i in chosen)  # those of the data, not of the split
    assert str(told.value).startswith("the gradient is not finite at step 6 (lr ")
    assert f"the gradient's norm was so first; rows {rows} of the data" in str(told.value)
    assert "lower --lr" in str(told.value).lower()
    assert [row["epoch"] for row in read_history(path)] == [1]
    assert evaluate_run(path)
    resume(path, str)  # the last good snapshot stands


def test_a_bad_step_is_taken_once_more_under_its_own_seed(config, monkeypatch):
    """Dropout draws what it drew."""
    bad_at(monkeypatch, 6)
    seen = []
    monkeypatch.setattr(loop, "first_not_finite", lambda *_: seen.append(torch.get_rng_state()))
    with pytest.raises(InputError):
        train(config, str)
    torch.manual_seed(loop.plan_of(prepare(config, str)).seed(Cursor(2, 1)))
    assert torch.equal(seen[0], torch.get_rng_state())


def test_a_few_bad_steps_are_passed_over_where_asked(config, tmp_path, monkeypatch):
    bad_at(monkeypatch, 2, 3, 6)
    rows = read_history(train(replace(config, on_nonfinite="skip:2"), str))
    assert [(row["step"], row["skipped_steps"]) for row in rows] == [(2, 2), (5, 1)]
    bad_at(monkeypatch, 2, 3, 4, 6)
    with pytest.raises(InputError, match="not finite at step 4 "):
        train(replace(config, on_nonfinite="skip:2", out=str(tmp_path / "more")), str)


def test_an_epoch_without_a_step_ends_the_run(config, monkeypatch):
    bad_at(monkeypatch, *range(5, 100))
    with pytest.raises(InputError, match="not finite at step 8 "):
        train(replace(config, on_nonfinite="skip:50", epochs=9), str)


def test_a_network_that_has_outgrown_float16_ends_in_one_line_and_valid_json(config):
    with pytest.raises(InputError, match=r"not finite at step \d+ .* (output|loss|gradient) .*was so first"):
        train(replace(config, precision="fp16", lr=1.0, warmup=0.0, clip=0.0, epochs=40), str)
    path = Path(config.out)
    text = (path / "metrics.jsonl").read_text() if (path / "metrics.jsonl").exists() else ""
    assert [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()] == read_history(path)


def test_a_validation_loss_that_is_not_finite_ends_the_run(config, monkeypatch):
    monkeypatch.setattr(loop, "report", lambda *_: {"loss": math.nan})
    with pytest.raises(InputError, match="the validation loss of epoch 1 is not finite; lower --lr"):
        train(config, str)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")]
)
def test_too_little_memory_is_one_line_with_sizes(config, monkeypatch, error):
    monkeypatch.setattr(loop, "steps", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(
        InputError, match=r"out of memory with 8 examples of up to \d+ tokens a pass and [\d,]+ weights"
    ):
        train(config, str)
    monkeypatch.setattr(loop, "steps", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        resume(Path(config.out), str)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model", "model/model.safetensors", "state"])
def test_what_is_a_link_is_not_written_through(config, tmp_path, monkeypatch, name):
    """A run from elsewhere could have its metrics.jsonl point at any file of whoever goes on with it."""
    path, outside = stopped(config, monkeypatch), tmp_path / "precious"
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    before = {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()}
    with pytest.raises(InputError, match="is a link; a run goes on in its own folder alone"):
        resume(path, str)
    assert {path: path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()} == before


@pytest.mark.parametrize(
    ("metadata", "cursor", "said"),
    [
        ({"history": "7"}, [2, 2], "row 1 is not"), ({"history": "[{}]"}, [2, 2], "row 1 is not"),
        ({"history": "[" * 10**5}, [2, 2], "nested too deeply"), ({"history": "[]"}, [2, 2], "behind 0 epochs"),
        ({"seconds": "nan"}, [2, 2], "nan seconds"), ({}, [2, -1], "it stands at"), ({}, [10**9, 0], "it stands at"),
        ({}, [2.0, 1.0], "it stands at"), ({}, [1], "it stands at"), ({}, [], "it stands at"),
    ],
)  # fmt: skip
def test_a_state_with_nonsense_in_it(config, monkeypatch, metadata, cursor, said):
    run = stopped(config, monkeypatch)
    path = run / "state" / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors, was = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors | {"cursor": torch.tensor(cursor)}, path, was | metadata)
    with pytest.raises(InputError, match=f"state.safetensors is not whole .*{said}"):
        resume(run, str)

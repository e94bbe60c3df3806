"""minibert/training/loop.py: what a step does, what a run leaves, and that a stopped one goes on."""

import json
import math
import shlex
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, one_step, perturbed
from safetensors import safe_open

from minibert.checkpoint import load_classifier
from minibert.classifier import Classifier
from minibert.config import TrainConfig
from minibert.data.batches import Batch
from minibert.data.table import Table
from minibert.engine import machine
from minibert.engine.epochs import Cursor
from minibert.engine.machine import choose_machine
from minibert.engine.network import Padded
from minibert.engine.optimizer import AdamW, LossScaler
from minibert.engine.step import Sums, balanced, classification
from minibert.errors import InputError, Stopped
from minibert.evaluation import predict
from minibert.files import locked
from minibert.inside import choose, look
from minibert.model import BertClassifier
from minibert.setup import prepare
from minibert.training import folder, keeper, loop, run
from minibert.training.keeper import Keeper
from minibert.training.outcome import evaluate_run
from minibert.training.run import resume, train

FP32 = choose_machine("fp32", torch.device("cpu"))
FP16 = choose_machine("fp16", torch.device("cpu"))
DRY = replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)


def classifier(config=DRY):
    torch.manual_seed(0)
    return perturbed(BertClassifier(config))


def batch(n, length=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, TINY.vocab_size, (n, length), generator=generator)
    return Batch(ids, None, None, torch.randint(0, 5, (n,), generator=generator))


def parts(whole, size):
    return [Batch(i, None, None, y) for i, y in zip(whole.input_ids.split(size), whole.labels.split(size))]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def step(model, micro, lr=1e-3, clip=1.0, precision=FP32, scaler=None, optimizer=None):
    optimizer = optimizer or AdamW(model.named_parameters())
    return one_step(model, optimizer, micro, lr, clip, precision, scaler)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_accumulation_is_one_large_batch(size):
    whole, cut = classifier(), classifier()
    one = step(whole, [batch(6)])
    many = step(cut, parts(batch(6), size))  # 5: batches of different sizes weigh by their examples
    assert many.loss_sum.item() == pytest.approx(one.loss_sum.item(), rel=1e-5)
    assert (many.count, many.correct.item()) == (6, one.correct.item())
    # The first step of Adam is a sign: compare the gradients, and the weights where the sign is certain.
    for a, b in zip(whole.parameters(), cut.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_loss_is_a_mean_per_example():
    model = classifier()
    expected = torch.nn.functional.cross_entropy(model(batch(3).input_ids), batch(3).labels)
    result = step(model, [batch(3)])
    assert result.loss_sum.item() / result.count == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize(("weight", "smoothing"), [(None, 0.1), (torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0]), 0.3)])
def test_weights_and_smoothing_are_torchs_per_example(size, weight, smoothing):
    """A sum divided by the number of examples, however they are cut into batches."""
    model, whole = classifier(), batch(6)
    expected = F.cross_entropy(
        model(whole.input_ids), whole.labels, weight, reduction="sum", label_smoothing=smoothing
    ) / 6  # fmt: skip
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = partial(classification, weight=weight, label_smoothing=smoothing)
    result = one_step(model, AdamW(model.named_parameters()), parts(whole, size), 1e-3, 1.0, FP32, loss=loss)
    assert result.loss_sum.item() / 6 == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_balanced_weights_are_scikit_learns():
    utils = pytest.importorskip("sklearn.utils")
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 5)
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert balanced(labels, 3).tolist() == pytest.approx(expected.tolist())


def test_clipping_is_to_the_global_norm(monkeypatch):
    scales = []
    monkeypatch.setattr(
        AdamW,
        "step",
        lambda self, numbers, factor, finite, grads: scales.append((self.norm(grads).item(), factor.item())),
    )
    for clip in (0.01, 1e9, 0):
        step(classifier(), [batch(4)], clip=clip)
    (norm, tight), (_, loose), (_, off) = scales
    assert tight * norm == pytest.approx(0.01, rel=1e-3)
    assert (loose, off) == (1.0, 1.0)


def test_loss_scaling_does_not_change_the_step():
    plain, scaled = classifier(), classifier()
    step(plain, [batch(4)], clip=0.05)
    step(scaled, [batch(4)], clip=0.05, scaler=LossScaler(True, 1024.0))
    torch.testing.assert_close(weights(plain), weights(scaled), rtol=1e-5, atol=1e-6)


def test_an_overflow_skips_the_step():
    model = classifier()
    before = weights(model)
    optimizer, scaler = AdamW(model.named_parameters()), LossScaler(True, 2.0**120)
    result = step(model, [batch(4)], precision=FP16, scaler=scaler, optimizer=optimizer)
    assert not result.stepped
    assert (optimizer.steps, scaler.scale) == (0, 2.0**119)
    assert torch.equal(weights(model), before)


def test_sums():
    sums = Sums(torch.device("cpu"))
    sums.add(torch.tensor(3.0), torch.tensor(1), torch.tensor(2))
    sums.add(torch.tensor(1.0), torch.tensor(2), torch.tensor(2))
    assert sums.read()[:2] == (1.0, 0.75)
    for finite in (True, False, False, True):
        sums.skip(torch.tensor(finite))
    assert sums.read() == (1.0, 0.75, 4, 2)
    sums.add(torch.tensor(math.nan), torch.tensor(1), torch.tensor(2))  # one would hide all others
    assert sums.read() == (1.0, 0.75, 4, 2)
    sums.clear()
    assert sums.read() == (0.0, 0.0, 0, 0)


@pytest.fixture
def config(tiny, tmp_path):
    """Two classes of ten numbers, one low and one high: learned within a few epochs."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"text": " ".join(str(n + 50 * y) for n in torch.randint(0, 50, (6,), generator=generator).tolist()),
         "label": ("low", "high")[y]}
        for y in (0, 1) for _ in range(40)
    ]  # fmt: skip
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TrainConfig(
        data=str(tmp_path / "numbers.jsonl"),
        model=str(tiny),
        lr=3e-3,
        epochs=3,
        batch_size=8,
        out=str(tmp_path / "run"),
    )


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def final(path):
    model = load_classifier(path / "model")
    timeless = [{k: v for k, v in row.items() if "second" not in k} for row in rows_of(path)]
    return weights(model), timeless


def test_a_run_learns_and_leaves_its_folder(config):
    said = []
    path = train(replace(config, lr=1e-2, epochs=5, batch_size=4), said.append)
    rows = rows_of(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert set(rows[0]) >= {
        "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds", "examples_per_second",
    }  # fmt: skip
    assert max(row["val_accuracy"] for row in rows) >= 0.9
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert {p.name for p in path.iterdir()} == {"config.json", "manifest.json", "metrics.jsonl", "model"}
    assert {p.name for p in (path / "model").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    content = json.loads((path / "config.json").read_text())
    assert content["settings"]["lr"] == 1e-2
    assert content["dataset"]["labels"] == ["high", "low"]
    assert len(content["checkpoint"]["sha256"]) == len(content["dataset"]["sha256"]) == 64
    assert content["versions"]["torch"] == torch.__version__
    assert said[-1] == f"next: python eval.py {path}"
    assert "majority baseline 0.500" in said[-2]


def test_the_last_line_can_be_copied_into_a_shell(config, tmp_path):
    said = []
    path = train(replace(config, epochs=1, out=str(tmp_path / "a run's end")), said.append)
    assert shlex.split(said[-1]) == ["next:", "python", "eval.py", str(path)]


def test_the_same_seed_gives_the_same_run_and_another_does_not(config, tmp_path):
    one, two, three = (
        final(train(replace(config, out=str(tmp_path / f"r{i}"), seed=seed, epochs=1), str))
        for i, seed in enumerate("005")
    )
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
    assert not torch.equal(one[0], three[0])


def test_training_loss_is_weighed_and_smoothed_and_validation_loss_is_not(config, tmp_path):
    """Of a model that does not move: torch's mean over the whole training split, where the weights are 1 on average."""
    rows = (tmp_path / "numbers.jsonl").read_text().splitlines()
    (tmp_path / "numbers.jsonl").write_text("\n".join(rows[:55]))  # 40 of one class, 15 of the other
    config = replace(config, lr=1e-30, dropout="0", epochs=1, batch_size=5, accumulate=2, class_weights="balanced",
                     label_smoothing=0.2, weight_decay=0.0, precision="fp32")  # fmt: skip
    setup = prepare(config, str)
    row = rows_of(train(config, str))[0]
    train_split, val_split = setup.data.train, setup.data.val
    assert len(train_split) % 10
    network = Padded(setup.model.eval(), FP32)
    targets, val_targets = (torch.from_numpy(split.labels).long() for split in (train_split, val_split))
    weight = balanced(targets, 2)
    expected = F.cross_entropy(
        predict(network, train_split).logits, targets, weight, label_smoothing=0.2
    )  # fmt: skip
    assert row["train_loss"] == pytest.approx(expected.item(), rel=1e-5)
    plain = F.cross_entropy(predict(network, val_split).logits, val_targets)
    assert row["val_loss"] == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("apart", ["head", "order", "dropout"])
def test_each_seed_moves_the_run(config, tmp_path, apart):
    one = final(train(replace(config, epochs=1), str))[0]
    other = final(train(replace(config, epochs=1, seed=f"0,{apart}=1", out=str(tmp_path / "other")), str))[0]
    assert not torch.equal(one, other)


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.mark.parametrize("moment", ["save_state", "append_row"])
def test_a_run_stopped_in_epoch_two_goes_on_to_the_same_end(config, tmp_path, monkeypatch, moment):
    whole = final(train(replace(config, out=str(tmp_path / "whole")), str))
    calls = 0
    real = getattr(loop.folder, moment)

    def stop(*arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, moment, stop)
        with pytest.raises(Killed):
            train(config, str)
    path = resume(tmp_path / "run", str)
    weights_, rows = final(path)
    assert torch.equal(weights_, whole[0])
    assert rows == whole[1]
    with pytest.raises(InputError, match="has ended"):
        resume(path)


def test_a_run_stopped_before_its_first_epoch_ended_starts_anew(config, tmp_path, monkeypatch):
    whole = final(train(replace(config, out=str(tmp_path / "whole")), str))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "report", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(config, str)
    assert torch.equal(final(resume(tmp_path / "run", str))[0], whole[0])


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, signal.SIGINT),
        ({"accumulate": 3}, signal.SIGTERM),
        ({"precision": "bf16", "init": "random"}, signal.SIGUSR1),
    ],
)
def test_a_run_told_to_stop_inside_an_epoch_goes_on_to_the_same_bits(config, tmp_path, monkeypatch, changes, number):
    config = replace(config, save_every=0, **changes)
    whole = final(train(replace(config, out=str(tmp_path / "whole")), str))
    handlers = [signal.getsignal(n) for n in keeper.SIGNALS]
    steps, real = 0, Keeper.look

    def look(self, *arguments):
        nonlocal steps
        steps += 1
        if steps in (1, 4, 8):  # the first step, one in the midst, and the last of an epoch where there are 8
            signal.raise_signal(number)
        real(self, *arguments)

    monkeypatch.setattr(Keeper, "look", look)
    run, said = (lambda: train(config, str)), []
    for stop in range(3):
        with pytest.raises(Stopped, match=r"train.py --resume .*run goes on behind this step") as stopped:
            run()
        assert stopped.value.code == 128 + number
        run = lambda: resume(tmp_path / "run", said.append)  # noqa: E731
        assert (tmp_path / "run" / "state" / "state.safetensors").exists(), stop
    assert final(run())[1] == whole[1]
    assert torch.equal(final(tmp_path / "run")[0], whole[0])
    assert any(line.startswith("resuming in epoch 1, after step 1 of ") for line in said)
    assert not any("last bits" in line for line in said)
    assert [signal.getsignal(n) for n in keeper.SIGNALS] == handlers
    assert all(row["seconds"] > 0 for row in rows_of(tmp_path / "run"))


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_a_first_signal_is_answered_at_once(tmp_path, capfd, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2)
    with Keeper(tmp_path, 0, obeys=True).listening():
        signal.raise_signal(signal.SIGINT)
        said = capfd.readouterr().err
        with pytest.raises(Stopped, match="goes on from its last snapshot"):
            signal.raise_signal(signal.SIGINT)
    assert said == ("\nstopping behind this step; once more: at once, back to the last snapshot\n" if terminal else "")
    assert not capfd.readouterr().err


@pytest.mark.parametrize("where", ["predict", "engine_of"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_the_steps_is_heeded_too(config, tmp_path, monkeypatch, where, number):
    """In validation, which is left at once, with the epoch's steps kept; and before the first step, which is taken."""
    whole = final(train(replace(config, out=str(tmp_path / "whole")), str))
    real, said = getattr(loop, where), []

    def signalled(*arguments, **more):
        signal.raise_signal(number)
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, where, signalled)
        with pytest.raises(Stopped, match=r"train.py --resume .*run goes on behind this step") as stopped:
            train(config, str)
    assert stopped.value.code == 128 + number
    assert final(resume(tmp_path / "run", said.append))[1] == whole[1]
    assert torch.equal(final(tmp_path / "run")[0], whole[0])
    steps = loop.plan_of(prepare(config, str)).steps
    kept = steps if where == "predict" else 1
    assert f"resuming in epoch 1, after step {kept} of {steps}" in said


def test_snapshots_are_taken_by_the_clock_and_a_kill_loses_what_came_after(config, tmp_path, monkeypatch):
    whole = final(train(replace(config, out=str(tmp_path / "whole")), str))
    seen, real = [], loop.folder.save_state

    def save(path, state):
        real(path, state)
        seen.append(state.cursor)
        if len(seen) == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, "save_state", save)
        with pytest.raises(Killed):
            train(replace(config, save_every=1e-9), str)
    assert seen == [Cursor(1, step) for step in range(1, 6)]
    assert final(resume(tmp_path / "run", str))[1] == whole[1]
    assert torch.equal(final(tmp_path / "run")[0], whole[0])


def test_a_second_signal_ends_at_once_and_an_ignored_one_stays_ignored(tmp_path):
    one = Keeper(tmp_path, 0, obeys=True)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with one.listening():
            signal.raise_signal(signal.SIGTERM)
            assert one.told is None
            signal.raise_signal(signal.SIGINT)
            assert one.told == signal.SIGINT
            with pytest.raises(Stopped, match="goes on from its last snapshot"):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    with Keeper(tmp_path, 0, obeys=False).listening():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_processes_are_never_at_one_run(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, "append_row", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(config, str)
    with locked(tmp_path / "run" / "lock") as free:
        assert free
        with pytest.raises(InputError, match=r"another process is training .*run; wait for it"):
            resume(tmp_path / "run", str)
    assert (resume(tmp_path / "run", str) / "model").exists()
    assert not (tmp_path / "run" / "lock").exists()


def test_a_state_of_another_version_is_one_line(config, tmp_path, monkeypatch):
    real = loop.Engine.state_dict
    monkeypatch.setattr(loop.Engine, "state_dict", lambda self: {k: v for k, v in real(self).items() if k != "sums"})
    monkeypatch.setattr(Keeper, "look", lambda self, cursor, save: save(cursor) or (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(config, str)
    with pytest.raises(InputError, match="its state lacks 'sums'; start the run anew"):
        resume(tmp_path / "run", str)


def test_resume_refuses_other_data(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.folder, "end", lambda *_: None)
    path = train(config, str)
    data = tmp_path / "numbers.jsonl"
    data.write_text(data.read_text() + '\n{"text": "1", "label": "low"}')
    with pytest.raises(InputError, match="the data of .* changed"):
        resume(path)


def test_nothing_is_a_pickle(config, monkeypatch):
    monkeypatch.setattr(loop.folder, "end", lambda *_: None)
    path = train(config, str)
    files = [p for p in path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".jsonl", ".safetensors"}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                assert opened.keys()


def test_the_best_epoch_is_kept_and_a_tie_goes_to_the_earlier(config, monkeypatch):
    accuracies = iter([0.5, 0.8, 0.8])
    real, kept = loop.report, []
    monkeypatch.setattr(loop, "report", lambda *a: real(*a) | {"accuracy": next(accuracies)})
    save = loop.checkpoint.save_pretrained
    monkeypatch.setattr(
        loop.checkpoint, "save_pretrained", lambda model, *a: (kept.append(weights(model)), save(model, *a))
    )
    path = train(config, str)
    assert len(kept) == 2
    torch.testing.assert_close(weights(load_classifier(path / "model")), kept[1], rtol=0, atol=0)
    assert json.loads((path / "config.json").read_text())["ended"]["best_epoch"] == 2


@pytest.mark.parametrize(("select", "kept"), [("accuracy", [1, 2]), ("loss", [1, 2, 3]), ("macro-f1", [1])])
def test_the_figure_that_chooses_the_epoch(config, monkeypatch, select, kept):
    figures = iter([(0.5, 0.9, 0.9), (0.8, 0.7, 0.5), (0.8, 0.6, 0.9)])
    real, done, saved, said = loop.report, [], [], []

    def report(*arguments):
        done.append(dict(zip(("accuracy", "loss", "macro_f1"), next(figures))))
        return real(*arguments) | done[-1]

    monkeypatch.setattr(loop, "report", report)
    monkeypatch.setattr(loop.checkpoint, "save_pretrained", lambda *_: saved.append(len(done)))
    path = train(replace(config, select=select), said.append)
    assert saved == kept
    assert [row["val_macro_f1"] for row in rows_of(path)] == [0.9, 0.5, 0.9]
    assert json.loads((path / "config.json").read_text())["ended"]["best_epoch"] == kept[-1]
    by = {"accuracy": "", "loss": " by loss 0.600", "macro-f1": " by macro-f1 0.900"}[select]
    assert any(line.startswith(f"best: epoch {kept[-1]}{by}, validation accuracy ") for line in said)


def test_a_figure_that_is_no_number_is_never_the_best():
    rows = [{"val_loss": value, "epoch": i} for i, value in enumerate([math.nan, 3.0, 2.0, math.nan, 2.0])]
    assert folder.best_of(rows, "loss")["epoch"] == 2


def losses(monkeypatch, values):
    real, left = loop.report, iter(values)
    monkeypatch.setattr(loop, "report", lambda *a: real(*a) | {"loss": next(left)})


def test_early_stopping_counts_from_the_best_epoch(config, monkeypatch):
    losses(monkeypatch, [3.0, 2.0, 2.0, 2.5, 1.0])
    said = []
    path = train(replace(config, epochs=5, select="loss", early_stopping=2), said.append)
    assert [row["epoch"] for row in rows_of(path)] == [1, 2, 3, 4]  # as good is no better
    assert "stopping: --early-stopping 2, no better loss since epoch 2" in said
    ended = json.loads((path / "config.json").read_text())["ended"]
    assert ended["best_epoch"] == 2
    with pytest.raises(InputError, match="has ended"):
        resume(path)


@pytest.mark.parametrize("killed", [3, 4])
def test_early_stopping_goes_on_where_it_stood(config, tmp_path, monkeypatch, killed):
    """Killed with one epoch without a better one behind it, and after the last before it would stop."""
    values = [3.0, 2.0, 2.5, 2.5, 1.0]
    config = replace(config, epochs=5, select="loss", early_stopping=2)
    with monkeypatch.context() as patch:
        losses(patch, values)
        whole = final(train(replace(config, out=str(tmp_path / "whole")), str))
    real = loop.folder.append_row

    def append(path, row):
        real(path, row)
        if row["epoch"] == killed:
            raise Killed

    with monkeypatch.context() as patch:
        losses(patch, values)
        patch.setattr(loop.folder, "append_row", append)
        with pytest.raises(Killed):
            train(config, str)
    losses(monkeypatch, values[killed:])
    weights_, rows = final(resume(tmp_path / "run", str))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows == whole[1]
    assert torch.equal(weights_, whole[0])


def test_without_saving_there_are_figures_alone(config, tmp_path, monkeypatch):
    saved = rows_of(train(replace(config, out=str(tmp_path / "saved")), str))
    said = []
    monkeypatch.setattr(loop.folder, "save_state", lambda *_: pytest.fail("a snapshot"))
    path = train(replace(config, save=False, save_every=1e-9), said.append)
    assert {part.name for part in path.iterdir()} == {"config.json", "manifest.json", "metrics.jsonl"}
    assert [row["val_loss"] for row in rows_of(path)] == [row["val_loss"] for row in saved]
    assert said[-1] == f"no model was kept (--no-save); its figures: {path}"
    for use in (resume, evaluate_run, Classifier.load):
        with pytest.raises(InputError, match=r"run was trained with --no-save, so "):
            use(path)


def test_without_saving_a_signal_ends_at_once(config, monkeypatch):
    real = loop.folder.append_row
    monkeypatch.setattr(loop.folder, "append_row", lambda *a: (real(*a), signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(replace(config, save=False), str)
    assert not isinstance(stopped.value, Stopped)  # which would say how to go on


@pytest.fixture
def blind(config):
    """A start and a rate that end in one answer for every input within an epoch."""
    return replace(config, init="random", lr=0.3, warmup=0.0, epochs=4, batch_size=4)


def test_a_collapse_is_seen_kept_and_said(blind):
    said = []
    path = train(replace(blind, bias_correction=False), said.append)
    rows = rows_of(path)
    assert [row["verdict"]["name"] for row in rows] == ["collapsed"] * 4
    assert rows[-1]["verdict"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows[-1]["verdict"]["class_entropy"] == pytest.approx(math.log(2))
    ended = json.loads((path / "config.json").read_text())["ended"]
    assert (ended["verdict"], ended["collapsed_since"], rows[0]["step"]) == ("collapsed", 16, 16)
    assert sum(line.endswith("  collapsed since step 16") for line in said) == 4
    assert said[-6].startswith("collapsed since step 16: one answer")
    assert "--bias-correction" in said[-5]


def test_a_run_that_learns_gets_no_advice(config):
    said = []
    path = train(replace(config, lr=1e-2, epochs=5, batch_size=4), said.append)
    assert rows_of(path)[-1]["verdict"]["name"] == "learning"
    ended = json.loads((path / "config.json").read_text())["ended"]
    assert (ended["verdict"], ended["collapsed_since"]) == ("learning", None)
    assert said[-3].endswith("  learning")
    assert "What usually helps" not in " ".join(said)


def test_stop_on_collapse_ends_the_run_in_order(blind):
    said = []
    path = train(replace(blind, stop_on_collapse=2), said.append)
    assert [row["epoch"] for row in rows_of(path)] == [1, 2]
    assert json.loads((path / "config.json").read_text())["ended"]["collapsed_since"] == 16
    assert "stopping: --stop-on-collapse 2, collapsed since step 16" in said
    assert not (path / "state").exists()
    load_classifier(path / "model")
    with pytest.raises(InputError, match="has ended"):
        resume(path)


def test_a_run_killed_between_its_last_row_and_its_end_stops_all_the_same(blind, tmp_path, monkeypatch):
    whole = final(train(replace(blind, stop_on_collapse=2, out=str(tmp_path / "whole")), str))
    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, "end", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(replace(blind, stop_on_collapse=2), str)
    said = []
    again = final(resume(tmp_path / "run", said.append))
    assert torch.equal(again[0], whole[0])
    assert again[1] == whole[1]
    assert "(majority baseline 0.500)" in next(line for line in said if line.startswith("best:"))


def test_an_out_that_holds_something_is_refused_before_work_begins(config, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("mine")
    monkeypatch.setattr(run, "prepare", lambda *_: pytest.fail("work began"))
    with pytest.raises(InputError, match="already holds a run"):
        train(config, str)
    assert (tmp_path / "run" / "config.json").read_text() == "mine"


def test_the_schedule_stands_still_on_a_skipped_step(config, monkeypatch):
    norms, rates = iter([math.inf, math.inf] + [1.0] * 100), []
    monkeypatch.setattr(AdamW, "norm", lambda self, grads: torch.tensor(next(norms), dtype=torch.float64))
    real = AdamW.step
    monkeypatch.setattr(AdamW, "step", lambda self, *a: (a[2] and rates.append(a[0]), real(self, *a)))
    path = train(replace(config, precision="fp16", warmup=4, epochs=1), str)
    # what decay leaves of a weight tells the rate
    taken = [(1 - numbers[0, 2].item()) / 0.01 for numbers in rates[:4]]
    assert taken == pytest.approx([0, 3e-3 / 4, 6e-3 / 4, 9e-3 / 4])  # the first rate is not lost
    row = rows_of(path)[0]
    assert (row["step"], row["skipped_steps"]) == (6, 2)


def test_prepare_writes_nothing_and_says_what_it_took(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    said = []
    setup = prepare(replace(config, dropout="0.2,0.3,0.4", pool="mean"), said.append)
    assert sorted(tmp_path.rglob("*")) == before
    numbers = setup.model.config
    assert (numbers.hidden_dropout_prob, numbers.attention_probs_dropout_prob, numbers.head_dropout) == (0.2, 0.3, 0.4)
    assert (numbers.num_labels, numbers.pool) == (2, "mean")
    assert said[0].startswith("minibert on CPU")
    assert said[-1].endswith(
        "29 tensors pretrained, 2 tensors randomly initialized: head.linear.weight, head.linear.bias"
    )


@pytest.mark.parametrize(
    ("init", "pool", "expected"),
    [
        ("random", "auto", "cls"),
        ("random:deep", "auto", "mean"),
        ("random:deep", "cls", "cls"),
        ("random", "mean", "mean"),
    ],
)
def test_auto_reads_the_mean_where_the_start_asks_for_it(config, init, pool, expected):
    setup = prepare(replace(config, init=init, pool=pool), lambda line: None)
    assert (setup.model.config.pool, setup.config.pool) == (expected, expected)
    assert setup.model.config.residual_scale == (1.0 if init == "random" else 4**0.25)


def killed_before_its_end(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, "end", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(config, str)


def test_a_run_killed_between_its_last_row_and_its_end_has_no_row_twice(config, tmp_path, monkeypatch):
    once = replace(config, epochs=1)
    whole = final(train(replace(once, out=str(tmp_path / "whole")), str))
    killed_before_its_end(once, monkeypatch)
    again = final(resume(tmp_path / "run", str))
    assert [row["epoch"] for row in again[1]] == [1]
    assert again[1] == whole[1]
    assert torch.equal(again[0], whole[0])


def test_a_run_keeps_the_number_format_that_auto_took(config, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "fast_bf16_cpu", lambda: True)
    killed_before_its_end(replace(config, epochs=1), monkeypatch)
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["settings"]["precision"] == content["precision"] == "bf16"
    monkeypatch.setattr(machine, "fast_bf16_cpu", lambda: False)
    said = []
    resume(tmp_path / "run", said.append)
    assert said[0].endswith("bf16: as asked")


@pytest.mark.parametrize(
    ("part", "message"),
    [("dataset", "no 'dataset' with 'sha256'"), ("checkpoint", "no 'checkpoint' with 'sha256'"),
     ("precision", "no 'precision'"), ("settings", "no 'settings'")],
)  # fmt: skip
def test_a_config_that_lacks_something_is_one_line(config, tmp_path, monkeypatch, part, message):
    killed_before_its_end(replace(config, epochs=1), monkeypatch)
    file = tmp_path / "run" / "config.json"
    content = json.loads(file.read_text())
    for spoilt in ({key: value for key, value in content.items() if key != part}, content | {part: 7}):
        file.write_text(json.dumps(spoilt))
        with pytest.raises(InputError, match=message):
            resume(tmp_path / "run", str)


class Head(torch.nn.Module):
    """Names that the default head has, too, and integer buffers."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(24))
        self.norm = torch.nn.BatchNorm1d(24)
        self.linear = torch.nn.Linear(24, 2)

    def forward(self, x):
        return self.linear(self.norm(x * self.weight))


def test_a_head_of_ones_own_and_data_in_memory_are_trained(config, tmp_path):
    texts = [f"{n} {n + 1} {n + 2}" for n in range(60)]
    table = Table("numbers", ["low" if n < 30 else "high" for n in range(60)], "", texts=texts)
    setup = prepare(replace(config, batch_size=6), str, head=Head(), table=table)
    path = folder.new_folder(config.out, "x")
    folder.begin(path, setup)
    loop.fit(setup, path, None, str)
    head = Head()
    model = load_classifier(path / "model", head=head)
    assert head.norm.num_batches_tracked % 8 == 0  # steps an epoch
    assert head.norm.num_batches_tracked > 0
    assert not torch.equal(head.weight, torch.ones(24))
    assert model.head is head


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_look_inside_changes_nothing(config, tmp_path, precision):
    config = replace(config, precision=precision, epochs=2)
    torch.manual_seed(3)
    path = train(config, str)
    state, plain = torch.get_rng_state(), final(path)
    torch.manual_seed(3)
    path = train(replace(config, layers=True, out=str(tmp_path / "seen")), str)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    seen = final(path)
    assert torch.equal(seen[0], plain[0])
    parts = [row.pop("parts") for row in seen[1]]
    assert seen[1] == plain[1]
    start = json.loads((path / "start.json").read_text(), parse_constant=pytest.fail)
    for listed in (start, *parts):
        assert [part["name"] for part in listed] == ["embeddings", "layer 1", "layer 2", "pooler", "head"]
        assert [part["cls"] is None for part in listed] == [False] * 3 + [True] * 2
    assert start != parts[0] != parts[1]
    assert not (tmp_path / "run" / "start.json").exists()


def test_what_is_seen_inside_is_the_model_of_that_epoch(config):
    """Of two epochs of one run: the start, and the best model that the folder keeps, looked at from outside."""
    path = train(replace(config, layers=True, epochs=1), str)
    setup = prepare(config, str)
    first = choose(setup.data.train, 24, 0)
    kept = load_classifier(path / "model").eval()
    for model, seen in (
        (setup.model.eval(), json.loads((path / "start.json").read_text())),
        (kept, rows_of(path)[0]["parts"]),
    ):
        expected = look(model, first, setup.manifest)
        assert [part["gradient"] for part in seen] == pytest.approx([part.gradient for part in expected], rel=1e-4)
        assert [part["cls"] for part in seen[:3]] == pytest.approx([part.cls for part in expected[:3]], rel=1e-5)


def test_a_resumed_run_keeps_the_look_at_its_start(config, tmp_path, monkeypatch):
    config = replace(config, layers=True, epochs=2)
    whole = train(replace(config, out=str(tmp_path / "whole")), str)
    real = loop.folder.append_row
    with monkeypatch.context() as patch:
        patch.setattr(loop.folder, "append_row", lambda *a: (real(*a), (_ for _ in ()).throw(Killed)))
        with pytest.raises(Killed):
            train(config, str)
    resume(tmp_path / "run", str)
    assert (tmp_path / "run" / "start.json").read_text() == (whole / "start.json").read_text()
    assert final(tmp_path / "run")[1] == final(whole)[1]


def test_a_look_inside_a_head_with_idle_and_frozen_weights(config):
    head = Head()
    head.idle, head.fixed = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    setup = prepare(replace(config, layers=True, epochs=1), str, head=head)
    path = folder.new_folder(config.out, "x")
    folder.begin(path, setup)
    loop.fit(setup, path, None, str)
    assert rows_of(path)[0]["parts"][-1]["gradient"] > 0
    assert head.norm.num_batches_tracked == 8  # one for each step, none for a look

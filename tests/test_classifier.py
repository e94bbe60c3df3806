"""minibert/classifier.py: train and predict from Python, on files and on data in memory, silently."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import minibert
from minibert import Classifier, Data, InputError, Tokenizer, TrainConfig, load_encoder, train
from minibert.data.windows import read_windows
from minibert.training.outcome import evaluate_run
from minibert.training.run import resume

TEXTS = [f"{n % 50 + 50 * (n % 2)} {3 * n % 50 + 50 * (n % 2)}" for n in range(80)]
LABELS = [("low", "high")[n % 2] for n in range(80)]
WINDOWS = np.random.default_rng(0).normal(size=(60, 20, 2)) + 3 * (np.arange(60) % 3)[:, None, None]


class MyHead(nn.Module):
    """Starts by its own reset_parameters; has a name that the default head has, too."""

    def __init__(self, hidden_size, num_labels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, num_labels))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=0.05)

    def forward(self, x):
        return x @ self.weight


@pytest.fixture
def config(tiny, tmp_path):
    return TrainConfig(model=str(tiny), epochs=2, lr=1e-2, batch_size=8, precision="fp32", out=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    config = TrainConfig(model=str(tiny), epochs=2, lr=1e-2, batch_size=8, precision="fp32", out=str(out))
    return train(config, (TEXTS, LABELS), head=MyHead)


def test_a_run_has_what_its_folder_has(trained):
    assert [row["epoch"] for row in trained.history] == [1, 2]
    assert trained.best["val_accuracy"] == max(row["val_accuracy"] for row in trained.history)
    report = trained.report()
    assert report["val"]["accuracy"] == pytest.approx(trained.best["val_accuracy"])
    assert report["test"]["n"] == 8
    content = json.loads((trained.path / "config.json").read_text())
    assert (content["head"], content["settings"]["data"]) == ("MyHead", "in memory")
    manifest = json.loads((trained.path / "manifest.json").read_text())
    assert manifest["head.weight"]["source"] == "reset_parameters"


def test_predictions_are_those_of_the_report(trained):
    classifier = Classifier.load(str(trained.path), head=MyHead)
    _, rows = evaluate_run(trained.path, MyHead, Data(TEXTS, LABELS).table())
    rows = list(rows)
    texts = [TEXTS[row["row"]] for row in rows]
    p = classifier.predict_proba(texts)
    assert p.shape == (16, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(p, [[row["p(high)"], row["p(low)"]] for row in rows], atol=2e-6)
    assert classifier.labels == ["high", "low"]
    assert classifier.predict(np.array(texts)) == [row["predicted"] for row in rows]
    assert classifier.predict([]) == []
    assert classifier.predict_proba([]).shape == (0, 2)
    assert trained.classifier().predict(texts[:3]) == classifier.predict(texts[:3])


def test_a_missing_head_or_data_is_one_line(trained):
    for failing in (lambda: Classifier.load(trained.path), lambda: evaluate_run(trained.path)):
        with pytest.raises(InputError, match=r"a head of your own, MyHead.*Classifier.load\('.*', head=MyHead\)"):
            failing()
    with pytest.raises(InputError, match=r"given in memory and are not in its folder"):
        evaluate_run(trained.path, MyHead)


def test_eval_of_a_run_on_data_in_memory_says_what_is_missing(config):
    run = train(config, (TEXTS, LABELS))
    done = forked.run("eval.py", run.path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the run's data were given in memory" in done.stderr


def test_a_run_with_a_head_of_ones_own_is_not_gone_on_with_without_it(trained, tmp_path):
    content = json.loads((trained.path / "config.json").read_text())
    content.pop("ended")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="head of your own, MyHead"):
        resume(tmp_path, str)


def test_a_head_starts_from_the_heads_seed_whatever_has_been_drawn_before(config, tmp_path):
    made = []

    class Kept(MyHead):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.other = nn.Parameter(torch.randn(3))  # no reset_parameters reaches it: the constructor's draw stays
            self.made = self.other.detach().clone()
            made.append(self)

        def reset_parameters(self):
            super().reset_parameters()
            self.start = self.weight.detach().clone()

    for i, seed in enumerate(("0", "0", "0,head=1")):
        torch.manual_seed(i)
        torch.randn(3)
        train(replace(config, seed=seed, epochs=1, out=str(tmp_path / str(i))), (TEXTS, LABELS), head=Kept)
    for part in ("start", "made"):
        assert torch.equal(getattr(made[0], part), getattr(made[1], part))
        assert not torch.equal(getattr(made[0], part), getattr(made[2], part))


@pytest.mark.parametrize(
    ("head", "said"),
    [(lambda: None, "called as head"), (lambda h, c: None, "must give a torch.nn.Module"), (3, "called as head")],
)
def test_heads_that_are_none(config, head, said):
    with pytest.raises(InputError, match=said):
        train(config, (TEXTS, LABELS), head=head)


class Swapped(nn.Linear):
    def __init__(self, num_labels, hidden_size):
        super().__init__(hidden_size, num_labels)


class Argmax(nn.Linear):
    def forward(self, pooled):
        return super().forward(pooled).argmax(-1)


class Pair(nn.Linear):
    def forward(self, pooled):
        return super().forward(pooled), pooled


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (Swapped, r"head=Swapped raises RuntimeError \(mat1 and mat2 shapes cannot be multiplied"),
        (Argmax, r"gives \[2\] for \[2, 24\]; it must give \[2, 2\]: minibert.testing.check_head\(Argmax, 24, 2\)"),
        (Pair, "head=Pair gives a tuple for"),
    ],
)
def test_a_head_that_gives_no_logits_is_named_before_anything_is_trained(config, head, said):
    with pytest.raises(InputError, match=said):
        train(config, (TEXTS, LABELS), head=head)
    assert not Path(config.out).exists()


def test_what_comes_next_is_what_can_be_done(config, tmp_path, capsys):
    """eval.py has neither a head of one's own nor data in memory."""
    run = train(config, (TEXTS, LABELS), head=nn.Linear, verbose=True)
    closing = " ".join(capsys.readouterr().out.split()).rpartition("next, ")[2]
    assert closing == f"in Python: run.report(), Classifier.load({str(run.path)!r}, head=Linear)"
    train(replace(config, out=str(tmp_path / "plain")), (TEXTS, LABELS), verbose=True)
    assert capsys.readouterr().out.rstrip().endswith("plain')")


def test_windows_in_memory_and_in_a_file_are_one_and_the_same(config, tmp_path):
    y = np.arange(60) % 3
    group = np.repeat(np.arange(12), 5)
    config = replace(config, steps=5, epochs=1, lr=1e-3)
    run = train(config, Data(WINDOWS, y, groups=group, channels=["heart", "breath"]))
    np.savez(tmp_path / "own.npz", x=WINDOWS, y=y, group=group, channels=["heart", "breath"])
    other = train(replace(config, data=str(tmp_path / "own.npz"), out=str(tmp_path / "other")))
    assert run.best["val_loss"] == other.best["val_loss"]
    new = WINDOWS[:7] * 1.7
    p = Classifier.load(run.path).predict_proba(new)
    np.testing.assert_array_equal(p, Classifier.load(other.path).predict_proba(new))
    (tmp_path / "own.npz").unlink()  # the ranges are in the folder
    _, rows = evaluate_run(run.path, table=Data(WINDOWS, y, groups=group, channels=["heart", "breath"]).table())
    rows = list(rows)
    again = Classifier.load(other.path).predict_proba(WINDOWS[[row["row"] for row in rows]])
    np.testing.assert_allclose(again, [[row[f"p({c})"] for c in "012"] for row in rows], atol=2e-6)
    assert Classifier.load(run.path).predict(WINDOWS[:0]) == []


def test_what_a_classifier_refuses(config, trained):
    classifier = trained.classifier()
    for inputs, said in (
        ("one", "one text alone"), (["a", 3], "text 1 is 3, a int"), (WINDOWS, "inputs of shape"),
        (["a", " "], "empty"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            classifier.predict(inputs)
    with pytest.raises(InputError, match="without second texts"):
        classifier.predict(["a"], pairs=["b"])
    windows = train(replace(config, steps=5, epochs=1), (WINDOWS, np.arange(60) % 3)).classifier()
    for inputs, said in (
        (["a"], "trained on windows"), (WINDOWS[:, :, :1], "windows of 1 channels"), (WINDOWS[:, :4], "of 4 steps"),
        (WINDOWS * np.nan, "is nan"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            windows.predict(inputs)


def test_pairs(config):
    run = train(replace(config, epochs=1), Data(TEXTS, LABELS, pairs=TEXTS[::-1]))
    classifier = run.classifier()
    assert classifier.predict_proba(TEXTS[:3], TEXTS[:3]).shape == (3, 2)
    for pairs, said in ((None, "trained on pairs"), (["a"], "3 texts, but 1 second")):
        with pytest.raises(InputError, match=said):
            classifier.predict(TEXTS[:3], pairs)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((TEXTS, LABELS[:-1]), "80 inputs, but 79 of label"),
        ((TEXTS, [None, *LABELS[1:]]), "label 0 is None"),
        ((TEXTS, [float("nan"), *LABELS[1:]]), "label 0 is nan"),
        (([float("nan"), *TEXTS[1:]], LABELS), "text 0 is nan, a float"),
        ((["", *TEXTS[1:]], LABELS), "text 0: empty 'text'"),
        (("".join(TEXTS)[:80], LABELS), "one text alone"),
        ((WINDOWS[:, :, 0], LABELS[:60]), "inputs of shape"),
        (TEXTS, "data is a list; it must be"),
        (Data(TEXTS, LABELS, splits=["train"] * 80), "no rows for val"),
    ],
)
def test_data_that_cannot_be_used(config, data, said):
    with pytest.raises(InputError, match=said):
        train(config, data)


def test_data_twice_and_settings_of_the_wrong_kind(config):
    with pytest.raises(InputError, match="data twice"):
        train(replace(config, data="a.csv"), (TEXTS, LABELS))
    with pytest.raises(InputError, match="config is a dict"):
        train({"epochs": 1})
    with pytest.raises(InputError, match=r"^--lr '1e-5': it must be a number above 0 .* \(got str\)$"):
        TrainConfig(lr="1e-5")
    with pytest.raises(InputError, match=r"^--lr 2: it must be .* usual$"):
        TrainConfig(lr=2)


def test_nothing_is_printed_unless_asked(config, tmp_path, capfd, monkeypatch):
    from minibert import progress

    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    run = train(config, (TEXTS, LABELS))
    run.report()
    run.classifier().predict(TEXTS)
    assert capfd.readouterr() == ("", "")
    assert not progress.hidden.get()
    train(replace(config, out=str(tmp_path / "loud")), (TEXTS, LABELS), verbose=True)
    assert "majority baseline" in capfd.readouterr().out


def test_names_and_the_tokenizer(tiny, monkeypatch):
    monkeypatch.setenv("MINIBERT_WEIGHTS", str(tiny.parent))
    bert, tokenizer = load_encoder("tiny"), Tokenizer.load("tiny")
    tokens = tokenizer(["1 2 3", "1"])
    assert tokens.attention_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    both, alone = bert(*tokens)[0][1, :3], bert(*tokenizer("1"))[0][0]
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)
    assert tokenizer("1", "2").token_type_ids.tolist() == [[0, 0, 0, 1, 1]]
    for texts, said in (([], "0 texts"), ([3], "got 3, a int")):
        with pytest.raises(InputError, match=said):
            tokenizer(texts)
    with pytest.raises(InputError, match="1 texts and 2"):
        tokenizer("a", ["b", "c"])
    with pytest.raises(InputError, match="no such folder|not in"):
        load_encoder("./nowhere")


def test_the_package_is_light_and_typed():
    program = "import sys, minibert; print('torch' in sys.modules, minibert.TrainConfig, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout
    assert shown == "False <class 'minibert.config.TrainConfig'> False\n"
    assert set(minibert.__all__) == set(minibert._HOME)
    assert {"train", "Classifier"} <= set(dir(minibert))
    assert all(getattr(minibert, name) for name in minibert.__all__)
    assert minibert.__version__ == version("minibert")
    assert (ROOT / "minibert" / "py.typed").is_file()


def test_the_readers_own_check_still_names_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=WINDOWS, y=np.arange(59))
    with pytest.raises(InputError, match=r"a.npz: y has shape \(59,\)"):
        read_windows(tmp_path / "a.npz")


def test_the_page_on_python_runs_from_top_to_bottom(tiny, tmp_path, monkeypatch):
    """With a tiny checkpoint under the names that the page uses; what needs scikit-learn where it is installed."""
    for name in ("bert-base-uncased", "minilm-l6"):
        shutil.copytree(tiny, tmp_path / "weights" / name)
    monkeypatch.setenv("MINIBERT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        if "sklearn" not in block or find_spec("sklearn"):
            exec(block, names)
    assert set(names["clf"].labels) == {"low", "high"}
    assert (tmp_path / "folder" / "model.safetensors").is_file()

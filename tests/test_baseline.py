"""minibert/lab/baseline.py: what does without BERT, on the same examples as a run."""

import json
import sys

import numpy as np
import pytest

import eval as evaluation
from minibert.config import TrainConfig
from minibert.data import chosen_rows, read_table
from minibert.errors import InputError
from minibert.lab.baseline import baseline, format_baseline
from minibert.lines import columns
from minibert.training.outcome import evaluate_run
from minibert.training.run import train

pytest.importorskip("sklearn")

WORDS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def texts(tiny, tmp_path_factory):
    """Told by one word of one letter, in the second text alone; the run is cut to some of the examples."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [f"{WORDS[i % 5]} {WORDS[i % 3]},{WORDS[i % 4]} {'x' if i % 2 else 'y'},{i % 2}" for i in range(300)]
    (folder / "a.csv").write_text("text,text_b,label\n" + "\n".join(rows) + "\n")
    config = TrainConfig(
        data=str(folder / "a.csv"), model=str(tiny), examples="40", max_examples=25, epochs=1, batch_size=8,
        class_weights="balanced", out=str(folder / "run"),
    )  # fmt: skip
    return train(config, str)


@pytest.fixture(scope="module")
def windows(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    generator = np.random.default_rng(0)
    y, x = generator.integers(0, 2, 200), generator.normal(size=(200, 20, 2))
    x[:, :, 1] += 3 * y[:, None]
    np.savez(folder / "a.npz", x=x, y=y, group=np.arange(200) // 10)
    config = TrainConfig(data=str(folder / "a.npz"), model=str(tiny), steps=5, epochs=1, batch_size=32, lr=1e-9,
                         out=str(folder / "run"))  # fmt: skip
    return train(config, str)


def test_words_of_both_texts_on_the_runs_own_examples(texts, monkeypatch):
    from sklearn.linear_model import LogisticRegression

    seen, real = [], LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, x, y: (seen.append((self, x, y)), real(self, x, y))[1])
    reports, predictions = evaluate_run(texts)
    result = baseline(texts, "words", predictions)
    ((model, x, y),) = seen
    config = TrainConfig(**json.loads((texts / "config.json").read_text())["settings"])
    rows = chosen_rows(config, read_table(config))["train"]
    assert len(rows) == len(y) == result["n"] == 25
    assert y.tolist() == [i % 2 for i in rows]
    assert x.shape[1] == 5 + 6  # words of the first and of the second text, not mixed up
    assert model.class_weight == "balanced"
    for split in ("val", "test"):
        assert result[split]["baseline"]["accuracy"] == 1
        assert result[split]["baseline"]["interval"][1] == 1 > result[split]["baseline"]["interval"][0]
        assert result[split]["bert"]["accuracy"] == reports[split]["accuracy"]
        assert result[split]["difference"]["value"] == pytest.approx(1 - reports[split]["accuracy"])
    lines = format_baseline(result, reports).splitlines()
    assert max(map(columns, lines)) <= 80
    assert lines[0] == "without BERT: logistic regression on word counts, trained on the run's 25"


def test_the_forest_reads_the_numbers_of_windows(windows, monkeypatch):
    from sklearn.ensemble import RandomForestClassifier

    seen, real = [], RandomForestClassifier.fit
    monkeypatch.setattr(RandomForestClassifier, "fit", lambda self, x, y: (seen.append(x), real(self, x, y))[1])
    reports, predictions = evaluate_run(windows)
    result = baseline(windows, "forest", predictions)
    config = TrainConfig(**json.loads((windows / "config.json").read_text())["settings"])
    table = read_table(config)
    rows = chosen_rows(config, table)["train"]
    means = table.windows[rows].astype(np.float64).reshape(len(rows), 5, 4, 2).mean(axis=2)
    np.testing.assert_allclose(seen[0], means.reshape(len(rows), 10), rtol=1e-6)
    part = result["test"]
    assert part["baseline"]["accuracy"] > 0.9 > part["bert"]["accuracy"]
    low, high = part["difference"]["interval"]
    assert low < part["difference"]["value"] < high
    text = format_baseline(result, reports)
    assert "a random forest of 300 trees on the 10 numbers of a window" in " ".join(text.split())
    assert "had other groups of examples been drawn" in text
    assert max(map(columns, text.splitlines())) <= 80


def test_words_of_windows_are_those_that_bert_reads(windows):
    _, predictions = evaluate_run(windows)
    result = baseline(windows, "words", predictions)
    assert result["description"] == "logistic regression on word counts"
    assert result["test"]["baseline"]["accuracy"] > 0.8


def test_a_baseline_that_is_sure_and_wrong_has_a_finite_loss(texts, monkeypatch):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(LogisticRegression, "predict_proba", lambda self, x: np.tile([1.0, 0.0], (x.shape[0], 1)))
    result = baseline(texts, "words", evaluate_run(texts)[1])
    assert 1 < result["test"]["baseline"]["loss"] < 50


def test_the_command(texts, capsys):
    evaluation.main([str(texts), "--baseline", "words"])
    shown = capsys.readouterr().out
    assert "validation  accuracy" in shown
    assert "  words        1.000" in shown
    evaluation.main([str(texts), "--baseline", "words", "--json"])
    assert json.loads(capsys.readouterr().out)["baseline"]["test"]["baseline"]["accuracy"] == 1


def test_what_is_refused_before_a_model_is_read(texts, monkeypatch):
    with pytest.raises(InputError, match="--baseline svm: it must be one of words, forest"):
        evaluation.main([str(texts), "--baseline", "svm"])
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"--baseline needs scikit-learn: pip install -e '\.\[sklearn\]'"):
        evaluation.main([str(texts), "--baseline", "words"])


def test_texts_without_words(tiny, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"...,{i % 2}\n" for i in range(60)))
    config = TrainConfig(
        data=str(tmp_path / "a.csv"), model=str(tiny), epochs=1, batch_size=32, out=str(tmp_path / "r")
    )
    _, predictions = evaluate_run(train(config, str))
    with pytest.raises(InputError, match=r"--baseline words: a\.csv has no words to count"):
        baseline(tmp_path / "r", "words", predictions)

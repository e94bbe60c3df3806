"""minibert/evaluation.py: figures against hand-made ones, and a report from a run's folder alone."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, perturbed

from minibert.config import TrainConfig
from minibert.data import Examples
from minibert.errors import InputError
from minibert.evaluation import evaluate_run, format_report, predict, report, write_predictions
from minibert.model import BertClassifier
from minibert.training.loop import train
from minibert.training.precision import choose_precision


def test_report_against_figures_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    guesses = [0, 0, 1, 1, 0, 1]
    logits = torch.nn.functional.one_hot(torch.tensor(guesses), 4).float()
    result = report(logits, labels, ["a", "b", "c", "d"])
    assert result["n"] == 6
    assert result["accuracy"] == pytest.approx(3 / 6)
    assert result["majority"] == pytest.approx(3 / 6)
    assert result["majority_class"] == "a"
    assert result["confusion"] == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    a, b, c = (result["classes"][name] for name in "abc")
    assert a == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert b == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2})
    assert c["f1"] == 0
    assert result["macro_f1"] == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)  # d neither occurs nor is predicted
    right, wrong = -np.log(np.e / (np.e + 3)), -np.log(1 / (np.e + 3))
    assert result["loss"] == pytest.approx((3 * right + 3 * wrong) / 6, rel=1e-6)


def test_predictions_come_in_the_order_of_the_examples():
    torch.manual_seed(0)
    model = perturbed(BertClassifier(TINY)).train()
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, TINY.vocab_size, n).astype(np.int32) for n in generator.integers(2, 30, 150)]
    examples = Examples(ids, None, np.zeros(150, np.int64), np.arange(150))
    logits = predict(model, examples, choose_precision("fp32", torch.device("cpu")))
    assert model.training
    model.eval()
    for i in (0, 1, 77, 149):
        torch.testing.assert_close(logits[i], model(torch.from_numpy(ids[i]).long()[None])[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    texts = [(f"{i} {(7 * i) % 50 + 50 * (i % 2)}", f"class {i % 2}") for i in range(80)]
    with open(folder / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *texts])
    config = TrainConfig(data=str(folder / "data.csv"), model=str(tiny), lr=1e-3, epochs=2, batch_size=8)
    return train(replace(config, out=str(folder / "run")), str)


def test_a_run_is_rebuilt_from_its_folder(finished, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    reports, predictions = evaluate_run(moved)
    best = json.loads((finished / "config.json").read_text())["ended"]
    assert reports["val"]["accuracy"] == pytest.approx(best["val_accuracy"])
    assert (reports["val"]["n"], reports["test"]["n"]) == (8, 8)
    assert len(predictions) == 16
    right = sum(p["label"] == p["predicted"] for p in predictions if p["split"] == "test")
    assert right / 8 == reports["test"]["accuracy"]


def test_predictions_file(finished, tmp_path):
    _, predictions = evaluate_run(finished)
    write_predictions(tmp_path / "p.csv", predictions)
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["split", "row", "label", "predicted", "confidence", "p(class 0)", "p(class 1)"]
    assert len(rows) == 16
    for row in rows:
        assert float(row["p(class 0)"]) + float(row["p(class 1)"]) == pytest.approx(1, abs=1e-5)
        assert row["label"] == f"class {int(row['row']) % 2}"


def test_changed_data_are_refused(finished, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    content = json.loads((moved / "config.json").read_text())
    content["dataset"]["sha256"] = "0" * 64
    (moved / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="changed since"):
        evaluate_run(moved)


def test_no_model_yet_and_no_run(finished, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    (moved / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no model yet"):
        evaluate_run(moved)
    with pytest.raises(InputError, match="no such folder"):
        evaluate_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a run's folder"):
        evaluate_run(moved / "model")


def test_printed_report_has_every_class():
    result = report(torch.eye(3), np.array([0, 1, 1]), ["walking", "b", "c"])
    text = format_report("test", result)
    assert "accuracy 0.667" in text
    assert "always 'b': 0.667" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["walking", "b", "c"]

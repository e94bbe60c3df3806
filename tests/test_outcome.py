"""minibert/training/outcome.py: a report from a run's folder alone."""

import csv
import json
import math
import shutil
from dataclasses import replace

import pytest

from minibert import Classifier
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.training.outcome import evaluate_run, write_predictions
from minibert.training.run import train


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
    for split, figures in reports.items():
        assert figures["verdict"]["name"] in ("learning", "not yet"), split
        assert figures["verdict"]["class_entropy"] == pytest.approx(math.log(2))
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[best["best_epoch"] - 1])
    for name, figure in last["verdict"].items():
        assert reports["val"]["verdict"][name] == (figure if name == "name" else pytest.approx(figure)), name
    predictions = list(predictions)
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
    with pytest.raises(InputError, match="the best epoch, is gone, and nothing else holds it"):
        evaluate_run(moved)
    content = json.loads((moved / "config.json").read_text())
    del content["ended"]
    (moved / "config.json").write_text(json.dumps(content))
    (moved / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="no model yet; its first epoch has not ended"):
        evaluate_run(moved)
    with pytest.raises(InputError, match="no such folder"):
        evaluate_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a run's folder"):
        evaluate_run(moved / "model")


def change(path, name, part):
    """A copy of PATH/config.json with a part put in; None: left out."""
    content = json.loads((path / "config.json").read_text())
    place = content
    *way, last = name.split(".")
    for step in way:
        place = place[step]
    place.pop(last, None)
    if part is not None:
        place[last] = part
    (path / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("dataset", None, "no 'dataset' with 'sha256'"), ("dataset", [], "no 'dataset' with 'sha256'"),
        ("checkpoint", None, "no 'checkpoint' with 'sha256'"), ("precision", None, "no 'precision'"),
        ("precision", "fp7", "no 'precision' of fp32, bf16, fp16"),
        ("settings.lr", "fast", "config.json: --lr 'fast': it must be"),
        ("settings.data", 7, "config.json: --data 7: it must be a string"), ("settings.more", 1, "another version"),
        ("checkpoint.files", [1], "'checkpoint' is not what a run writes"), ("versions", [], "'versions' is not"),
        ("dataset.labels", ["a", 1], "'dataset' is not"), ("head", ["x"], "'head' is not"),
        ("dataset.labels", ["a"], "config.json has 1 labels, model/config.json 2"),
    ],
)  # fmt: skip
def test_a_config_with_nonsense_in_it(finished, tmp_path, name, part, said):
    moved = shutil.copytree(finished, tmp_path / "moved")
    change(moved, name, part)
    for read in (evaluate_run, Classifier.load):
        with pytest.raises(InputError, match=said):
            read(moved)


@pytest.mark.parametrize(("name", "part"), [("dataset.labels", None), ("dataset.pairs", None), ("dataset.encoding", 7)])
def test_a_config_that_does_not_say_how_inputs_are_read(finished, tmp_path, name, part):
    moved = shutil.copytree(finished, tmp_path / "moved")
    change(moved, name, part)
    with pytest.raises(InputError):
        Classifier.load(moved)

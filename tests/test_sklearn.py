"""minibert/sklearn.py: as scikit-learn asks of a classifier, for texts and windows."""

import pickle
from dataclasses import fields

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data
from test_classifier import LABELS, TEXTS, WINDOWS, MyHead

from minibert import sklearn as module
from minibert.config import TrainConfig
from minibert.sklearn import OWN, MiniBertClassifier


@pytest.fixture
def estimator(tiny):
    return MiniBertClassifier(model=str(tiny), epochs=4, lr=3e-3, batch_size=4, precision="fp32", steps=5)


def test_every_setting_that_is_not_about_files_is_a_parameter():
    about_files = {"data", "charset", "text_column", "label_column", "text_b_column", "delimiter", "examples",
                   "max_examples", "stop_on_collapse", "layers", "save_every", "save", "tensorboard",
                   "out"}  # fmt: skip
    names = {entry.name for entry in fields(TrainConfig)} - about_files
    parameters = MiniBertClassifier().get_params()
    assert set(parameters) == names | set(OWN)
    assert all(parameters[name] == getattr(TrainConfig(), name) for name in names)


@pytest.mark.parametrize("labels", [LABELS, [n % 2 == 0 for n in range(80)], [11 - 2 * (n % 2) for n in range(80)]])
def test_fit_and_predict_in_the_classes_that_were_given(estimator, labels):
    assert estimator.fit(np.array(TEXTS), labels) is estimator
    assert estimator.classes_.tolist() == sorted(set(labels))
    p = estimator.predict_proba(TEXTS)
    assert p.shape == (80, 2)
    predicted = estimator.predict(TEXTS)
    assert predicted.dtype == np.array(labels).dtype
    assert predicted.tolist() == estimator.classes_[p.argmax(axis=1)].tolist()
    assert estimator.score(TEXTS, labels) > 0.7
    assert is_classifier(estimator)
    assert len(estimator.history_) == 4


def test_a_tenth_of_each_class_is_held_out_and_all_else_trained_on(estimator, monkeypatch):
    seen = []
    real = module.train
    monkeypatch.setattr(module, "train", lambda config, data, **more: seen.append(data) or real(config, data, **more))
    estimator.fit(TEXTS, LABELS)
    splits, labels = np.array(seen[0].splits), np.array(seen[0].labels)
    assert [(splits == name).sum() for name in ("train", "val", "test")] == [72, 8, 8]
    assert (labels[splits == "val"] == "0").sum() == 4
    assert list(seen[0].inputs[splits == "val"]) == list(seen[0].inputs[splits == "test"])
    assert sorted(seen[0].inputs[splits != "test"]) == sorted(TEXTS)


def test_windows_and_more_than_ten_classes(estimator):
    y = np.arange(60) % 12
    estimator.fit(WINDOWS, y)
    assert estimator.classes_.tolist() == list(range(12))
    assert estimator.classifier_.labels == [str(i) for i in range(12)]  # 2 before 10
    assert estimator.predict(WINDOWS[:5]).shape == (5,)


def test_clones_pickles_and_heads(estimator):
    estimator.set_params(head=MyHead, seed="3")
    other = clone(estimator)
    assert other.get_params() == estimator.get_params()
    p = estimator.fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.testing.assert_array_equal(other.fit(TEXTS, LABELS).predict_proba(TEXTS), p)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict_proba(TEXTS), p)
    with pytest.raises(NotFittedError):
        clone(estimator).predict(TEXTS)
    grid = GridSearchCV(estimator, {"head": ["attention", MyHead]}, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert grid.best_estimator_.classifier_.network.model.config.pool in ("tokens", "cls")


def test_pipelines_and_grids(estimator):
    pipeline = make_pipeline(FunctionTransformer(lambda texts: [text + " 5" for text in texts]), estimator)
    assert cross_val_score(pipeline, TEXTS, LABELS, cv=2, error_score="raise").shape == (2,)
    grid = GridSearchCV(estimator, {"lr": [1e-6, 3e-3]}, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert grid.best_params_ == {"lr": 3e-3}
    assert grid.predict(TEXTS[:2]).shape == (2,)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (TEXTS, ["a"] * 80, "one class only, .*'a'"), (TEXTS, LABELS[1:], "X has 80 examples, y 79"),
        (TEXTS, np.linspace(0, 1, 80), "continuous"), (TEXTS, None, "requires y"),
        (np.zeros((80, 3)), LABELS, "inputs of shape"), ([3] * 80, LABELS, "text 0 is 3"),
    ],
)  # fmt: skip
def test_what_is_refused(estimator, x, y, said):
    with pytest.raises(ValueError, match=said):
        estimator.fit(x, y)


def test_a_setting_out_of_range_is_refused_by_fit_not_before(estimator):
    estimator.set_params(lr=5)
    with pytest.raises(ValueError, match="--lr 5"):
        estimator.fit(TEXTS, LABELS)


class OfTables(MiniBertClassifier):
    """scikit-learn's checks fit tables of numbers (n, features); here a row is written as a text. They want an accuracy
    of 0.83 at once, which two layers 24 wide do not reach in an epoch; all else holds.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = tags.input_tags.string = False
        tags.classifier_tags.poor_score = True
        return tags

    def texts(self, x, reset):
        return [" ".join(f"{value:.1f}" for value in row) for row in validate_data(self, x, reset=reset)]

    def fit(self, x, y):
        return super().fit(self.texts(x, True), y)

    def predict_proba(self, x):
        check_is_fitted(self)
        return super().predict_proba(self.texts(x, False))


def test_the_checks_of_scikit_learn(tiny):
    estimator = OfTables(model=str(tiny), epochs=1, lr=3e-3, batch_size=16, precision="fp32")
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert len(results) > 40
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed, failed

"""A scikit-learn classifier of texts or windows, for pipelines, GridSearchCV and clone. Needs the extra `sklearn`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from minibert.classifier import Data, checked_texts, is_windows, train
from minibert.config import TrainConfig
from minibert.data.splits import by_class
from minibert.seeds import Seeds, derive
from minibert.setup import Head


class MiniBertClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a BERT on n texts, or on windows (n, steps, channels).

    A tenth of each class (of those with three examples or more) chooses the best epoch and is not trained on. The run's
    folder is a temporary one; pickle the fitted estimator to keep it.

    Args:
        head: as in TrainConfig, or a head of one's own as in minibert.train.
        verbose: print what train.py prints.

    All others are settings of `TrainConfig`, under the same names and with the same defaults.

    Attributes:
        classes_: the classes, in the order of predict_proba's columns.
        history_: a row per epoch, as in metrics.jsonl.
        classifier_: the minibert.Classifier of the best epoch.
    """

    def __init__(
        self,
        *,
        init: str = TrainConfig.init,
        model: str = TrainConfig.model,
        pool: str = TrainConfig.pool,
        dropout: str = TrainConfig.dropout,
        freeze: str = TrainConfig.freeze,
        freeze_encoder_epochs: int = TrainConfig.freeze_encoder_epochs,
        epochs: int = TrainConfig.epochs,
        batch_size: int = TrainConfig.batch_size,
        accumulate: int = TrainConfig.accumulate,
        gradient_checkpointing: bool = TrainConfig.gradient_checkpointing,
        lr: float = TrainConfig.lr,
        warmup: float = TrainConfig.warmup,
        weight_decay: float = TrainConfig.weight_decay,
        clip: float = TrainConfig.clip,
        class_weights: str = TrainConfig.class_weights,
        label_smoothing: float = TrainConfig.label_smoothing,
        bias_correction: bool = TrainConfig.bias_correction,
        select: str = TrainConfig.select,
        early_stopping: int = TrainConfig.early_stopping,
        on_nonfinite: str = TrainConfig.on_nonfinite,
        precision: str = TrainConfig.precision,
        max_length: int = TrainConfig.max_length,
        encoding: str = TrainConfig.encoding,
        channels: str | None = TrainConfig.channels,
        steps: int = TrainConfig.steps,
        grid_cells: int = TrainConfig.grid_cells,
        seed: str = TrainConfig.seed,
        head: str | Head | None = TrainConfig.head,
        verbose: bool = False,
    ) -> None:
        self.init = init
        self.model = model
        self.pool = pool
        self.dropout = dropout
        self.freeze = freeze
        self.freeze_encoder_epochs = freeze_encoder_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.gradient_checkpointing = gradient_checkpointing
        self.lr = lr
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.clip = clip
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.bias_correction = bias_correction
        self.select = select
        self.early_stopping = early_stopping
        self.on_nonfinite = on_nonfinite
        self.precision = precision
        self.max_length = max_length
        self.encoding = encoding
        self.channels = channels
        self.steps = steps
        self.grid_cells = grid_cells
        self.seed = seed
        self.head = head
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> MiniBertClassifier:  # noqa: N803
        """Train from the start, whatever was fitted before.

        Raises:
            ValueError: X are neither texts nor windows, y are no classes or only one, or a setting is out of its range.
        """
        settings = {name: value for name, value in self.get_params(deep=False).items() if name not in OWN}
        own_head = None if isinstance(self.head, str) else settings.pop("head")
        inputs = np.asarray(X) if is_windows(X) else np.array(checked_texts(X), dtype=object)
        if y is None:
            raise ValueError("MiniBertClassifier requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if len(y) != len(inputs):
            raise ValueError(f"X has {len(inputs)} examples, y {len(y)}")
        classes, places = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"MiniBertClassifier needs two classes or more; y has one class only, {classes[0]!r}")
        splits = np.full(len(y), "train", dtype="<U5")
        taken = by_class(places, np.random.default_rng(derive(Seeds.parse(self.seed).split, "split")))
        splits[taken["val"]] = "val"
        # A run has a test split, which here nothing reads: the validation rows stand in for it.
        again = np.flatnonzero(splits == "val")
        rows = np.concatenate([np.arange(len(y)), again])
        splits = np.concatenate([splits, np.full(len(again), "test")])
        data = Data(inputs[rows], [str(place) for place in places[rows]], splits=splits)
        with tempfile.TemporaryDirectory() as scratch:
            config = TrainConfig(**settings, out=str(Path(scratch) / "run"))
            run = train(config, data, head=own_head, verbose=self.verbose)
            self.classifier_ = run.classifier()
        self.classes_, self.history_ = classes, run.history
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """(n, C), the probability of each of `classes_`."""
        check_is_fitted(self)
        return self.classifier_.predict_proba(X)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """(n,), the classes as `fit` got them."""
        places = self.predict_proba(X).argmax(axis=1)
        return self.classes_[places]

    def __sklearn_tags__(self) -> Tags:
        """Texts or windows, no tables of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = tags.input_tags.string = True
        return tags


OWN = ("verbose",)  # parameters that are no settings

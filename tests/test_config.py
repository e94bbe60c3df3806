"""minibert/config.py: the defaults of a run, and what each setting may be."""

import argparse
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from decimal import Decimal
from pathlib import Path

import pytest

from minibert.config import TrainConfig, add_flags, flag
from minibert.errors import InputError
from minibert.seeds import Seeds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 2),
        ("epochs", 5),
        ("dropout", "0.1"),
        ("weight_decay", 0.01),
        ("clip", 1.0),
        ("lr", 1e-5),
        ("warmup", 0.1),
        ("init", "pretrained"),
        ("pool", "auto"),
        ("head", "linear"),
        ("freeze", "none"),
        ("freeze_encoder_epochs", 0),
        ("accumulate", 1),
        ("bias_correction", True),
        ("data", "motion"),
        ("encoding", "levels"),
        ("stop_on_collapse", 0),
        ("steps", 16),
        ("channels", None),
        ("seed", "0"),
    ],
)
def test_defaults(name, value):
    assert getattr(TrainConfig(), name) == value


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().lr = 2.0


def test_every_setting_has_a_heading_and_a_help_line():
    for entry in fields(TrainConfig):
        assert entry.metadata["group"] in ("data", "model", "training", "run"), entry.name
        assert entry.metadata["help"], entry.name


def test_needs_no_torch():
    code = "import sys, minibert.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_flags_are_spelled_with_dashes():
    assert flag("weight_decay") == "--weight-decay"


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1.0},
        {"lr": 1e-12},
        {"warmup": 0.0},
        {"warmup": 0.999},
        {"warmup": 1},
        {"warmup": 250.0},
        {"weight_decay": 0.0},
        {"weight_decay": 1.0},
        {"clip": 0.0},
        {"clip": 1e6},
        {"dropout": "0"},
        {"dropout": "0,0.5,0.999"},
        {"epochs": 1},
        {"batch_size": 1},
        {"accumulate": 1},
        {"stop_on_collapse": 0},
        {"stop_on_collapse": 1},
        {"label_smoothing": 0.0},
        {"class_weights": "balanced"},
        {"steps": 1},
        {"grid_cells": 1},
        {"max_length": 3},
        {"seed": "7,order=3"},
        {"encoding": "grid"},
        {"encoding": "decimals"},
        {"pool": "mean"},
        {"head": "attention"},
        {"freeze": "encoder"},
        {"freeze": "embeddings,layers:1-12"},
        {"freeze_encoder_epochs": 0},
        {"precision": "fp32"},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
)
def test_ends_of_the_ranges_are_allowed(settings):
    (name, value), *_ = settings.items()
    assert getattr(TrainConfig(**settings), name) == value


@pytest.mark.parametrize("value", [0.0, -1e-5, 1.01, float("nan"), float("inf")])
def test_bad_lr(value):
    with pytest.raises(InputError, match=r"--lr .*above 0 and at most 1"):
        TrainConfig(lr=value)


@pytest.mark.parametrize("value", [-0.1, -5.0, 1.5, 100.25, float("nan"), float("inf")])
def test_bad_warmup(value):
    with pytest.raises(InputError, match=r"--warmup .*fraction below 1 or a whole number"):
        TrainConfig(warmup=value)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_bad_weight_decay(value):
    with pytest.raises(InputError, match=r"--weight-decay .*from 0 to 1"):
        TrainConfig(weight_decay=value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_bad_label_smoothing(value):
    with pytest.raises(InputError, match=r"--label-smoothing .*from 0 to below 1"):
        TrainConfig(label_smoothing=value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_clip(value):
    with pytest.raises(InputError, match=r"--clip .*or 0 for none"):
        TrainConfig(clip=value)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "accumulate", "steps", "grid_cells"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_counts_start_at_one(name, value):
    with pytest.raises(InputError, match=f"{flag(name)} {value}: .*at least 1"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", ["stop_on_collapse", "freeze_encoder_epochs"])
@pytest.mark.parametrize("value", [-1, 1.5])
def test_counts_that_start_at_zero(name, value):
    with pytest.raises(InputError, match=f"{flag(name)} {value}: .*at least 0"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text_column": "label"}, "--label-column label: it must be another column than --text-column"),
        ({"text_column": "a", "text_b_column": "a"}, "--text-b-column a: it must be another column"),
        ({"delimiter": ""}, "--delimiter : it must be one character, tab, or auto"),
        ({"delimiter": '"'}, "--delimiter"),
        ({"delimiter": ";;"}, "--delimiter ;;"),
    ],
)
def test_columns_and_what_separates_them(settings, said):
    with pytest.raises(InputError, match=said):
        TrainConfig(**settings)


def test_a_text_has_room_for_its_markers():
    with pytest.raises(InputError, match=r"--max-length 2: .*at least 3"):
        TrainConfig(max_length=2)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("encoding", "levels, grid, decimals"),
        ("pool", "auto, cls, mean, tokens"),
        ("head", "linear, mlp, attention"),
        ("precision", "auto, fp32, bf16, fp16"),
    ],
)
def test_a_wrong_choice_is_told_the_right_ones(name, allowed):
    with pytest.raises(InputError, match=f"--{name} other: .*one of {allowed}"):
        TrainConfig(**{name: "other"})


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("0.1", (0.1, 0.1, 0.1)),
        ("0", (0.0, 0.0, 0.0)),
        ("0.1,0.2,0.3", (0.1, 0.2, 0.3)),
        ("0.1, 0, 0.5", (0.1, 0.0, 0.5)),
    ],
)
def test_dropout_is_one_rate_or_three(text, rates):
    assert TrainConfig(dropout=text).rates == rates


@pytest.mark.parametrize("text", ["", "much", "1", "1.0,0,0", "0,0,1", "-0.1", "0.1,0.2", "0,0,0,0", "nan", "0.1,,0.1"])
def test_bad_dropout(text):
    with pytest.raises(InputError, match=r"--dropout .*HIDDEN,ATTENTION,HEAD"):
        TrainConfig(dropout=text)


def test_a_bad_seed_is_refused_with_the_settings():
    with pytest.raises(InputError, match="--seed"):
        TrainConfig(seed="7,oder=3")


@pytest.mark.parametrize("name", [entry.name for entry in fields(TrainConfig)])
def test_wrong_types_are_refused_at_once_and_shown_as_they_are(name):
    kind = next(entry.type for entry in fields(TrainConfig) if entry.name == name)
    wrong = {
        "int": [2.0, True, "2", None, float("nan"), float("inf"), Path("2"), Decimal(2), 2j],
        "float": [Path("1"), Decimal(1), True, "1e-5", None, [0.1], 10**400, float("nan"), float("inf"), -float("inf")],
        "bool": [Path("on"), 1, 0.0, "on", None],
        "str": [Path("a"), 1, 0.5, True, None, b"0", ["0"]],
        "str | None": [Path("a"), 1, True, b"acc"],
    }[kind]
    for value in wrong:
        with pytest.raises(InputError) as caught:
            TrainConfig(**{name: value})
        assert str(caught.value).startswith(f"{flag(name)} {value!r}: it must be ")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", [entry.name for entry in fields(TrainConfig) if "str" in entry.type])
def test_text_that_no_file_can_hold_is_refused_before_there_is_a_folder(name):
    """A path of other bytes than UTF-8's comes as halves of letters, and config.json could not be written."""
    for value in ("a\0b", "caf\udce9"):
        with pytest.raises(InputError, match=f"^{flag(name)} "):
            TrainConfig(**{name: value})


@pytest.mark.parametrize("name", [entry.name for entry in fields(TrainConfig) if entry.type == "int"])
def test_numbers_that_cannot_be_meant(name):
    for value in (10**16, 2**63, 10**400):
        with pytest.raises(InputError, match=f"{flag(name)} 1?.*at most"):
            TrainConfig(**{name: value})


@pytest.mark.parametrize("settings", [{"examples": "9" * 5000}, {"on_nonfinite": "skip:" + "9" * 5000}])
def test_digits_that_python_does_not_read(settings):
    with pytest.raises(InputError):
        TrainConfig(**settings)


def test_whole_numbers_will_do_where_any_number_does():
    config = TrainConfig(lr=1, warmup=0, weight_decay=1, clip=0)
    assert (config.lr, config.warmup, config.weight_decay, config.clip) == (1, 0, 1, 0)


def test_seeds_and_rates_are_read_once_and_again_for_other_settings(monkeypatch):
    read = []
    parse = Seeds.parse
    monkeypatch.setattr(Seeds, "parse", lambda text: read.append(text) or parse(text))
    config = TrainConfig(seed="7,order=3", dropout="0.2")
    assert config.seeds is config.seeds
    assert config.seeds == Seeds(7, 7, 3, 7, 7, 0)
    assert read == ["7,order=3"]
    other = replace(config, seed="1", dropout="0.3")
    assert (other.seeds, other.rates) == (Seeds(1, 1, 1, 1, 1, 0), (0.3, 0.3, 0.3))
    assert config.rates == (0.2, 0.2, 0.2)
    assert asdict(config).keys() == {entry.name for entry in fields(TrainConfig)}
    assert config == TrainConfig(seed="7,order=3", dropout="0.2")


def test_flags_give_what_the_fields_hold_and_nothing_that_was_not_given():
    parser = argparse.ArgumentParser()
    assert list(add_flags(parser)) == ["data", "model", "training", "run"]
    assert vars(parser.parse_args([])) == {}
    given = parser.parse_args(["--lr", "1e-4", "--epochs", "3", "--no-bias-correction", "--channels", "acc"])
    assert vars(given) == {"lr": 1e-4, "epochs": 3, "bias_correction": False, "channels": "acc"}
    shown = parser.format_help()
    for entry in fields(TrainConfig):
        assert f"  {flag(entry.name)}" in shown
    assert "--pool {auto,cls,mean,tokens}" in shown


def test_some_flags_alone():
    parser = argparse.ArgumentParser()
    assert list(add_flags(parser, ("seed", "steps"))) == ["data", "run"]
    assert vars(parser.parse_args(["--steps", "4", "--seed", "1"])) == {"steps": 4, "seed": "1"}
    assert "--lr" not in parser.format_help()

"""A grid's products, its files, and the names of its runs."""

import argparse
import json
from dataclasses import asdict, fields, replace

import pytest

from minibert.__main__ import FIELDS, add_ablate_flags
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.lab.ablation import grid as grids
from minibert.lab.ablation.grid import (
    Grid,
    Product,
    label_of,
    name_of,
    preset,
    read_grid_file,
    settings_of,
    usual,
    varying,
)


def test_the_product_of_all_values_times_seeds_all_starts_of_a_seed_first():
    grid = Grid([Product({"init": ["pretrained", "random"], "lr": [1e-5, 1e-4]})], seeds=2)
    configs = grid.configs()
    assert [(c.seed, c.init, c.lr) for c in configs] == [
        (seed, init, lr) for seed in ("0", "1") for init in ("pretrained", "random") for lr in (1e-5, 1e-4)
    ]


def test_what_two_products_share_is_run_once():
    parts = [Product({"init": ["random", "xavier"]}), Product({"init": ["xavier", "shuffle"]})]
    assert [c.init for c in Grid(parts).configs()] == ["random", "xavier", "shuffle"]


def test_seeds_of_ones_own_take_the_place_of_the_numbered_ones():
    configs = Grid([Product({"seed": ["0", "0,order=1"]})], seeds=6).configs()
    assert [c.seed for c in configs] == ["0", "0,order=1"]


def test_values_given_take_the_place_of_those_in_every_product():
    grid = Grid([Product({"init": ["random"], "lr": [1e-4]}), Product({"init": ["xavier"]})])
    assert {(c.init, c.lr) for c in grid.override({"lr": [1e-3]}).configs()} == {("random", 1e-3), ("xavier", 1e-3)}


def test_a_grid_of_very_many_runs_is_refused_before_it_is_made():
    with pytest.raises(InputError, match="1,000,000 runs"):
        Grid([Product({"lr": [1e-4] * 1000, "warmup": [0.1] * 1000})]).configs()


def test_a_run_is_named_by_its_settings_and_by_nothing_else():
    config = TrainConfig(init="reinit:2", lr=3e-5, batch_size=8, out="somewhere")
    settings = settings_of(config)
    name = name_of(settings)
    assert name.startswith("reinit-2-")
    assert "/" not in name_of({**settings, "init": "a/b c"})
    assert name == name_of(dict(reversed(settings.items()))) == name_of(asdict(replace(config, out="elsewhere")))
    for field, value in asdict(TrainConfig(lr=2e-5, seed="1", warmup=0.2, bias_correction=False)).items():
        if value != asdict(TrainConfig())[field]:
            assert name_of({**settings, field: value}) != name, field
    assert "out" not in settings
    assert TrainConfig(**json.loads(json.dumps(settings))) == replace(config, out=None)


def test_every_setting_but_those_of_a_single_run_is_an_axis():
    parser = argparse.ArgumentParser()
    add_ablate_flags(parser)
    words = "--class-weights none balanced --label-smoothing 0 0.1 --select loss macro-f1 --early-stopping 0 2"
    given = vars(parser.parse_args([*words.split(), "--max-examples", "60"]))
    values = {name: given[name] for name in FIELDS if name in given}
    assert len(Grid([Product(values)]).configs()) == 16
    assert set(grids.FIELDS) == set(FIELDS) == {entry.name for entry in fields(TrainConfig)} - {"out", "save"}


def test_a_label_says_what_varies():
    runs = [settings_of(TrainConfig(init=init, lr=lr)) for init in ("random", "xavier") for lr in (1e-4, 1e-5)]
    assert varying(runs) == ["init", "lr"]
    assert usual(runs) == {"init": [], "lr": []}
    assert label_of(runs[1], usual(runs)) == "random lr 1e-05"
    runs += [runs[0] | {"pool": "mean"}]  # what most runs have is not said of them
    assert label_of(runs[-1], usual(runs)).endswith("pool mean")
    assert "pool" not in label_of(runs[0], usual(runs))


FILE = """
title = "t"
question = "q"
baseline = "random"
seeds = 3
[settings]
batch_size = 8
examples = 100
[[product]]
name = "a"
note = "b"
init = ["random", "pretrained"]
lr = 1
[[product]]
batch_size = [2, 4]
"""


def test_a_file_lists_products_and_what_all_share(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(FILE)
    grid = read_grid_file(path)
    assert (grid.title, grid.question, grid.baseline, grid.seeds) == ("t", "q", "random", 3)
    first, second = grid.products
    assert (first.name, first.note) == ("a", "b")
    assert first.values == {"batch_size": [8], "examples": ["100"], "init": ["random", "pretrained"], "lr": [1.0]}
    assert second.values == {"batch_size": [2, 4], "examples": ["100"]}
    assert isinstance(first.values["lr"][0], float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "not TOML"),
        ("colour = 1", "colour = 1; a grid file has title"),
        ("seeds = true", "seeds = True"),
        ("seeds = 0", "--seeds 0"),
        ("[[product]]\nrate = 1", "product 1: rate is no setting"),
        ('[settings]\nlr = "high"', "settings: lr = 'high'; it must be float"),
        ("[[product]]\nbatch_size = true", "batch_size = True"),
        ("[[product]]\nlr = []", "lr has no value"),
        ("[[product]]\nname = 1", "name and note are strings"),
        ('[settings]\nout = "x"', "out is no setting"),
        ("[settings]\nsave = false", "save is no setting"),
        ("product = [1]", "product 1 is 1"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_grid_file(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no grid file"):
        read_grid_file(tmp_path / "no.toml")
    with pytest.raises(InputError, match="--preset nothing: it must be one of .*default"):
        preset("nothing")


@pytest.mark.parametrize("name", sorted(path.stem for path in grids.PRESETS.glob("*.toml")))
def test_every_preset_is_a_grid_of_allowed_settings(name):
    grid = preset(name)
    assert grid.configs()
    assert grid.title
    assert grid.question.endswith("?")
    assert grid.baseline is None or any(c.init == grid.baseline for c in grid.configs())

"""minibert/lab/ablation/claims.py, presets/notebook.toml: every run of the notebook, rules that can say all three."""

import itertools
import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from minibert.config import TrainConfig
from minibert.lab.ablation import claims as module
from minibert.lab.ablation.claims import FAILS, HOLDS, UNTOLD, claims, count, difference

PRESET = Path(module.__file__).parent / "presets" / "notebook.toml"
CHANNELS = {"all": "all", "five": "acc-x,acc-y,acc-z,gyro-x,gyro-y", "acc": "acc", "grid": "acc"}

# The notebook's 71 runs: inputs, lr, warmup, epochs, init (?: not kept), jobs.
NOTEBOOK = """
all ? ? 10 pretrained n01,n03,n05,n06,6705
all ? ? 4 random n02
all ? ? 10 random n04,6710
all ? ? 3 random 6677
all ? ? 3 pretrained 6678
all 1e-4 0.01 ? pretrained 6743,6760
all 1e-4 0.01 ? random 6744
all 1e-5 0 ? random 6745
all 1e-5 0.1 ? pretrained 6759
all 1e-5 0.2 ? pretrained 6780
all 1e-5 0.2 ? random 6781
all 1e-5 0.4 ? pretrained 6798
all 1e-5 0.4 ? random 6822
all 1e-5 0.8 ? pretrained 6801
all 1e-5 0.8 ? random 6811
all 1e-5 0.01 ? pretrained 6826
all 1e-6 0.5 5 random 6823,6828
all 1e-6 0.5 5 pretrained 6827
all 1e-6 0.1 5 pretrained 6837,6964,7182
all 1e-6 0.1 5 random 6838,6965,7183
all 1e-6 0.5 10 pretrained 6839
all 1e-6 0.5 10 random 6840
all 1e-6 0.2 5 pretrained 6866
all 1e-6 0.2 5 random 6867
all 1e-6 0.05 ? pretrained 6880
all 1e-6 0.05 5 random 6881
all 1e-6 0.1 20 pretrained 6902
all 1e-6 0.1 20 random 6903
all 1e-6 0.1 40 pretrained 6944
all 1e-6 0.1 40 random 6945
all 1e-6 0.1 50 pretrained 6966
all 1e-6 0.1 50 random 6967
all 1e-6 0.1 60 pretrained 7033
all 1e-6 0.1 60 random 7032
all 1e-6 0.1 80 random 7066
all 1e-6 0.1 10 pretrained 7090
all 1e-6 0.1 10 random 7091
all 1e-6 0.1 70 pretrained 7104
all 1e-6 0.1 70 random 7105
all 1e-6 0.1 100 pretrained 7115
all 1e-6 0.1 100 random 7116
all 1e-6 0.1 120 pretrained n07
all 1e-6 0.1 130 random n08
five 1e-6 ? 5 pretrained n09
five 1e-6 ? 40 pretrained n10
five 1e-5 ? 5 pretrained n11
acc 1e-5 ? 5 pretrained 8012
grid 1e-6 ? 10 pretrained 7950
grid 1e-5 ? 10 pretrained 7951
grid 1e-5 ? 40 pretrained 8005
grid 1e-6 ? 10 random 7960
grid 1e-4 ? 5 pretrained 7981
grid 1e-6 ? 60 pretrained 7982
grid 1e-6 ? 60 random 8003
grid 1e-5 ? 80 pretrained 8009,8156
grid 1e-5 ? 80 random 8011
grid 1e-6 ? 80 pretrained 8157
grid 1e-5 ? 60 pretrained 8158
grid 1e-5 ? 10 ? 8164
""".strip().splitlines()


def preset():
    """Each product of the file: its note, and all its settings."""
    content = tomllib.loads(PRESET.read_text())
    for product in content["product"]:
        values = {k: v if isinstance(v, list) else [v] for k, v in product.items() if k not in ("name", "note")}
        chosen = [dict(zip(values, one)) for one in itertools.product(*values.values())]
        yield product["note"], [TrainConfig(**content["settings"], **settings) for settings in chosen]


def test_the_preset_has_every_run_of_the_notebook():
    jobs = []
    for line in NOTEBOOK:
        inputs, lr, warmup, epochs, init, names = line.split()
        wanted = {"init": init, "channels": CHANNELS[inputs], "encoding": "grid" if inputs == "grid" else "levels"}
        wanted |= {"lr": lr, "warmup": warmup, "epochs": epochs}
        if names == "8158":
            wanted["dropout"] = "0.6"
        for job in names.split(","):
            jobs.append(job)
            (product,) = [configs for note, configs in preset() if job in re.findall(r"\w+", note)]
            assert any(
                all(
                    value == "?" or (getattr(config, name) == (value if name in TEXTS else float(value)))
                    for name, value in wanted.items()
                )
                for config in product
            ), line
    assert len(set(jobs)) == 71


TEXTS = ("init", "channels", "encoding", "dropout")


def test_the_preset_is_a_grid():
    content = tomllib.loads(PRESET.read_text())
    assert set(content) == {"title", "question", "baseline", "claims", "seeds", "settings", "product"}
    configs = [config for _, configs in preset() for config in configs]
    assert len(set(configs)) == len(configs)  # no run twice
    assert {config.batch_size for config in configs} == {2}
    names = [product["name"] for product in content["product"]]
    assert len(set(names)) == len(names)


RISING = [
    {"train_loss": 0.5, "train_accuracy": 0.90, "val_loss": 0.4},
    {"train_loss": 0.1, "train_accuracy": 0.98, "val_loss": 1.1},
]
FLAT = [RISING[0], RISING[1] | {"val_loss": 0.43}]
UNFITTED = [RISING[0], RISING[0] | {"train_loss": 0.49}]


def run(test=0.5, val=None, verdict="learning", failed=False, history=RISING, **settings):
    """A run as the notebook's main ones, but for `settings`."""
    config = TrainConfig(**{"channels": "all", "lr": 1e-6, "out": f"runs/{settings}"} | settings)
    return SimpleNamespace(
        settings=asdict(config), history=list(history), test_accuracy=test, val_accuracy=test if val is None else val,
        verdict=verdict, failed=failed,
    )  # fmt: skip


def judged(number, runs):
    return claims(runs)[number - 1]


def seeds(n):
    return [str(seed) for seed in range(n)]


def test_a_difference():
    assert difference([0.1] * 6)[0] == HOLDS
    assert difference([-0.1] * 6)[0] == FAILS
    assert difference([0.1, -0.1] * 3)[0] == UNTOLD
    assert difference([0.1] * 5) == (UNTOLD, "5 matched differences, fewer than 6")
    assert difference([])[0] == UNTOLD
    assert difference([0.1] * 5 + [0.0])[0] == UNTOLD


@pytest.mark.parametrize(
    ("yes", "no", "n", "verdict"),
    [
        (2, 0, 2, HOLDS), (2, 0, 3, HOLDS), (1, 0, 1, UNTOLD), (2, 0, 4, UNTOLD), (5, 1, 6, UNTOLD),
        (0, 2, 2, FAILS), (2, 2, 4, FAILS), (0, 1, 1, UNTOLD), (3, 2, 5, UNTOLD), (0, 0, 0, UNTOLD),
    ],
)  # fmt: skip
def test_a_count(yes, no, n, verdict):
    assert count(yes, no, n) == verdict


def budgets(gaps, ratio=None, n=2):
    """Pairs at budgets 5, 10, ... with these differences; random makes `ratio` errors for each of pretrained's."""
    runs = []
    for seed, (place, gap) in itertools.product(seeds(n), enumerate(gaps)):
        errors = gap / (ratio - 1) if ratio else 0.3
        common = {"epochs": 5 * (place + 1), "seed": seed}
        runs += [run(1 - errors, **common), run(1 - errors - gap, init="random", **common)]
    return runs


def test_claim_1():
    shrinking = [0.12, 0.11, 0.10, 0.05, 0.04, 0.03]
    found = judged(1, budgets(shrinking, ratio=1.4))
    assert (found["verdict"], found["n"]) == (HOLDS, 24)
    assert "0.700 / 0.580 (5 epochs, 2 seeds)" in found["ours"]
    assert found["ours"].endswith("shrinks by 0.070; the ratio of errors falls by a factor of 1.000")
    assert judged(1, budgets(shrinking))["verdict"] == FAILS  # equal errors of pretrained: the ratio falls
    assert judged(1, budgets([-gap for gap in shrinking]))["verdict"] == FAILS
    assert judged(1, budgets(shrinking[::-1], ratio=1.4))["verdict"] == FAILS  # grows
    assert judged(1, budgets(shrinking, ratio=1.4, n=1))["verdict"] == UNTOLD  # 3 comparisons of budgets
    assert judged(1, budgets(shrinking[:1], ratio=1.4))["verdict"] == UNTOLD


def test_claim_1_pairs_only_what_matches():
    runs = budgets([0.1] * 6)
    for place, one in enumerate(runs):
        one.settings["seed"] = str(place)
    assert judged(1, runs)["n"] == 0
    other = [run(lr=1e-5), run(init="random", lr=1e-5), run(warmup=0.2), run(init="random", warmup=0.2),
             run(channels="acc"), run(init="random", channels="acc"), run(init="xavier")]  # fmt: skip
    assert judged(1, other)["n"] == 0
    assert judged(1, budgets([0.1] * 5))["n"] == 20


def cells(random_high, random_low="learning", pretrained="collapsed", n=3):
    runs = []
    for seed, warmup in itertools.product(seeds(n), (0.0, 0.4)):
        common = {"seed": seed, "warmup": warmup}
        runs += [run(init="random", lr=lr, verdict=random_high, **common) for lr in (1e-5, 1e-4)]
        runs += [run(init="random", verdict=random_low, **common), run(lr=1e-4, verdict=pretrained, **common)]
    return runs


def test_claim_2():
    found = judged(2, cells("collapsed"))
    assert (found["verdict"], found["n"]) == (HOLDS, 24)
    assert "random at 1e-05: 6 of 6 collapsed, 0 learning" in found["ours"]
    assert judged(2, cells("learning"))["verdict"] == FAILS
    assert judged(2, cells("collapsed", random_low="collapsed"))["verdict"] == FAILS
    assert judged(2, cells("collapsed", pretrained="learning"))["verdict"] == FAILS
    assert judged(2, cells("not yet"))["verdict"] == UNTOLD
    assert judged(2, cells("collapsed", random_low="not yet"))["verdict"] == UNTOLD
    assert judged(2, [*cells("collapsed")[:-1], run(lr=1e-4)])["verdict"] == UNTOLD  # one of six the other way
    for name, value in (("encoding", "grid"), ("channels", "acc"), ("dropout", "0.6"), ("grid_cells", 100_000)):
        for one in (other := cells("collapsed")):
            one.settings[name] = value
        assert judged(2, other)["n"] == 0


def short(best, others, n=6):
    runs = []
    for seed in seeds(n):
        runs.append(run(val=best, test=0.0, lr=1e-5, seed=seed))
        runs += [run(val=v, test=1.0, init=init, lr=lr, seed=seed) for (init, lr), v in others.items()]
    return runs


def test_claim_3():
    others = {("pretrained", 1e-6): 0.7, ("random", 1e-6): 0.6}
    found = judged(3, short(0.9, others))
    assert (found["verdict"], found["n"]) == (HOLDS, 18)
    assert "0.900, the best other start and rate 0.700 (n 6)" in found["ours"]
    assert judged(3, short(0.65, others))["verdict"] == FAILS
    assert judged(3, short(0.9, others | {("random", 1e-4): 0.95}))["verdict"] == FAILS
    assert judged(3, short(0.9, others, n=5))["verdict"] == UNTOLD
    assert judged(3, short(0.9, {("random", 1e-5): 0.1}))["n"] == 0  # nothing that it could fail against


def varied(all_, acc, random, history=RISING, grid_random="learning", n=6):
    runs = []
    for seed in seeds(n):
        runs += [run(all_, seed=seed), run(acc, channels=None, seed=seed), run(random, init="random", seed=seed)]
        runs += [
            run(init=init, encoding="grid", channels="acc", lr=1e-5, epochs=epochs, seed=seed, verdict=verdict,
                history=history if epochs > 10 else FLAT)
            for init, verdict in (("pretrained", "learning"), ("random", grid_random)) for epochs in (10, 80)
        ]  # fmt: skip
    return runs


def test_claim_4():
    found = judged(4, varied(0.6, 0.9, 0.5))
    assert found["verdict"] == HOLDS
    assert "0.300 apart between inputs, 0.100 between starts (n 6)" in found["ours"]
    assert "12 of 12 overfit" in found["ours"]
    assert judged(4, varied(0.6, 0.7, 0.3))["verdict"] == FAILS
    assert judged(4, varied(0.6, 0.3, 0.7))["verdict"] == HOLDS  # a distance has no sign
    stuck = [run(0.1, init="random", channels="acc", verdict="collapsed", seed=seed) for seed in seeds(6)]
    assert judged(4, varied(0.6, 0.9, 0.5) + stuck)["ours"] == found["ours"]
    assert judged(4, varied(0.6, 0.9, 0.5, history=FLAT))["verdict"] == FAILS
    assert judged(4, varied(0.6, 0.9, 0.5, history=UNFITTED))["verdict"] == UNTOLD
    assert judged(4, varied(0.6, 0.9, 0.5, grid_random="collapsed"))["verdict"] == FAILS
    assert judged(4, varied(0.6, 0.9, 0.5, grid_random="not yet"))["verdict"] == UNTOLD
    assert judged(4, varied(0.6, 0.9, 0.5, n=5))["verdict"] == UNTOLD


def test_what_overfits():
    assert module.overfits(run(history=RISING))
    assert not module.overfits(run(history=FLAT))
    assert not module.overfits(
        run(history=[RISING[0], RISING[1] | {"train_loss": 0.6}])
    )  # worse on both: no overfitting
    assert not module.overfits(run(history=RISING[:1]))


def changed(dropout, cells, n=6):
    grid = {"encoding": "grid", "channels": "acc", "lr": 1e-5}
    return [
        one
        for seed in seeds(n)
        for one in (
            run(0.5, **grid, epochs=60, seed=seed), run(0.5 + dropout, dropout="0.6", **grid, epochs=60, seed=seed),
            run(0.5, **grid, seed=seed), run(0.5 + cells, grid_cells=100_000, **grid, seed=seed),
        )
    ]  # fmt: skip


def test_claim_5():
    found = judged(5, changed(0.1, 0.2))
    assert (found["verdict"], found["n"]) == (HOLDS, 24)
    assert "0.600 with dropout 0.6, 0.500 without (n 6)" in found["ours"]
    for dropout, cells_, n, verdict in ((-0.1, 0.1, 6, FAILS), (0.1, -0.1, 6, FAILS), (0.1, 0.1, 5, UNTOLD)):
        assert judged(5, changed(dropout, cells_, n))["verdict"] == verdict


def rates(pretrained, random, n=6):
    """{rate: (validation, test)} of each start."""
    return [
        run(test, val=val, init=init, lr=lr, seed=seed)
        for seed in seeds(n)
        for init, of in (("pretrained", pretrained), ("random", random))
        for lr, (val, test) in of.items()
    ]


def test_claim_6():
    pretrained, random = {1e-6: (0.6, 0.6), 1e-5: (0.9, 0.8)}, {1e-6: (0.5, 0.5), 1e-5: (0.1, 0.9)}
    found = judged(6, rates(pretrained, random))
    assert (found["verdict"], found["n"]) == (HOLDS, 24)
    assert "0.800 at 1e-05 / 0.500 at 1e-06 (6 seeds)" in found["ours"]  # chosen on validation, not on test
    assert judged(6, rates(random, pretrained))["verdict"] == FAILS
    assert judged(6, rates(pretrained, random, n=5))["verdict"] == UNTOLD
    assert judged(6, rates({1e-6: (0.6, 0.6)}, random))["n"] == 0  # as many tries for either
    late = rates(pretrained, random, n=7)[:-1]  # the last seed lacks a rate
    assert "(6 seeds)" in judged(6, late)["ours"]


def test_channels_that_are_not_named_are_the_default_ones():
    assert module.inputs(run(channels=None)) == module.inputs(run(channels="acc")) == ("levels", "acc")


def test_failed_runs_and_nothing_at_all():
    for found in claims([]):
        assert (found["verdict"], found["n"]) == (UNTOLD, 0)
        assert set(found) == {"claim", "notebook", "ours", "verdict", "n", "why"}
        assert all(isinstance(found[name], str) and found[name] for name in set(found) - {"n"})
    runs = cells("collapsed")
    broken = [run(init="random", lr=1e-5, seed=f"{seed}", verdict=None, failed=True) for seed in range(9)]
    for one in broken:
        one.test_accuracy = one.val_accuracy = None
    assert claims(runs + broken) == claims(runs)
    runs = short(0.8, {("pretrained", 1e-6): 0.7})
    assert claims(runs + [run(0.9, init="xavier", seed=seed) for seed in seeds(9)]) == claims(runs)


def test_the_preset_can_tell_all_that_was_run():
    """Where everything is as the notebook has it, at the preset's own seeds; dropout and cells need 6 seeds."""
    runs = []
    for seed, config in itertools.product(seeds(2), (config for _, configs in preset() for config in configs)):
        high, is_random, grid = config.lr >= 1e-5, config.init == "random", config.encoding == "grid"
        stuck = not grid and (config.lr == 1e-4 or (high and is_random))
        error = 0.4 / config.epochs**0.5 / (3 if high else 1) * (1.3 if is_random else 1)
        error = error / 20 if config.channels != "all" and not grid else error + 1e-3 * int(seed)
        settings = {k: v for k, v in asdict(config).items() if k not in ("seed", "out")}
        runs.append(
            run(0.15 if stuck else 1 - error - 0.6 * grid, verdict="collapsed" if stuck else "learning", seed=seed,
                **settings)
        )  # fmt: skip
    verdicts = [found["verdict"] for found in claims(runs)]
    assert verdicts[:4] + verdicts[5:] == [HOLDS] * 5
    assert verdicts[4] == UNTOLD

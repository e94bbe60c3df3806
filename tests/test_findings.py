"""minibert/lab/ablation/findings.py and text.py: true tables at every edge, and an answer that claims no more."""

import json
import re

import pytest
from grids import two_starts, write_grid

from minibert.errors import InputError
from minibert.lab.ablation.findings import find
from minibert.lab.ablation.results import read_grid
from minibert.lab.ablation.text import terminal

pytestmark = pytest.mark.filterwarnings("error")  # numpy's, too


def found_of(path, runs, baseline=None, grid_baseline="random"):
    """What `find` makes of these runs; that JSON can hold it and 80 columns can, holds for every one."""
    found = find(read_grid(write_grid(path, runs, grid_baseline)), baseline)
    json.dumps(found, allow_nan=False)
    lines = terminal(found)
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).endswith(found["answer"])
    return found


def row_of(rows, start, **condition):
    (row,) = (row for row in rows if row["start"] == start and row["condition"] == condition)
    return row


def runs(start, accuracies, first=0, **more):
    """One run for each accuracy, with seeds from `first` on; more: settings, or arguments of write_run."""
    settings = {key: more.pop(key) for key in list(more) if key in ("lr", "warmup", "examples", "epochs")}
    return [({"init": start, "seed": str(first + i)} | settings, {"accuracy": accuracy} | more)
            for i, accuracy in enumerate(accuracies)]  # fmt: skip


def test_two_starts_and_six_seeds(tmp_path):
    found = found_of(tmp_path, two_starts())
    assert (found["baseline"], found["starts"], found["varied"]) == ("random", ["pretrained", "random"], [])
    row = row_of(found["settings"], "pretrained")
    assert (row["asked"], row["finished"], row["test"]["n"]) == (6, 6, 6)
    assert row["test"]["mean"] == pytest.approx(0.875)
    assert row["majority"] == {"val": 0.5, "test": 0.5}
    (pair,) = found["matched"]
    assert (pair["n"], pair["seeds"], pair["left_out"]) == (6, list("012345"), 0)
    assert pair["test"]["difference"] == pytest.approx(0.2625)
    assert (pair["test"]["examples"], pair["test"]["groups"]) == (40, 4)
    assert pair["test"]["interval"][0] < 0.2625 < pair["test"]["interval"][1]
    assert pair["sign_flip"] == {"above": 6, "below": 0, "p": 0.03125, "holm": 0.03125}
    assert pair["error_ratio"]["ratio"] == pytest.approx(0.125 / 0.3875)
    told = r"On motion, pretrained gave 0.875 test accuracy and random 0.61[23]: \+0.26[23], 95 % interval \+0.0\d\d to"
    assert re.match(told, found["answer"])
    assert "(6 paired seeds, 40 examples of 4 groups; all 6 seeds on one side, sign-flip p = 0.031)." in found["answer"]
    assert found["answer"].endswith("Random needs more than 3 epochs for what pretrained has after 1.")
    assert found["notes"] == []


def test_the_baseline_is_the_one_asked_for_the_grids_random_or_the_first(tmp_path):
    both = runs("xavier", [0.7]) + runs("random", [0.6])
    assert found_of(tmp_path / "a", both, grid_baseline="xavier")["baseline"] == "xavier"
    assert found_of(tmp_path / "b", both, grid_baseline=None)["baseline"] == "random"
    assert found_of(tmp_path / "c", both[:1], grid_baseline=None)["baseline"] == "xavier"
    turned = found_of(tmp_path / "d", both, baseline="xavier")
    assert turned["matched"][0]["test"]["difference"] == pytest.approx(-0.1)
    with pytest.raises(InputError, match="--baseline rezero: the grid has xavier, random"):
        find(read_grid(tmp_path / "d"), "rezero")


def test_one_seed_tells_no_spread(tmp_path):
    found = found_of(tmp_path, two_starts(seeds=1))
    (pair,) = found["matched"]
    assert pair["test"]["interval"] is None
    assert pair["sign_flip"]["p"] is None
    assert row_of(found["settings"], "random")["test"]["std"] is None
    assert "(one seed: no spread can be told, nor whether this is chance; 40 examples of 4 groups)" in found["answer"]


def test_five_seeds_are_too_few_for_a_test(tmp_path):
    found = found_of(tmp_path, two_starts(seeds=5))
    assert found["matched"][0]["sign_flip"] == {"above": 5, "below": 0, "p": None, "holm": None}
    assert "all 5 seeds on one side, 5 seeds are too few for a test" in found["answer"]
    assert any("with 5 paired seeds no test can reach p = 0.05" in line for line in found["limits"])


def test_pairs_are_runs_of_one_seed(tmp_path):
    found = found_of(tmp_path, runs("pretrained", [0.8, 0.9, 0.7], first=1) + runs("random", [0.5, 0.6, 0.65]))
    (pair,) = found["matched"]
    assert (pair["n"], pair["seeds"], pair["left_out"], pair["paired"]) == (2, ["1", "2"], 2, True)
    assert pair["test"]["difference"] == pytest.approx((0.8 + 0.9) / 2 - (0.6 + 0.65) / 2)


def test_no_seed_in_common(tmp_path):
    found = found_of(tmp_path, runs("pretrained", [0.8, 0.9], first=7) + runs("random", [0.5, 0.6, 0.65]))
    (pair,) = found["matched"]
    assert (pair["n"], pair["paired"], pair["sign_flip"], pair["error_ratio"]) == (0, False, None, None)
    assert pair["test"]["interval"] is not None
    assert "(no seed in common; 40 examples of 4 groups)" in found["answer"]


def test_all_collapsed(tmp_path):
    found = found_of(tmp_path, two_starts(gap=0, name="collapsed"))
    row = row_of(found["settings"], "random")
    assert row["collapsed_or_failed"]["share"] == 1
    assert (row["test"]["collapsed"], row["test"]["mean_alive"]) == (6, None)
    assert "Every run collapsed" in found["answer"]


def test_all_equal_proves_nothing(tmp_path):
    found = found_of(tmp_path, runs("pretrained", [0.7] * 6, noise=1) + runs("random", [0.7] * 6, noise=1))
    (pair,) = found["matched"]
    assert (pair["test"]["difference"], pair["test"]["interval"]) == (0, [0, 0])
    assert pair["sign_flip"] == {"above": 0, "below": 0, "p": None, "holm": None}
    assert "does not prove the starts equal" in found["answer"]


def test_the_interval_that_holds_zero_says_so(tmp_path):
    found = found_of(tmp_path, runs("pretrained", [0.8, 0.5, 0.6]) + runs("random", [0.6, 0.7, 0.55]))
    assert "which holds 0: the two cannot be told apart" in found["answer"]
    assert "2 of 3 seeds above" in found["answer"]


def test_with_and_without_the_collapsed(tmp_path):
    some = runs("random", [0.8, 0.6]) + runs("random", [0.5], first=2, name="collapsed")
    failed = [({"init": "random", "seed": "3"}, "not finite")]
    row = row_of(found_of(tmp_path, some + failed)["settings"], "random")
    assert row["test"]["mean"] == pytest.approx(1.9 / 3)
    assert row["test"]["mean_alive"] == pytest.approx(0.7)
    assert (row["collapsed_or_failed"]["count"], row["collapsed_or_failed"]["n"]) == (2, 4)


def test_missing_failed_and_broken_runs_are_counted(tmp_path):
    some = [*two_starts(seeds=3), ({"init": "random", "seed": "3"}, "not finite, " * 9), ({"seed": "4"}, None)]
    write_grid(tmp_path, some)
    (tmp_path / "runs" / "run000" / "predictions.csv").write_text("split")
    found = find(read_grid(tmp_path))
    assert found["counts"] == {"asked": 8, "finished": 5, "unfinished": 0, "failed": 1, "missing": 1, "broken": 1}
    assert found["notes"][0] == (
        "5 of 8 runs finished, 1 failed, 1 missing, 1 broken; the same command again does the rest."
    )
    assert found["matched"][0]["n"] == 2
    lines = terminal(found)
    assert any("failed" in line and "not finite" in line and line.endswith("…") for line in lines)
    assert any("broken" in line for line in lines)


def test_a_start_without_a_finished_run(tmp_path):
    found = found_of(tmp_path, [*runs("random", [0.6, 0.7]), ({"init": "pretrained"}, "not finite")])
    assert found["matched"][0]["test"] is None
    assert row_of(found["settings"], "pretrained")["test"] is None
    assert "there is no answer yet" in found["answer"]


def test_no_run_finished(tmp_path):
    found = found_of(tmp_path, [({"init": "pretrained"}, None), ({"init": "random"}, None)])
    assert found["answer"] == "No run has finished: there is no answer yet."


def test_one_start_only(tmp_path):
    found = found_of(tmp_path, runs("xavier", [0.6, 0.7]), grid_baseline=None)
    assert found["answer"] == (
        "On motion, xavier gave 0.650 test accuracy (standard deviation 0.071, 2 seeds); no other start to compare"
        " with."
    )
    assert found["matched"] == []


def test_holm_is_over_the_comparisons_of_a_table(tmp_path):
    three = [*two_starts(), *runs("xavier", [0.7] * 6)]
    found = found_of(tmp_path, three)
    assert [row["sign_flip"]["p"] for row in found["matched"]] == [0.03125, 0.03125]
    assert [row["sign_flip"]["holm"] for row in found["matched"]] == [0.0625, 0.0625]
    assert "sign-flip p = 0.031, 0.062 among all comparisons" in found["answer"]


def tuned():
    made = []
    for lr, strong, weak in ((1e-6, 0.7, 0.55), (1e-5, 0.9, 0.6), (1e-4, 0.8, 0.65)):
        made += runs("pretrained", [strong, strong + 0.025], lr=lr) + runs("random", [weak, weak + 0.025], lr=lr)
    return made


def test_each_start_at_its_own_best_rate(tmp_path):
    found = found_of(tmp_path, tuned())
    assert found["varied"] == ["lr"]
    assert [row["lr"] for row in found["chosen"]] == [1e-5, 1e-4]
    assert [row["edge"] for row in found["chosen"]] == [None, "highest"]
    (pair,) = found["best"]
    assert pair["test"]["difference"] == pytest.approx(0.9125 - 0.6625)
    assert row_of(found["chosen"], "pretrained")["expected_best"] == pytest.approx(
        [(0.7125 + 0.9125 + 0.8125) / 3, (0.9125 + 0.9125 + 0.8125) / 3, 0.9125]
    )
    assert len(found["matched"]) == 3
    assert "each at its best rate: +0.250" in found["answer"]
    assert found["notes"] == ["At the edge of the rates tried, so that a better one may lie beyond: random."]
    heat = row_of(found["heatmaps"], "random")
    assert heat["val"] == [pytest.approx([0.5625, 0.6125, 0.6625])]
    assert heat["lost"] == [[0, 0, 0]]


def test_the_rate_is_chosen_on_validation_alone(tmp_path):
    one = runs("random", [0.9, 0.9], val=0.6, lr=1e-6) + runs("random", [0.6, 0.6], val=0.7, lr=1e-5)
    found = found_of(tmp_path, one + runs("pretrained", [0.8, 0.8], lr=1e-6))
    assert row_of(found["chosen"], "random")["lr"] == 1e-5


def test_one_lucky_run_and_failed_ones_choose_no_rate(tmp_path):
    lucky = [*runs("random", [0.7] * 4, lr=1e-6), *runs("random", [0.95], lr=1e-5)]
    lucky += [({"init": "random", "lr": 1e-5, "seed": str(i)}, None) for i in range(1, 4)]
    assert found_of(tmp_path / "a", lucky)["chosen"][0]["lr"] == 1e-6
    failing = [*runs("random", [0.7] * 4, lr=1e-6), *runs("random", [0.8] * 3, lr=1e-5)]
    failing += [({"init": "random", "lr": 1e-5, "seed": "3"}, "not finite")]
    assert found_of(tmp_path / "b", failing)["chosen"][0]["lr"] == 1e-6


def test_epochs_to_match(tmp_path):
    # Curves of these runs rise from 0.5 on a straight line: after k of 4 epochs, 0.5 + gain * k / 4.
    pair = runs("pretrained", [0.9, 0.9], epochs=4) + runs("random", [0.7, 0.7], epochs=4)
    one, half, whole = found_of(tmp_path, pair)["matched"][0]["epochs"]
    assert [row["spent"] for row in (one, half, whole)] == [1, 2, 4]
    assert (one["at"], one["multiplier"]) == (pytest.approx(2), pytest.approx(2))
    assert (half["at"], half["budget"]) == (pytest.approx(4), 4)
    assert (whole["at"], whole["interval"]) == (None, [None, None])


def test_a_run_that_stopped_early_stays_where_it_was(tmp_path):
    write_grid(tmp_path, two_starts(seeds=2))
    file = tmp_path / "runs" / "run002" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(lines[0] + "\n")
    reached = json.loads(lines[0])["val_accuracy"]
    (curve,) = (row for row in find(read_grid(tmp_path))["curves"] if row["start"] == "random")
    assert curve["val"]["low"] == pytest.approx([reached] * 3)


def test_examples_to_match(tmp_path):
    made = []
    for n, strong, weak in (("100", 0.75, 0.6), ("400", 0.85, 0.7), ("all", 0.9, 0.8)):
        size = 1600 if n == "all" else int(n)
        made += runs("pretrained", [strong, strong], examples=n, size=size)
        made += runs("random", [weak, weak], examples=n, size=size)
    found = found_of(tmp_path, made)
    rows = {(row["start"], row["examples"]): row["match"] for row in found["examples"]}
    assert next(iter(rows)) == ("pretrained", 100)
    assert rows["pretrained", 100]["at"] == pytest.approx(800)  # half way from 400 to 1600 in logs
    assert rows["pretrained", 100]["multiplier"] == pytest.approx(8)
    assert rows["pretrained", 100]["transferred"] == pytest.approx(700)
    assert rows["pretrained", 400]["at"] is None
    assert rows["random", 400] is None
    assert "Random needs 800 examples for what pretrained reaches with 100." in found["answer"]
    assert "(examples all)" in found["answer"].split(":")[0]  # the headline is about the most


def test_the_size_of_the_training_split_where_the_run_does_not_say(tmp_path):
    made = [run for n in ("100", "all") for run in runs("random", [0.6], examples=n, size=100 if n == "100" else 1600)]
    write_grid(tmp_path, made)
    for folder in (tmp_path / "runs").iterdir():
        config = json.loads((folder / "config.json").read_text())
        del config["dataset"]["sizes"]
        (folder / "config.json").write_text(json.dumps(config))
    assert [row["examples"] for row in find(read_grid(tmp_path))["examples"]] == [100, 1600]


def test_the_spread_by_seed(tmp_path):
    made = [({"init": "random", "seed": f"{a},order={b}"}, {"accuracy": 0.5 + 0.1 * a + 0.05 * b})
            for a in range(3) for b in range(3)]  # fmt: skip
    (row,) = found_of(tmp_path, made)["variance"]
    assert row["n"] == 9
    assert row["variance"]["encoder and head and dropout"] == pytest.approx(0.01)
    assert row["variance"]["order"] == pytest.approx(0.0025)
    assert row["share"]["order"] == pytest.approx(0.2)
    assert found_of(tmp_path / "plain", two_starts())["variance"] == []


def test_a_design_that_tells_no_seed_apart_says_so(tmp_path):
    made = [({"seed": seed}, {"accuracy": 0.6}) for seed in ("0", "0,order=1", "1,order=2", "3,head=4")]
    (row,) = found_of(tmp_path, made)["variance"]
    assert "neither crossed" in row["reason"]


def test_seeds_with_other_examples_each(tmp_path):
    write_grid(tmp_path, two_starts(seeds=3))
    for name in ("run001", "run004"):
        file = tmp_path / "runs" / name / "predictions.csv"
        file.write_text(file.read_text().replace("test,20", "test,30"))
    found = find(read_grid(tmp_path))
    (pair,) = found["matched"]
    assert (pair["test"]["examples"], pair["val"]["examples"]) == (None, 40)
    assert pair["test"]["difference"] == pytest.approx(0.875 - 0.6083333)
    assert pair["test"]["interval"] is not None
    assert "other examples for each seed" in found["answer"]


def test_conditions_are_compared_each_by_itself(tmp_path):
    made = [run for n in (2, 3) for run in runs("pretrained", [0.8 + n / 40] * n, epochs=n)]
    made += [run for n in (2, 3) for run in runs("random", [0.6] * n, epochs=n)]
    found = found_of(tmp_path, made)
    assert row_of(found["matched"], "pretrained", epochs=3)["test"]["difference"] == pytest.approx(0.275)
    assert found["answer"].startswith("On motion (epochs 3), pretrained gave 0.875")


def test_what_the_head_reads_is_no_condition_where_it_follows_from_the_start(tmp_path):
    pools = {"random:deep": "mean", "random": "cls"}
    made = [({"init": init, "seed": str(i), "pool": pool}, {}) for init, pool in pools.items() for i in range(2)]
    found = found_of(tmp_path / "a", made)
    assert (found["varied"], found["matched"][0]["n"]) == ([], 2)
    found = found_of(tmp_path / "b", [*made, ({"init": "random", "pool": "mean"}, {})])
    assert found["varied"] == ["pool"]
    heads = [({"init": init, "pool": pool, "head": head}, {}) for init in pools
             for head, pool in (("linear", pools[init]), ("attention", "tokens"))]  # fmt: skip
    assert found_of(tmp_path / "c", heads)["varied"] == ["head"]


def test_a_setting_newer_than_a_run_had_its_default(tmp_path):
    older, newer = ({"seed": "0"}, {}), ({"seed": "1", "head": "linear", "freeze": "none"}, {})
    assert found_of(tmp_path, [older, newer])["varied"] == []


def test_parts_over_time(tmp_path):
    (row,) = found_of(tmp_path, runs("random", [0.6, 0.7], parts=True))["parts"]
    assert row["names"] == ["embeddings", "layer 1", "layer 2", "pooler", "head"]
    assert row["gradient"][1] == pytest.approx([10 ** -(1 + epoch / 3) for epoch in (1, 2, 3)])
    assert row["cls"][4] == [None, None, None]


def test_long_names_stay_in_80_columns(tmp_path):
    long = "layers:1-3:" + "x" * 60
    failed = ({"init": long, "seed": "2"}, "no " * 60)
    found = found_of(tmp_path, [*runs(long, [0.7, 0.8]), *runs("random", [0.6, 0.65]), failed])
    assert found["starts"] == [long, "random"]
    assert terminal(found)[2].split() == [long, "2/3"]  # what does not fit is left out, not cut in two

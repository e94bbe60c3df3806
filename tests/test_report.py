"""minibert/lab/ablation/report.py: every number of a report from the run folders again, by other code; and the page."""

import csv
import functools
import html
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from xml.etree import ElementTree

import forked
import numpy as np
import pytest
import scipy.stats
from grids import two_starts, write_grid

from minibert.__main__ import main
from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.lab.ablation import ablate
from minibert.lab.ablation.findings import find
from minibert.lab.ablation.report import tell, write_report
from minibert.lab.ablation.results import read_grid
from minibert.lab.ablation.text import terminal
from minibert.training.outcome import evaluate_run, write_predictions
from minibert.training.run import train

pytestmark = pytest.mark.filterwarnings("error")


def reported(path, **more):
    grid = read_grid(path)
    return write_report(grid, find(grid), **more)


def real_grid(tiny, path):
    """Runs of `train` as they are: two starts, two rates, three seeds."""
    texts = [(f"{i} {(7 * i) % 50 + 50 * (i % 2)}", f"class {i % 2}") for i in range(120)]
    path.mkdir(parents=True)
    with open(path / "texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *texts])
    asked = {}
    for init, lr, seed in itertools.product(("pretrained", "random"), (1e-3, 1e-2), "012"):
        config = TrainConfig(data=str(path / "texts.csv"), model=str(tiny), init=init, lr=lr, seed=seed, epochs=3,
                             batch_size=8, out=str(path / "runs" / f"{init}-{lr}-{seed}"))  # fmt: skip
        run = train(config, say=lambda line: None)
        reports, predictions = evaluate_run(run)
        (run / "outcome.json").write_text(json.dumps(reports))
        write_predictions(run / "predictions.csv", predictions)
        asked[run.name] = {key: value for key, value in asdict(config).items() if key != "out"}
    content = {"format": 1, "baseline": "random", "settled": {}, "data": {"texts.csv": "0" * 64},
               "commands": ["python -m minibert ablate --data texts.csv"], "runs": asked}  # fmt: skip
    (path / "grid.json").write_text(json.dumps(content))
    return path


def rich_grid(path):
    """Six seeds, two rates, three sizes; at the smallest a second warmup and a third start, too. Some runs failed, are
    missing or have collapsed.
    """
    rng = np.random.default_rng(5)
    level, runs = {"pretrained": 0.8, "random": 0.6, "xavier": 0.65}, []
    product = itertools.product(("100", "400", "all"), (1e-5, 1e-4), (0.0, 0.1), level, range(6))
    for n, lr, warmup, init, seed in product:
        if n != "100" and (warmup == 0 or init == "xavier"):
            continue
        gain = {"100": 0, "400": 0.05, "all": 0.1}[n]
        what = {"accuracy": float(np.clip(level[init] + gain + rng.normal() * 0.04, 0, 1)), "parts": True,
                "val": float(np.clip(level[init] + gain + rng.normal() * 0.04, 0, 1)),
                "size": 1600 if n == "all" else int(n)}  # fmt: skip
        chance = rng.random()
        if chance < 0.1 and lr == 1e-4:
            what |= {"accuracy": 0.5, "val": 0.5, "name": "collapsed"}
        elif chance < 0.14:
            what = None if init == "xavier" else "the gradient is not finite"
        runs.append(({"init": init, "seed": str(seed), "examples": n, "lr": lr, "warmup": warmup}, what))
    apart = [({"init": "random", "seed": f"{a},order={b}", "epochs": 2}, {"accuracy": float(rng.uniform(0.5, 0.7))})
             for a in range(3) for b in range(4)]  # fmt: skip
    return write_grid(path, runs + apart)


@pytest.fixture(scope="module", params=["real", "rich"])
def written(request, tiny, tmp_path_factory):
    """(the grid's folder, that of its report)"""
    path = tmp_path_factory.mktemp("grid") / request.param
    path = real_grid(tiny, path) if request.param == "real" else rich_grid(path)
    return path, reported(path).parent


# By other code: the folders as they lie, plain Python and scipy


class Folder:
    def __init__(self, path, name, settings):
        self.name, self.settings = name, settings
        self.start, self.seed = settings["init"], settings["seed"]
        folder = path / "runs" / name
        self.finished = (folder / "outcome.json").exists()
        self.failed = (folder / "failed.json").exists()
        if self.finished:
            with open(folder / "predictions.csv", newline="") as file:
                rows = sorted(csv.DictReader(file), key=lambda row: int(row["row"]))
            self.rows = {split: [row for row in rows if row["split"] == split] for split in ("val", "test")}
            self.val, self.test = (statistics.fmean(row["label"] == row["predicted"] for row in self.rows[split])
                                   for split in ("val", "test"))  # fmt: skip
            self.history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            self.outcome = json.loads((folder / "outcome.json").read_text())
            config = json.loads((folder / "config.json").read_text())
            self.alive, self.size = config["ended"]["verdict"] != "collapsed", config["dataset"].get("sizes", {})

    def like(self, row, names):
        """Whether the run is of the row's condition."""
        return all(str(self.settings.get(name)) == row[name] for name in names)

    def by_group(self, split):
        """The accuracy on each group's examples; on each example where there are no groups."""
        groups = {}
        for row in self.rows[split]:
            groups.setdefault(row.get("group", row["row"]), []).append(row["label"] == row["predicted"])
        assert len({len(group) for group in groups.values()}) == 1  # means of means are then means
        return [statistics.fmean(group) for group in groups.values()]


@pytest.fixture(scope="module")
def folders(written):
    runs = json.loads((written[0] / "grid.json").read_text())["runs"]
    return [Folder(written[0], name, settings) for name, settings in runs.items()]


def read_data(written, name):
    file = written[1] / "data" / f"{name}.csv"
    if not file.exists():
        return []
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def varied(written):
    return json.loads((written[1] / "findings.json").read_text())["varied"]


def same(text, value, tolerance=1e-9):
    if value is None or math.isinf(value):
        assert text == ""
    else:
        assert float(text) == pytest.approx(value, abs=tolerance)


def of(folders, row, names, start=None):
    return [run for run in folders if run.finished and run.start == (start or row["start"]) and run.like(row, names)]


def test_runs_again(written, folders):
    rows = read_data(written, "runs")
    assert [row["name"] for row in rows] == [run.name for run in folders]
    for row, run in zip(rows, folders):
        assert (row["start"], row["seed"]) == (run.start, run.seed)
        assert (row["state"] == "finished", row["state"] == "failed") == (run.finished, run.failed)
        same(row["val"], run.val if run.finished else None)
        same(row["test"], run.outcome["test"]["accuracy"] if run.finished else None)
        if run.finished:
            same(row["seconds"], sum(line["seconds"] for line in run.history))
            assert row["best_epoch"] == str(max(run.history, key=lambda line: line["val_accuracy"])["epoch"])


def check_description(row, split, runs):
    values = [getattr(run, split) for run in runs]
    alive = [getattr(run, split) for run in runs if run.alive]
    figures = {
        "n": len(values), "mean": statistics.fmean(values), "median": statistics.median(values),
        "iqm": scipy.stats.trim_mean(values, 0.25), "best": max(values), "worst": min(values),
        "collapsed": len(values) - len(alive), "mean_alive": statistics.fmean(alive) if alive else None,
    }  # fmt: skip
    if len(values) > 1:
        std = statistics.stdev(values)
        half = scipy.stats.t.ppf(0.975, len(values) - 1) * std / math.sqrt(len(values))
        figures |= {"std": std, "interval.low": figures["mean"] - half, "interval.high": figures["mean"] + half}
    for name, value in figures.items():
        same(row[f"{split}.{name}"], value)


def test_settings_again(written, folders):
    names, rows = varied(written), read_data(written, "settings")
    assert sum(int(row["asked"]) for row in rows) == len(folders)
    for row in rows:
        mine = of(folders, row, names)
        failed = sum(run.failed and run.start == row["start"] and run.like(row, names) for run in folders)
        assert (int(row["finished"]), int(row["failed"])) == (len(mine), failed)
        for split in ("val", "test"):
            check_description(row, split, mine)
            labels = [line["label"] for line in mine[0].rows[split]]
            same(row[f"majority.{split}"], labels.count(statistics.mode(labels)) / len(labels))
        lost = failed + sum(not run.alive for run in mine)
        interval = scipy.stats.binomtest(lost, len(mine) + failed).proportion_ci(method="wilson")
        same(row["collapsed_or_failed.share"], lost / (len(mine) + failed))
        same(row["collapsed_or_failed.interval.low"], interval.low)
        same(row["collapsed_or_failed.interval.high"], interval.high)


def two_way(table):
    """The interval of the mean of a table (seeds, groups), from its mean squares."""
    n, m = table.shape
    seeds, groups = table.mean(axis=1), table.mean(axis=0)
    both = table - seeds[:, None] - groups + table.mean()
    parts = [seeds.var(ddof=1) / n, groups.var(ddof=1) / m, (both**2).sum() / ((n - 1) * (m - 1) * n * m)]
    free = [n - 1, m - 1, (n - 1) * (m - 1)]
    variance = max(parts[0], parts[1], parts[0] + parts[1] - parts[2])
    if variance == 0:
        return table.mean(), table.mean()
    df = max(min(free), variance**2 / sum(part**2 / one for part, one in zip(parts, free)))
    half = scipy.stats.t.ppf(0.975, df) * math.sqrt(variance)
    return table.mean() - half, table.mean() + half


@functools.cache
def wide(n):
    return math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1) / scipy.stats.norm.ppf(0.975)


def middle(draws):
    return np.quantile(draws, [0.025, 0.975], method="nearest")


def check_comparison(row, base, other):
    left, right = {run.seed: run for run in base}, {run.seed: run for run in other}
    seeds = [seed for seed in right if seed in left]
    assert row["seeds"].split() == seeds
    assert len(seeds) > 1, "the grids of this test have pairs everywhere"
    base, other = [left[seed] for seed in seeds], [right[seed] for seed in seeds]
    for split in ("val", "test"):
        a, b = ([getattr(run, split) for run in runs] for runs in (base, other))
        same(row[f"{split}.baseline"], statistics.fmean(a))
        same(row[f"{split}.mean"], statistics.fmean(b))
        same(row[f"{split}.difference"], statistics.fmean(b) - statistics.fmean(a))
        table = np.array([y.by_group(split) for y in other]) - np.array([x.by_group(split) for x in base])
        for end, value in zip(("low", "high"), two_way(table)):
            same(row[f"{split}.interval.{end}"], value)
    a, b = np.array(a), np.array(b)
    differences = np.round(b - a, 12)
    assert (int(row["sign_flip.above"]), int(row["sign_flip.below"])) == ((b > a).sum(), (b < a).sum())
    p = scipy.stats.permutation_test((differences,), np.sum, permutation_type="samples").pvalue
    told = 2 / 2 ** np.count_nonzero(differences) <= 0.05
    same(row["sign_flip.p"], p if told else None)
    same(row["improvement.probability"], scipy.stats.mannwhitneyu(b, a).statistic / len(a) ** 2)
    same(row["error_ratio.ratio"], (1 - b).sum() / (1 - a).sum())
    rng = np.random.default_rng(99)
    one, two = rng.integers(0, len(a), (2, 10_000, len(a)))
    better = ((b[one][:, :, None] > a[two][:, None]) + 0.5 * (b[one][:, :, None] == a[two][:, None])).mean(axis=(1, 2))
    if row["improvement.interval.low"]:
        probability = float(row["improvement.probability"])
        ends = np.clip(probability + wide(len(a)) * (middle(better) - probability), 0, 1)
        same(row["improvement.interval.low"], ends[0], 0.08)
        same(row["improvement.interval.high"], ends[1], 0.08)
    ratio = float(row["error_ratio.ratio"])
    sums = [(above, below) for above, below in zip((1 - b)[one].sum(axis=1), (1 - a)[one].sum(axis=1)) if above + below]
    drawn = [above / below if below else math.inf for above, below in sums]
    for end, value in zip(("low", "high"), ratio * (middle(drawn) / ratio) ** wide(len(a))):
        same(row[f"error_ratio.interval.{end}"], value, 0.1 * value)


def check_holm(rows):
    tested = sorted((float(row["sign_flip.p"]), float(row["sign_flip.holm"])) for row in rows if row["sign_flip.p"])
    least = 0.0
    for place, (p, adjusted) in enumerate(tested):
        least = max(least, min(1.0, p * (len(tested) - place)))
        assert adjusted == pytest.approx(least)
    return len(tested)


def test_matched_again(written, folders):
    names, rows = varied(written), read_data(written, "matched")
    assert rows
    for row in rows:
        check_comparison(row, of(folders, row, names, row["baseline"]), of(folders, row, names))
    assert check_holm(rows) > 3 or "real" in str(written[0])


def setup_of(written):
    return [name for name in varied(written) if name not in ("lr", "warmup")]


def best_runs(folders, row, setup, start=None):
    """The runs at the rate with the best validation, and the means of all rates."""
    start = start or row["start"]
    rates = {}
    for run in folders:
        if run.start == start and run.like(row, setup):
            rates.setdefault((run.settings["lr"], run.settings["warmup"]), []).append(run)
    means = {rate: sum(run.val for run in runs if run.finished) / sum(run.finished or run.failed for run in runs)
             for rate, runs in rates.items()}  # fmt: skip
    rate = max(means, key=lambda rate: means[rate])
    return rate, [run for run in rates[rate] if run.finished], list(means.values())


def test_best_rates_again(written, folders):
    setup, rows = setup_of(written), read_data(written, "chosen")
    for row in rows:
        rate, mine, means = best_runs(folders, row, setup)
        assert (float(row["lr"]), float(row["warmup"]), int(row["tried"])) == (*rate, len(means))
        check_description(row, "test", mine)
        check_description(row, "val", mine)
        for line in read_data(written, "expected"):
            if line["start"] == row["start"] and all(line[name] == row[name] for name in setup):
                choices = list(itertools.combinations(means, int(line["k"])))
                same(line["val"], statistics.fmean(max(choice) for choice in choices))
    pairs = read_data(written, "best")
    assert pairs
    for row in pairs:
        base, other = (best_runs(folders, row, setup, start)[1] for start in (row["baseline"], row["start"]))
        check_comparison(row, base, other)
    check_holm(pairs)


def reached(x, curve, goal, log):
    """Where a curve that keeps what it has first has the goal; infinite: nowhere."""
    top = list(itertools.accumulate(curve, max))
    if top[0] >= goal:
        return x[0]
    for left, right, low, high in zip(x, x[1:], top, top[1:]):
        if high >= goal:
            share = (goal - low) / (high - low)
            return left * (right / left) ** share if log else left + share * (right - left)
    return math.inf


def check_match(row, prefix, x, curves, goals, log):
    curves, goals = np.array(curves), np.array(goals)
    mean, spent = curves.mean(axis=0), float(row[f"{prefix}spent"])
    at = reached(x, mean, goals.mean() - 1e-12, log)
    same(row[f"{prefix}target"], goals.mean())
    same(row[f"{prefix}at"], at, 1e-6)
    same(row[f"{prefix}multiplier"], at / spent, 1e-6)
    same(row[f"{prefix}transferred"], at - spent, 1e-6)
    rng, draws = np.random.default_rng(98), []
    for _ in range(1000):
        curve = mean + wide(len(curves)) * (curves[rng.integers(0, len(curves), len(curves))].mean(axis=0) - mean)
        goal = goals.mean() + wide(len(goals)) * (goals[rng.integers(0, len(goals), len(goals))].mean() - goals.mean())
        draws.append(reached(x, curve, goal, log))
    assert float(row[f"{prefix}reached"]) == pytest.approx(np.isfinite(draws).mean(), abs=0.06)
    for end, value in zip(("low", "high"), middle(draws)):
        if row[f"{prefix}interval.{end}"] and math.isfinite(value):
            assert float(row[f"{prefix}interval.{end}"]) == pytest.approx(value, abs=0.15 * (x[-1] - x[0]))


def test_epochs_again(written, folders):
    rows = read_data(written, "epochs")
    assert {row["rates"] for row in rows} == {"matched", "best"}
    for row in rows:
        if row["rates"] == "matched":
            base, other = (of(folders, row, varied(written), start) for start in ("random", row["start"]))
        else:
            base, other = (best_runs(folders, row, setup_of(written), start)[1] for start in ("random", row["start"]))
        slow, fast = ([[line["val_accuracy"] for line in run.history] for run in runs] for runs in (base, other))
        upto = int(row["spent"])
        means = [statistics.fmean(column) for column in zip(*fast)][:upto]
        goals = [curve[means.index(max(means))] for curve in fast]
        check_match(row, "", list(range(1, len(slow[0]) + 1)), slow, goals, log=False)


def test_examples_again(written, folders):
    rows = read_data(written, "examples")
    sizes = {"100": 100, "400": 400, "all": 1600}
    rest = [name for name in setup_of(written) if name != "examples"]
    for row in rows:

        def runs(start, n, row=row):
            return best_runs(folders, row | {"examples": n}, [*rest, "examples"], start)[1]

        mine = runs(row["start"], next(n for n, size in sizes.items() if size == int(row["examples"])))
        check_description(row, "test", mine)
        if row["start"] != "random":
            slow = [{run.seed: run.test for run in runs("random", n)} for n in sizes]
            seeds = set(slow[0]).intersection(*slow)
            curves = [[column[seed] for column in slow] for seed in seeds]
            check_match(row, "match.", list(sizes.values()), curves, [run.test for run in mine], log=True)
    assert len(rows) == (0 if "real" in str(written[0]) else 7)


def test_curves_rates_and_parts_again(written, folders):
    names = varied(written)
    for row in read_data(written, "curves"):
        mine, epoch = of(folders, row, names), int(row["epoch"]) - 1
        values = [run.history[epoch][f"{row['split']}_accuracy"] for run in mine]
        figures = {"mean": statistics.fmean(values), "low": min(values), "high": max(values),
                   "std": statistics.stdev(values)}  # fmt: skip
        for name, value in figures.items():
            same(row[name], value)
    assert read_data(written, "rates")
    for row in read_data(written, "rates"):
        every = [run for run in folders if run.start == row["start"] and run.like(row, names)]
        mine = [run for run in every if run.finished]
        ended = sum(run.finished or run.failed for run in every)
        same(row["val"], statistics.fmean(run.val for run in mine) if mine else None)
        same(row["lost"], 1 - sum(run.alive for run in mine) / ended if ended else None)
    for row in read_data(written, "parts"):
        mine = of(folders, row, names)
        rows = [part for run in mine for part in run.history[int(row["epoch"]) - 1]["parts"]]
        seen = [part for part in rows if part["name"] == row["part"]]
        same(row["gradient"], statistics.fmean(part["gradient"] for part in seen))
        same(row["cls"], None if row["part"] == "head" else statistics.fmean(part["cls"] for part in seen))


def test_variance_again(written, folders):
    rows = read_data(written, "variance")
    if "real" in str(written[0]):
        assert rows == []
        return
    by_seed = {run.seed: run.test for run in folders if "order" in run.seed}
    table = np.array([[by_seed[f"{a},order={b}"] for b in range(4)] for a in range(3)])
    noise = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    residual = (noise**2).sum() / 6
    expected = {"encoder and head and dropout": max(0, table.mean(axis=1).var(ddof=1) - residual / 4),
                "order": max(0, table.mean(axis=0).var(ddof=1) - residual / 3), "residual": residual}  # fmt: skip
    assert [row["factor"] for row in rows] == list(expected)
    for row in rows:
        same(row["variance"], expected[row["factor"]])
        same(row["share"], expected[row["factor"]] / sum(expected.values()))


def markdown_tables(text):
    """Title -> rows, each a dictionary of head -> cell."""
    found = {}
    for section in re.split(r"\n### ", text)[1:]:
        title, *lines = section.splitlines()
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
        found[title] = [dict(zip(rows[0], row)) for row in rows[2:]]
    return found


def test_the_tables_say_what_the_numbers_say(written):
    tables = markdown_tables((written[1] / "report.md").read_text())
    for title, name, columns in (
        ("Every start, under every condition", "settings",
         {"test": "test.mean", "val": "val.mean", "std": "test.std", "median": "test.median", "worst": "test.worst",
          "best": "test.best", "iqm": "test.iqm", "test, alive": "test.mean_alive", "constant": "majority.test"}),
        ("At matched settings, against random", "matched",
         {"difference": "test.difference", "difference, val": "val.difference", "P(better)": "improvement.probability",
          "errors": "error_ratio.ratio", "p": "sign_flip.p", "pairs": "n"}),
        ("Each start at its own best rate, against random", "chosen", {"val": "val.mean", "test": "test.mean"}),
    ):  # fmt: skip
        rows = read_data(written, name)
        assert len(tables[title]) == len(rows)
        for line, row in zip(tables[title], rows):
            assert line["start"] == row["start"]
            for head, column in columns.items():
                if row[column]:
                    digits = len(line[head].partition(".")[2])
                    assert float(line[head]) == pytest.approx(float(row[column]), abs=0.5001 * 10**-digits), head
                else:
                    assert line[head] in ("-", "cannot be told")
        if name == "matched":
            for line, row in zip(tables[title], rows):
                low, high = (float(end) for end in line["95 %"].split(" to "))
                assert (low, high) == pytest.approx(
                    (float(row["test.interval.low"]), float(row["test.interval.high"])), abs=0.00051
                )


def test_the_answer_is_made_of_the_tables_numbers(written):
    found = json.loads((written[1] / "findings.json").read_text())
    rows = [row for row in read_data(written, "best") if row["start"] == "pretrained"]
    row = max(
        rows,
        key=lambda row: (int(row["n"]), math.inf if row.get("examples") == "all" else int(row.get("examples") or 0)),
    )
    told = re.search(r"pretrained gave ([\d.]+) test accuracy and random ([\d.]+), .*?: ([+-][\d.]+)", found["answer"])
    expected = [float(row[f"test.{name}"]) for name in ("mean", "baseline", "difference")]
    assert [float(text) for text in told.groups()] == pytest.approx(expected, abs=0.00051)
    for name in ("report.html", "report.md"):
        assert found["answer"] in (written[1] / name).read_text().replace("&#39;", "'")


# The page


class Page(HTMLParser):
    """What a reader's machine would be told: tags, addresses, and which element is left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.addresses, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in ("meta", "link", "path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open and tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_one_page_with_nothing_from_elsewhere(written):
    text = (written[1] / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert all(address.startswith(("#", "data:,")) for address in page.addresses)
    assert "@import" not in text
    assert "@font-face" not in text
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert page.tags.count("svg") == len(list((written[1] / "figures").glob("*.svg"))) > 3
    assert text.count('role="img"') == page.tags.count("svg")


def test_the_checkpoints_files_are_written_as_a_list(tmp_path):
    page = reported(write_grid(tmp_path / "grid", two_starts()))
    line = f"- checkpoint, SHA-256: tiny {'c' * 64}, config.json {'d' * 64}"
    assert line in page.with_name("report.md").read_text(encoding="utf-8").splitlines()


def test_markdown_points_at_files_that_are_there(written):
    targets = re.findall(r"\]\(([^)]+)\)", (written[1] / "report.md").read_text())
    assert targets
    assert all((written[1] / target).is_file() for target in targets)
    for name in (path.stem for path in (written[1] / "figures").glob("*.svg")):
        assert f"figures/{name}.svg" in targets


def test_the_same_runs_give_the_same_bytes(written, tmp_path):
    again = reported(written[0], out=tmp_path / "again").parent
    files = sorted(path.relative_to(written[1]) for path in written[1].rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (again / file).read_bytes() == (written[1] / file).read_bytes(), file


def test_an_older_report_is_replaced_and_nothing_else_is(tmp_path):
    write_grid(tmp_path / "grid", two_starts(seeds=2, parts=True))
    page = reported(tmp_path / "grid")
    assert (page.parent / "figures" / "parts-1.svg").is_file()
    shutil.rmtree(tmp_path / "grid")
    write_grid(tmp_path / "grid", two_starts(seeds=2))
    reported(tmp_path / "grid", out=tmp_path / "other")
    assert not list((tmp_path / "other" / "figures").glob("parts*"))
    (tmp_path / "other" / "figures" / "parts-1.svg").write_text("old")
    reported(tmp_path / "grid", out=tmp_path / "other")
    assert not list((tmp_path / "other" / "figures").glob("parts*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something that is no report"):
        reported(tmp_path / "grid", out=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_what_a_user_names_is_text_and_no_markup(tmp_path):
    runs = [({"init": "<b>|x", "data": "a<i>.csv"}, {}), ({"init": "random", "data": "a<i>.csv"}, "bad | <u>")]
    text = reported(write_grid(tmp_path, runs)).read_text()
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<u>" not in text
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "&lt;b>\\|x" in markdown


@pytest.mark.parametrize(
    "runs",
    [
        two_starts(seeds=1),
        two_starts(gap=0, name="collapsed"),
        [({"seed": str(i), "init": init}, {"accuracy": 0.5, "noise": 1}) for i in range(3) for init in ("random", "x")],
        [({"init": "pretrained"}, None), ({"init": "random"}, "not finite")],
        [({"epochs": 1}, {})],
        [({"lr": lr}, None if lr > 1e-5 else {}) for lr in (1e-6, 1e-5, 1e-4)],
        [({"init": f"layers:{i}-{i}", "seed": str(s)}, {}) for i in range(20) for s in range(2)],
    ],
    ids=["one seed", "all collapsed", "all equal", "none finished", "one run", "a rate without runs", "20 starts"],
)
def test_pages_at_the_edges(tmp_path, runs):
    page = Page(reported(write_grid(tmp_path, runs, baseline=None)).read_text())
    assert page.open == []


def test_claims_have_a_section_where_there_are_any(tmp_path):
    grid = read_grid(write_grid(tmp_path, two_starts(seeds=1)))
    found = find(grid)
    assert "The notebook's claims" not in write_report(grid, found).read_text().replace("&#39;", "'")
    claim = {"claim": "pretrained beats random", "notebook": 0.688, "ours": None, "verdict": "cannot be told", "n": 1,
             "runs": ["run000", "run001"]}  # fmt: skip
    text = write_report(grid, found | {"claims": [claim]}).read_text()
    assert "The notebook&#39;s claims" in text
    assert "pretrained beats random" in text
    assert (tmp_path / "report" / "data" / "claims.csv").read_text().splitlines()[1].endswith("run000 run001")
    claim["claim"] = " ".join(20 * ["pretrained beats random"])  # longer than a line
    lines = terminal(found | {"claims": [claim]})
    assert "cannot be told (n 1): pretrained beats random" in lines[lines.index("The notebook's claims") + 1]
    assert " ".join(" ".join(lines).split()).count("pretrained beats random") == 20
    assert max(map(len, lines)) <= 80


# The command


def test_the_command_ends_with_the_answer_and_the_page(tmp_path, capsys):
    write_grid(tmp_path, two_starts())
    assert main(["report", str(tmp_path), "--baseline", "pretrained", "--out", str(tmp_path / "page")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"the page: {tmp_path / 'page' / 'report.html'}"
    assert "On motion, random gave" in "\n".join(lines)
    assert (tmp_path / "page" / "report.html").is_file()


def test_what_is_no_grid_is_one_line_and_exit_2(tmp_path):
    done = forked.run("-m", "minibert", "report", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "there is no grid.json" in done.stderr


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_the_extra_there_is_one_line(tmp_path, monkeypatch, package):
    grid = read_grid(write_grid(tmp_path, two_starts(seeds=1)))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install -e '.\[report\]'"):
        write_report(grid, find(grid))
    assert not (tmp_path / "report").exists()


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOOK = """<script>addEventListener("load", () => {
  const inside = (one, box) => one.left >= box.left - 1 && one.right <= box.right + 1 && one.top >= box.top - 1
    && one.bottom <= box.bottom + 1;
  const pictures = [...document.querySelectorAll("figure svg")];
  const boxes = pictures.map(svg => svg.getBoundingClientRect());
  const cut = pictures.flatMap((svg, i) => [...svg.querySelectorAll("text")].filter(
    text => !inside(text.getBoundingClientRect(), boxes[i])).map(text => text.textContent));
  const letters = pictures.flatMap(svg => [...svg.querySelectorAll("text")].map(
    text => parseFloat(getComputedStyle(text).fontSize) * svg.getScreenCTM().a));
  const overlap = pictures.flatMap(svg => { const all = [...svg.querySelectorAll("text")].map(
    text => [text.textContent, text.getBoundingClientRect()]);
    return all.flatMap(([a, x], i) => all.slice(i + 1).filter(([b, y]) => x.left < y.right - 1 && y.left < x.right - 1
      && x.top < y.bottom - 3 && y.top < x.bottom - 3).map(([b]) => a + " / " + b)); });
  parent.document.title = JSON.stringify({width: innerWidth, page: document.documentElement.scrollWidth,
    pictures: boxes.filter(box => box.width > 200 && box.height > 50).length, cut, overlap,
    letters: Math.min(...letters)});
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("width", [1200, 400])
def test_in_a_browser_nothing_is_cut_off(written, tmp_path, width):
    text = (written[1] / "report.html").read_text()
    assert "default-src 'none'" in text
    # In a frame, for a window has at least 500 pixels; and without the line that forbids all scripts.
    looked = re.sub(r"<meta http-equiv=[^\n]*\n", lambda _: LOOK + "\n", text, count=1)
    frame = f'<iframe style="border: 0" width={width} height=900 srcdoc="{html.escape(looked)}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><meta charset=utf-8><title></title>{frame}")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000",
               f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom"]  # fmt: skip
    for page in (written[1] / "report.html", tmp_path / "frame.html"):
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr
        assert "What this cannot show" in done.stdout
    seen = json.loads(html.unescape(re.search(r"<title>({.*?})</title>", done.stdout).group(1)))
    assert seen["width"] == width
    assert seen["page"] <= width
    assert seen["pictures"] == len(list((written[1] / "figures").glob("*.svg")))
    assert seen["cut"] == []
    assert seen["overlap"] == []
    assert seen["letters"] >= 7


HOSTILE = "$x$ $\\frac{<script>alert(1)</script>\x1b[2J\x9b]"


def test_what_comes_from_elsewhere_is_seen_and_never_obeyed(tmp_path):
    """By a terminal, a browser, a reader of Markdown, or matplotlib's mathematics."""
    runs = [({"init": HOSTILE, "seed": str(i), "data": HOSTILE}, {"accuracy": 0.7, "parts": True}) for i in range(3)]
    runs += [({"init": "random", "seed": str(i), "data": HOSTILE}, {}) for i in range(3)]
    write_grid(tmp_path, [*runs, ({"init": "random", "seed": "9"}, f"why {HOSTILE}\n")])
    content = json.loads((tmp_path / "grid.json").read_text())
    content |= {"question": f"{HOSTILE}\n# more", "commands": [f"```\n{HOSTILE}"]}
    (tmp_path / "grid.json").write_text(json.dumps(content))
    said = []
    tell(tmp_path, say=said.append)
    assert len(said) > 10
    texts = [*said, *(file.read_text(encoding="utf-8") for file in (tmp_path / "report").rglob("*") if file.is_file())]
    assert not any("\x1b" in text or "\x9b" in text for text in texts)
    pages = {file.suffix: file.read_text(encoding="utf-8") for file in (tmp_path / "report").glob("report.*")}
    assert "<script" not in pages[".html"]
    block = pages[".md"].partition("```sh\n")[2].partition("```")
    assert "<script" not in pages[".md"].replace(block[0], "")  # a command stands in a block of code,
    assert "\n# more" not in pages[".md"]
    assert block[0].count("\n") == 1  # and does not end it
    for picture in (tmp_path / "report" / "figures").iterdir():
        ElementTree.parse(picture)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "", "/etc", "a\\b"])
def test_a_run_is_in_its_grid(tmp_path, name):
    write_grid(tmp_path, two_starts(2))
    content = json.loads((tmp_path / "grid.json").read_text())
    content["runs"][name] = content["runs"]["run000"]
    (tmp_path / "grid.json").write_text(json.dumps(content))
    for read in (read_grid, ablate.read_grid):
        with pytest.raises(InputError, match="a run is called"):
            read(tmp_path)

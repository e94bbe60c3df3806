"""What a grid of runs says, as one dictionary that JSON can hold: no picture, no rounding, the same for the same runs.

A *start* is a value of `--init`. A *condition* is all other settings that vary over the grid, but for the seed. A
*setup* is a condition without rate and warmup, which are tuned: two tables compare starts, at matched conditions and
with each start at its own best rate. Rates are chosen on validation alone.

Intervals are [low, high]; an end of null is not bounded, and null in place of an interval: not to be told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import numpy as np

from minibert.config import TrainConfig
from minibert.errors import InputError
from minibert.lab.ablation import statistics
from minibert.lab.ablation.claims import claims
from minibert.lab.ablation.grid import shown
from minibert.lab.ablation.results import FAILED, SPLITS, STATES, Grid, Run
from minibert.lines import visible
from minibert.seeds import Seeds
from minibert.verdict import COLLAPSED

TUNED = ("lr", "warmup")
FACTORS = ("encoder", "head", "order", "dropout")  # of Seeds, without the split: it draws no run, it draws the data

Found = dict[str, Any]
Condition = tuple[tuple[str, Any], ...]  # (setting, value) of all that vary
Cells = dict[Condition, dict[str, list[Run]]]  # condition -> start -> its runs


def find(grid: Grid, baseline: str | None = None) -> Found:
    """
    Args:
        baseline: the start that others are compared with (None: the grid's own; else random, else the first).

    Raises:
        InputError: no run of the grid has that start.
    """
    starts = list(dict.fromkeys(run.start for run in grid.runs))
    if baseline is None:
        baseline = grid.baseline or ("random" if "random" in starts else starts[0])
    if baseline not in starts:
        raise InputError(f"--baseline {baseline}: the grid has {', '.join(starts)}")
    names = list(dict.fromkeys(key for run in grid.runs for key in run.settings if key not in ("init", "seed", "out")))
    values = {name: list(dict.fromkeys(setting(run, name) for run in grid.runs)) for name in names}
    varied = [name for name in names if len(values[name]) > 1]
    # What the head reads follows from start and head where it was left to them (random:deep takes the mean).
    kinds = {(run.start, setting(run, "head")) for run in grid.runs}
    if "pool" in varied and len({(run.start, setting(run, "head"), setting(run, "pool")) for run in grid.runs}) == len(
        kinds
    ):
        varied.remove("pool")
    cells = arranged(grid.runs, lambda run: tuple((name, setting(run, name)) for name in varied))
    setups = arranged(grid.runs, lambda run: tuple((name, setting(run, name)) for name in varied if name not in TUNED))

    others = [start for start in starts if start != baseline]
    matched = [comparison(condition, start, baseline, here.get(baseline, []), here.get(start, []))
               for condition, here in cells.items() for start in others if start in here]  # fmt: skip
    adjust(matched)
    chosen = {setup: {start: choose(runs) for start, runs in here.items()} for setup, here in setups.items()}
    tuned = any(pick["tried"] > 1 for here in chosen.values() for pick in here.values())
    best = [comparison(setup, start, baseline, here[baseline]["runs"] if baseline in here else [], here[start]["runs"])
            for setup, here in chosen.items() for start in others if start in here] if tuned else []  # fmt: skip
    adjust(best)

    counts = Counter(run.state for run in grid.runs)
    found: Found = {
        "format": 1,
        "data": ", ".join(PurePath(str(value)).stem for value in values.get("data", ["the data"])),
        "commands": list(grid.commands),
        "baseline": baseline,
        "starts": starts,
        "varied": varied,
        "fixed": {name: values[name][0] for name in names if len(values[name]) == 1},
        "counts": {"asked": len(grid.runs)} | {state: counts[state] for state in STATES},
        "runs": [one_run(run, varied) for run in grid.runs],
        "settings": [summary(condition, start, runs) for condition, here in cells.items()
                     for start, runs in here.items()],
        "matched": matched,
        "chosen": [choice(setup, start, pick) for setup, here in chosen.items()
                   for start, pick in here.items()] if tuned else [],
        "best": best,
        "examples": [row for rest, here in arranged(grid.runs, without_examples(varied)).items()
                     for row in examples_to_match(rest, here, baseline)] if "examples" in varied else [],
        "variance": [split for condition, here in cells.items() for start, runs in here.items()
                     if (split := variances(condition, start, runs)) is not None],
        "curves": [curve for condition, here in cells.items() for start, runs in here.items()
                   if (curve := curves(condition, start, runs)) is not None],
        "heatmaps": [heatmap(setup, start, runs) for setup, here in setups.items() for start, runs in here.items()]
                    if set(TUNED) & set(varied) else [],
        "parts": [part for condition, here in cells.items() for start, runs in here.items()
                  if (part := parts(condition, start, runs)) is not None],
        "about": about(grid),
    }  # fmt: skip
    found["question"] = grid.question or f"What are BERT's starting weights worth on {found['data']}?"
    if grid.claims:
        found["claims"] = claims([run for run in grid.runs if run.finished])
    found["answer"], found["notes"] = answer(found)
    found["limits"] = limits(found, grid)
    return printable(found)


def printable(value: Any) -> Any:
    """A copy whose texts can be seen whole: names come from data, and reach terminals, pages and pictures from here."""
    if isinstance(value, dict):
        return {printable(key): printable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(printable, value))
    return visible(value) if isinstance(value, str) else value


# How runs are sorted


def setting(run: Run, name: str) -> Any:
    return run.settings.get(name, getattr(TrainConfig, name, None))  # a setting that is newer than the run


def arranged(runs: Iterable[Run], key: Callable[[Run], Condition]) -> Cells:
    """In the grid's order."""
    cells: Cells = {}
    for run in runs:
        cells.setdefault(key(run), {}).setdefault(run.start, []).append(run)
    return cells


def without_examples(varied: Sequence[str]) -> Callable[[Run], Condition]:
    return lambda run: tuple((name, setting(run, name)) for name in varied if name not in (*TUNED, "examples"))


def label(condition: Condition | dict[str, Any]) -> str:
    """As a reader says it: lr 1e-06, warmup 0.1."""
    pairs = condition.items() if isinstance(condition, dict) else condition
    return ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in pairs)


def done(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if run.finished]


def collapsed(run: Run) -> bool:
    return run.verdict == COLLAPSED


def span(interval: statistics.Interval | None) -> list[float | None] | None:
    return None if interval is None else [interval.low, interval.high]


# One group of runs


def one_run(run: Run, varied: Sequence[str]) -> Found:
    known = run.finished
    return {
        "name": run.name, "start": run.start, "seed": run.seed,
        "condition": {name: setting(run, name) for name in varied},
        "state": run.state, "reason": run.reason,
        "val": run.accuracy("val") if known else None, "test": run.accuracy("test") if known else None,
        "verdict": run.verdict if known else None,
        "best_epoch": run.config["ended"].get("best_epoch") if known else None,
        "seconds": run.config["ended"]["seconds"] if known else None,
    }  # fmt: skip


def summary(condition: Condition, start: str, runs: Sequence[Run]) -> Found:
    """A start under a condition: n, mean and spread, with and without the collapsed, and what failed or is missing."""
    finished, states = done(runs), Counter(run.state for run in runs)
    alive = [not collapsed(run) for run in finished]
    row: Found = {"condition": dict(condition), "start": start, "asked": len(runs)}
    row |= {state: states[state] for state in STATES}
    for split in SPLITS:
        accuracies = [run.accuracy(split) for run in finished]
        row[split] = spread(accuracies, alive) if finished else None
    lost = alive.count(False) + states[FAILED]
    share = statistics.wilson(lost, len(finished) + states[FAILED])
    row["collapsed_or_failed"] = {"n": share.n, "count": lost, "share": share.share, "interval": span(share.interval)}
    row["majority"] = {split: finished[0].outcome[split]["majority"] if finished else None for split in SPLITS}
    return row


def spread(values: Sequence[float], alive: Sequence[bool]) -> Found:
    return jsonable(asdict(statistics.describe(values, alive)))


def jsonable(figures: Found) -> Found:
    """Intervals as [low, high]."""
    return {key: [value["low"], value["high"]] if isinstance(value, dict) and set(value) == {"low", "high"} else value
            for key, value in figures.items()}  # fmt: skip


# One start against another


def comparison(condition: Condition, start: str, baseline: str, base: Sequence[Run], other: Sequence[Run]) -> Found:
    """How much better `start` does than `baseline`: runs of the same seed in pairs; as two groups where none is.

    p is left out where so few pairs could not have reached 0.05 however they fell.
    """
    base, other = done(base), done(other)
    row: Found = {"condition": dict(condition), "start": start, "baseline": baseline, "n": 0, "paired": True,
                  "seeds": [], "left_out": 0, "val": None, "test": None, "sign_flip": None, "improvement": None,
                  "error_ratio": None, "epochs": []}  # fmt: skip
    if not base or not other:
        return row | {"left_out": len(base) + len(other)}
    row["epochs"] = epochs_to_match(base, other)
    left, right = ({run.seed: run for run in runs} for runs in (base, other))
    common = [seed for seed in right if seed in left]
    paired = bool(common)
    if paired:
        base, other = [left[seed] for seed in common], [right[seed] for seed in common]
    row |= {"n": len(common), "paired": paired, "seeds": common,
            "left_out": len(left) + len(right) - 2 * len(common) if paired else 0}  # fmt: skip
    row |= {split: difference(base, other, split, paired) for split in SPLITS}
    a, b = ([run.accuracy("test") for run in runs] for runs in (base, other))
    row["improvement"] = jsonable(asdict(statistics.probability_of_improvement(a, b)))
    if paired:
        differences = np.subtract(b, a)
        flip = statistics.sign_flip(differences)
        told = flip.smallest <= statistics.LEVEL
        row["sign_flip"] = {"above": int((differences > 0).sum()), "below": int((differences < 0).sum()),
                            "p": flip.p if told else None, "holm": None}  # fmt: skip
        row["error_ratio"] = jsonable(asdict(statistics.error_ratio(a, b)))
    return row


def difference(base: Sequence[Run], other: Sequence[Run], split: str, paired: bool) -> Found:
    """The means and their difference, with an interval over seeds and examples (groups, where there are).

    Where seeds have other examples each (`split=` in --seed), over seeds alone.
    """
    answers = [run.answers[split] for run in (*base, *other)]
    first = answers[0]
    a, b = (np.array([run.accuracy(split) for run in runs]) for runs in (base, other))
    row = {"baseline": statistics.describe(a).mean, "mean": statistics.describe(b).mean}
    if all(np.array_equal(one.rows, first.rows) for one in answers):
        tables = [np.array([run.answers[split].correct for run in runs], dtype=float) for runs in (base, other)]
        result = statistics.multi_bootstrap(*tables, groups=first.groups, paired=paired)
        groups = None if first.groups is None else len(set(first.groups))
        return row | {"difference": result.difference, "interval": span(result.interval),
                      "examples": len(first.rows), "groups": groups}  # fmt: skip
    interval = statistics.describe(b - a).interval if paired else None
    return row | {"difference": row["mean"] - row["baseline"], "interval": span(interval), "examples": None,
                  "groups": None}  # fmt: skip


def adjust(rows: Sequence[Found]) -> None:
    """Holm's correction over all comparisons of a table that have a p."""
    tested = [row["sign_flip"] for row in rows if row["sign_flip"] and row["sign_flip"]["p"] is not None]
    for flip, p in zip(tested, statistics.holm([flip["p"] for flip in tested])):
        flip["holm"] = p


# Each start at its own best rate


def choose(runs: Sequence[Run]) -> Found:
    """A start's rate and warmup with the best mean validation accuracy, of those that differ in nothing else.

    Collapsed runs are in the mean, failed ones count as 0. A rate of which fewer than half as many runs have ended as
    of the one with most is not looked at: one lucky run is no mean.
    """
    rates: dict[tuple[Any, Any], list[Run]] = {}
    for run in runs:
        rates.setdefault((setting(run, "lr"), setting(run, "warmup")), []).append(run)
    ended = {rate: sum(run.state == FAILED or run.finished for run in mine) for rate, mine in rates.items()}
    means = {rate: sum(run.accuracy("val") for run in done(mine)) / ended[rate]
             for rate, mine in rates.items() if done(mine)}  # fmt: skip
    enough = {rate: mean for rate, mean in means.items() if 2 * ended[rate] >= max(ended.values())} or means
    pick: Found = {"tried": len(rates), "rate": None, "runs": [], "edge": None, "means": means}
    if enough:
        rate = max(enough, key=enough.__getitem__)  # of equal ones, the first
        tried = sorted({lr for lr, _ in rates})
        edge = {tried[0]: "lowest", tried[-1]: "highest"}.get(rate[0]) if len(tried) > 1 else None
        pick |= {"rate": rate, "runs": rates[rate], "edge": edge}
    return pick


def choice(setup: Condition, start: str, pick: Found) -> Found:
    """The row of `choose`, with the best mean that k rates, drawn from those tried, would have given."""
    means = list(pick["means"].values())
    lr, warmup = pick["rate"] or (None, None)
    runs = done(pick["runs"])
    return {
        "condition": dict(setup), "start": start, "tried": pick["tried"], "lr": lr, "warmup": warmup,
        "edge": pick["edge"], "finished": len(runs),
        "val": spread([run.accuracy("val") for run in runs], [not collapsed(run) for run in runs]) if runs else None,
        "test": spread([run.accuracy("test") for run in runs], [not collapsed(run) for run in runs]) if runs else None,
        "expected_best": [statistics.expected_best(means, k) for k in range(1, len(means) + 1)],
    }  # fmt: skip


# What it is worth


def learning_curve(runs: Sequence[Run], key: str = "val_accuracy") -> np.ndarray:
    """(runs, epochs). A run that stopped early stays where it was."""
    longest = max(len(run.history) for run in runs)
    return np.array([[row[key] for row in run.history] + [run.history[-1][key]] * (longest - len(run.history))
                     for run in runs], dtype=float)  # fmt: skip


def match(x: Sequence[float], curve: np.ndarray, target: Sequence[float], spent: float, log: bool) -> Found:
    result = asdict(statistics.steps_to_match(x, curve, target, log=log, spent=spent))
    return {"spent": spent, "target": statistics.describe(target).mean, "budget": x[-1], "first": x[0]} | jsonable(
        result
    )


def epochs_to_match(base: Sequence[Run], other: Sequence[Run]) -> list[Found]:
    """How many epochs the baseline needs for what the other start has after 1, half and all of its own.

    Both sides keep what their mean curve has reached.
    """
    slow, fast = learning_curve(base), learning_curve(other)
    mean = fast.mean(axis=0)
    last = len(mean)
    ks = sorted({1, math.ceil(last / 2), last})
    x = np.arange(1, slow.shape[1] + 1).tolist()
    return [match(x, slow, fast[:, mean[:k].argmax()].tolist(), k, log=False) for k in ks]


def train_size(runs: Sequence[Run]) -> int | None:
    """How many training examples these runs had."""
    for run in done(runs):
        size = (run.config.get("dataset", {}).get("sizes") or {}).get("train")
        return size or round(run.history[0]["examples_per_second"] * run.history[0]["seconds"])
    return None


def examples_to_match(rest: Condition, here: dict[str, list[Run]], baseline: str) -> list[Found]:
    """How many labelled examples the baseline needs for what each start reaches with each number of them.

    Each start at its best rate for that number. Of the baseline, the seeds that have all numbers count.
    """
    sized: dict[str, dict[int, list[Run]]] = {}
    for start, runs in here.items():
        by_size = arranged(runs, lambda run: (("examples", setting(run, "examples")),))
        picks = [done(choose(mine[start])["runs"]) for mine in by_size.values()]
        sized[start] = dict(sorted((train_size(mine), mine) for mine in picks if mine))
    slow = sized.get(baseline, {})
    if len(slow) < 2:
        return []
    tables = [{run.seed: run.accuracy("test") for run in runs} for runs in slow.values()]
    seeds = [seed for seed in tables[0] if all(seed in table for table in tables)]
    curve = np.array([[table[seed] for table in tables] for seed in seeds])
    rows = []
    for start, sizes in sized.items():
        for size, runs in sizes.items():
            accuracies = [run.accuracy("test") for run in runs]
            row = {"condition": dict(rest), "start": start, "baseline": baseline, "examples": size,
                   "test": spread(accuracies, [not collapsed(run) for run in runs]), "match": None}  # fmt: skip
            if start != baseline and seeds:
                row["match"] = match(list(slow), curve, accuracies, size, log=True)
            rows.append(row)
    return rows


# Where the spread comes from


def variances(condition: Condition, start: str, runs: Sequence[Run]) -> Found | None:
    """The spread of test accuracy split by seed, where seeds were set apart; seeds that moved together are one."""
    finished = done(runs)
    seeds = [Seeds.parse(run.seed) for run in finished]
    levels = {name: tuple(getattr(seed, name) for seed in seeds) for name in FACTORS}
    if len(set(levels.values())) < 2:
        return None
    together: dict[tuple[int, ...], list[str]] = {}
    for name, column in levels.items():
        together.setdefault(column, []).append(name)
    factors = {" and ".join(names): column for column, names in together.items()}
    row: Found = {"condition": dict(condition), "start": start, "n": len(finished), "reason": None}
    try:
        return row | asdict(statistics.variance_shares([run.accuracy("test") for run in finished], factors))
    except ValueError as error:
        return row | {"variance": {}, "share": {}, "reason": str(error)}


# What is drawn


def curves(condition: Condition, start: str, runs: Sequence[Run]) -> Found | None:
    """Accuracy over epochs, mean and spread over the seeds."""
    finished = done(runs)
    if not finished:
        return None
    row: Found = {"condition": dict(condition), "start": start, "n": len(finished)}
    row["majority"] = finished[0].outcome["val"]["majority"]
    for split in ("train", "val"):
        table = learning_curve(finished, f"{split}_accuracy")
        row["epochs"] = list(range(1, table.shape[1] + 1))
        row[split] = {"mean": table.mean(axis=0).tolist(), "low": table.min(axis=0).tolist(),
                      "high": table.max(axis=0).tolist(),
                      "std": table.std(axis=0, ddof=1).tolist() if len(table) > 1 else None}  # fmt: skip
    return row


def heatmap(setup: Condition, start: str, runs: Sequence[Run]) -> Found:
    """Validation accuracy and share collapsed or failed over rate and warmup. None: no such run."""
    lrs, warmups = (sorted({setting(run, name) for run in runs}) for name in TUNED)
    row: Found = {"condition": dict(setup), "start": start, "lr": lrs, "warmup": warmups, "val": [], "lost": []}
    for warmup in warmups:
        level = [run for run in runs if setting(run, "warmup") == warmup]
        cells = [summary((), start, [run for run in level if setting(run, "lr") == lr]) for lr in lrs]
        row["val"].append([cell["val"] and cell["val"]["mean"] for cell in cells])
        row["lost"].append([cell["collapsed_or_failed"]["share"] for cell in cells])
    return row


def parts(condition: Condition, start: str, runs: Sequence[Run]) -> Found | None:
    """Each part's gradient norm and the cosine between [CLS] of different inputs, over epochs: means over the seeds."""
    seen: dict[str, dict[int, list[tuple[float | None, float | None]]]] = {}
    for run in done(runs):
        for row in run.history:
            for part in row.get("parts") or ():
                figures = (finite(part.get("gradient")), finite(part.get("cls")))
                seen.setdefault(part["name"], {}).setdefault(row["epoch"], []).append(figures)
    if not seen:
        return None
    epochs = sorted({epoch for mine in seen.values() for epoch in mine})
    tables = [[[mean_of(pair[i] for pair in mine.get(epoch, ())) for epoch in epochs] for mine in seen.values()]
              for i in range(2)]  # fmt: skip
    return {"condition": dict(condition), "start": start, "epochs": epochs, "names": list(seen),
            "gradient": tables[0], "cls": tables[1]}  # fmt: skip


def finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# In words


def hashes(checkpoint: Found) -> str:
    """A checkpoint's name, and what it and the files beside it are told by."""
    files = checkpoint.get("files") or {}
    own = " ".join(str(value) for key, value in checkpoint.items() if key != "files" and value)
    return ", ".join([own, *(f"{name} {digest}" for name, digest in files.items())])


def about(grid: Grid) -> Found:
    """By what the finished runs were made. Each value once, in the order of its first run."""
    finished = done(grid.runs)

    def each(get: Callable[[Found], Any]) -> list[Any]:
        return list(dict.fromkeys(value for run in finished if (value := get(run.config)) is not None))

    seconds = [run.config["ended"]["seconds"] for run in finished]
    versions = sorted({name for run in finished for name in run.config.get("versions", {})})
    return {
        "data": grid.data,
        "checkpoints": each(lambda config: hashes(config.get("checkpoint", {}))),
        "summaries": each(lambda config: config.get("dataset", {}).get("summary")),
        "devices": each(lambda config: config.get("device")),
        "precisions": each(lambda config: config.get("precision")),
        "versions": {name: each(lambda config: config.get("versions", {}).get(name)) for name in versions},  # noqa: B023
        "commits": each(lambda config: config.get("git_commit")),
        "seconds": {"sum": sum(seconds), "mean": mean_of(seconds), "longest": max(seconds, default=None)},
    }


def signed(value: float) -> str:
    return f"{value:+.3f}"


def of_interval(interval: Sequence[float | None], form: Callable[[float], str]) -> str:
    low, high = ("?" if end is None else form(end) for end in interval)
    return f"{low} to {high}"


def answer(found: Found) -> tuple[str, list[str]]:
    """One or two sentences for the comparison with most pairs, of these with most training examples, and what a reader
    must know beside them.

    Of the starts, pretrained, which the question is about, else the first; at the best rates where several were tried.
    """
    counts, baseline = found["counts"], found["baseline"]
    notes = []
    if counts["finished"] < counts["asked"]:
        rest = ", ".join(f"{counts[state]} {state}" for state in STATES[1:] if counts[state])
        notes.append(f"{counts['finished']} of {counts['asked']} runs finished, {rest}; the same command again does"
                     " the rest.")  # fmt: skip
    if not counts["finished"]:
        return "No run has finished: there is no answer yet.", notes
    if edge := list(dict.fromkeys(row["start"] for row in found["chosen"] if row["edge"])):
        notes.append(f"At the edge of the rates tried, so that a better one may lie beyond: {', '.join(edge)}.")
    if len(found["starts"]) == 1:
        row = max((row for row in found["settings"] if row["test"]), key=lambda row: row["test"]["n"])
        return f"{where(found, row)}{row['start']} gave {alone(row['test'])}; no other start to compare with.", notes
    rows = [row for row in found["best"] or found["matched"] if row["test"]]
    if not rows:
        return f"{baseline} and another start have no finished runs to compare: there is no answer yet.", notes
    main = "pretrained" if any(row["start"] == "pretrained" for row in rows) else rows[0]["start"]
    row = max((row for row in rows if row["start"] == main), key=lambda row: (row["n"], asked_examples(row)))
    sentences = [headline(found, row), *units(found, row)]
    if all(run["verdict"] in (None, COLLAPSED) for run in found["runs"]):
        sentences.append("Every run collapsed to one answer, so this says nothing of the starts.")
    return " ".join(sentences), notes


def asked_examples(row: Found) -> float:
    """What --examples asked for; all, also where it does not vary, is more than any number."""
    asked = row["condition"].get("examples", "all")
    return math.inf if asked == "all" else int(asked)


def where(found: Found, row: Found) -> str:
    named = label(row["condition"])
    return f"On {found['data']}{f' ({named})' if named else ''}, "


def alone(figures: Found) -> str:
    if figures["std"] is None:
        return f"{figures['mean']:.3f} test accuracy (one seed: no spread can be told)"
    return f"{figures['mean']:.3f} test accuracy (standard deviation {figures['std']:.3f}, {figures['n']} seeds)"


def headline(found: Found, row: Found) -> str:
    test, n = row["test"], row["n"]
    rated = ", each at its best rate" if found["best"] else ""
    text = (f"{where(found, row)}{row['start']} gave {test['mean']:.3f} test accuracy and {row['baseline']}"
            f" {test['baseline']:.3f}{rated}: {signed(test['difference'])}")  # fmt: skip
    examples = "other examples for each seed" if test["examples"] is None else f"{test['examples']:,} examples"
    groups = f" of {test['groups']} groups" if test["groups"] else ""
    if not row["paired"]:
        if test["interval"] is None:
            return f"{text} (no seed in common, and too few runs to tell a spread)."
        return f"{text}, 95 % interval {of_interval(test['interval'], signed)} (no seed in common; {examples}{groups})."
    if n == 1:
        return f"{text} (one seed: no spread can be told, nor whether this is chance; {examples}{groups})."
    flip = row["sign_flip"]
    if not flip["above"] and not flip["below"]:
        return f"{text} (all {n} paired seeds the same on {examples}{groups}, which does not prove the starts equal)."
    side = max(flip["above"], flip["below"])
    sides = f"all {n} seeds on one side" if side == n else f"{flip['above']} of {n} seeds above"
    if flip["p"] is not None:
        chance = f"sign-flip p = {flip['p']:.2g}"
        if flip["holm"] != flip["p"]:
            chance += f", {flip['holm']:.2g} among all comparisons"
    else:
        chance = f"{n} seeds are too few for a test" if not statistics.can_reach(n) else "too many ties for a test"
    interval = test["interval"]
    if interval is None:
        between = ""
    else:
        between = f", 95 % interval {of_interval(interval, signed)}"
        if interval[0] <= 0 <= interval[1]:
            between += ", which holds 0: the two cannot be told apart"
    return f"{text}{between} ({n} paired seeds, {examples}{groups}; {sides}, {chance})."


def units(found: Found, row: Found) -> list[str]:
    """In epochs, and in examples where those vary. Nothing where the start is not ahead."""
    start, baseline, sentences = row["start"], row["baseline"], []
    if row["test"]["difference"] <= 0:
        return []
    first = row["epochs"][0]
    if first["budget"] > 1:
        sentences.append(f"{baseline} needs {needs(first, 'epoch')} for what {start} has after 1.")
    mine = [other for other in found["examples"] if other["start"] == start and other["match"]]
    if mine:
        sentences.append(f"{baseline} needs {needs(mine[0]['match'], 'example')} for what {start} reaches with"
                         f" {mine[0]['examples']:,}.")  # fmt: skip
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def needs(result: Found, unit: str) -> str:
    """3.2 epochs (1.5 to more than 5), or: more than 5 epochs."""
    form: Callable[[float], str] = (lambda x: f"{x:.1f}") if unit == "epoch" else (lambda x: f"{x:,.0f}")
    budget = f"{result['budget']:,}"
    at, interval = result["at"], result["interval"]
    if at is None:
        return f"more than {budget} {unit}s"
    number = f"{result['first']:,} or fewer" if at == result["first"] else form(at)
    between = ""
    if interval is not None:
        ends = [f"more than {budget}" if end is None else form(end) for end in interval]
        between = f" ({ends[0]} to {ends[1]})" if ends[0] != ends[1] else ""
    return f"{number} {unit}s{between}"


def limits(found: Found, grid: Grid) -> list[str]:
    """What these runs cannot show."""
    rows = [row for row in (*found["matched"], *found["best"]) if row["test"]]
    lines = []
    pairs = min((row["n"] for row in rows if row["paired"]), default=0)
    if rows and not statistics.can_reach(pairs):
        lines.append(f"Chance: with {pairs} paired seeds no test can reach p = 0.05; 6 is the least that can.")
    groups = {row["test"]["groups"] for row in rows} - {None}
    if groups:
        lines.append(f"Other people: the test examples come from {min(groups)} groups, and the intervals are as wide as"
                     " so few make them.")  # fmt: skip
    if not found["best"]:
        lines.append("Other rates: one was tried. Each start has a best rate of its own, and this one may suit a side.")
    lines.append("Other data, models, checkpoints and budgets: the seeds vary what one checkpoint becomes on one task,"
                 " and the intervals hold for other seeds and examples of it alone.")  # fmt: skip
    lines.append("The last digits: each run's best epoch was chosen on validation, so its validation accuracy is a"
                 " little too high; test was read once.")  # fmt: skip
    if found["counts"][FAILED]:
        lines.append("What failed runs would have given: they are in no mean, only in the share collapsed or failed.")
    return lines

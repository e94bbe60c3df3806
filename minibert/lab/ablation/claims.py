"""The notebook's six claims (docs/notebook.md), each judged on the runs that test it.

The rules were fixed before any run was made for them. Two kinds of evidence count. A difference is taken between runs
that match in all other settings, over all such pairs, and needs an exact sign-flip test at 0.05: with fewer than 6
pairs it cannot be told. That a run sticks at one class or learns is a verdict on each run, and runs are counted.

What a verdict cannot say: pairs that share a seed share starting weights, so that with few seeds it is about these
seeds; and all runs are scored on the same people. Budgets may have been scaled, so that no rule asks for a number of
epochs, only which of two budgets is the longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, Protocol

from minibert.config import TrainConfig
from minibert.lab.ablation.statistics import LEVEL, can_reach, sign_flip

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told"

FEWEST = 2  # runs that must agree before a count says anything
SHRINK = 1.1  # factor by which a ratio of errors may fall and yet count as the same
RISE = 1.1  # validation loss at the end over its lowest, from which a run overfits
FITTED = 0.95  # training accuracy below which a run had no chance to overfit

# The notebook's inputs: encoding and channels
ALL, GRID = ("levels", "all"), ("grid", "acc")


class Run(Protocol):
    """A finished run.

    Attributes:
        settings: TrainConfig's fields; history: the rows of metrics.jsonl.
        val_accuracy: of the best epoch; verdict: of the last.
    """

    settings: dict[str, Any]
    history: list[dict[str, Any]]
    test_accuracy: float
    val_accuracy: float
    verdict: str
    failed: bool


@dataclass(frozen=True)
class Part:
    """One of the things that a claim says, and what the runs say to it."""

    verdict: str
    ours: str
    why: str
    runs: Sequence[Run]


def claims(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Each claim as `claim`, `notebook` and `ours` (figures in words), `verdict`, `n` (runs used), `why`.

    Runs that failed, and starts other than pretrained and random, are left out.
    """
    usable = [run for run in runs if not run.failed and run.settings["init"] in ("pretrained", "random")]
    rows = []
    for claim, notebook, judge in CLAIMS:
        parts = judge(usable)
        rows.append(
            {
                "claim": claim,
                "notebook": notebook,
                "ours": "; ".join(part.ours for part in parts),
                "verdict": together(parts),
                "n": len({id(run) for part in parts for run in part.runs}),
                "why": "; ".join(part.why for part in parts),
            }
        )
    return rows


def together(parts: Sequence[Part]) -> str:
    """A claim holds where all of it does, and does not where any part does not."""
    verdicts = {part.verdict for part in parts}
    return FAILS if FAILS in verdicts else UNTOLD if UNTOLD in verdicts else HOLDS


def difference(differences: Sequence[float]) -> tuple[str, str]:
    """Whether paired differences are above 0: the verdict, and why."""
    n = len(differences)
    if not can_reach(n):
        return UNTOLD, f"{n} matched differences, fewer than 6"
    test = sign_flip(differences)
    verdict = UNTOLD if test.p > LEVEL else HOLDS if test.mean > 0 else FAILS
    return verdict, f"mean {test.mean:+.3f} over {n} matched differences, sign-flip p {test.p:.2g}"


def count(yes: int, no: int, n: int) -> str:
    """Whether n runs went as claimed: `yes` did, `no` went the other way, the rest neither.

    Holds: more than half did, at least `FEWEST`, and none went the other way. Does not: at least half went the other
    way, and at least `FEWEST`.
    """
    if no >= max(FEWEST, n / 2):
        return FAILS
    return HOLDS if no == 0 and yes >= FEWEST and yes > n / 2 else UNTOLD


def count_verdicts(runs: Sequence[Run], wanted: str, other: str, which: str) -> Part:
    yes, no = (sum(run.verdict == name for run in runs) for name in (wanted, other))
    ours = f"{which}: {yes} of {len(runs)} {wanted}, {no} {other}"
    return Part(count(yes, no, len(runs)), ours, f"{which}: counted over {len(runs)} runs", runs)


def matched(runs: Iterable[Run], *but: str) -> list[list[Run]]:
    """The runs in groups that are alike in all settings but these (and the folder)."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        key = sorted((name, repr(value)) for name, value in run.settings.items() if name not in (*but, "out"))
        groups.setdefault(tuple(key), []).append(run)
    return list(groups.values())


def by(runs: Iterable[Run], name: str) -> dict[Any, Run]:
    return {run.settings[name]: run for run in runs}


def inputs(run: Run) -> tuple[str, str]:
    """Encoding and channels, the default spelled out."""
    return run.settings["encoding"], run.settings["channels"] or "acc"


def usual(runs: Iterable[Run], on: tuple[str, str] | None = None) -> list[Run]:
    """Those on these inputs (None: on any), without what the notebook only planned."""
    changed = ("dropout", "grid_cells")
    found = [run for run in runs if all(run.settings[name] == getattr(TrainConfig, name) for name in changed)]
    return [run for run in found if on in (None, inputs(run))]


def mean(values: Iterable[float]) -> str:
    """Three digits, or a dash where there is nothing."""
    values = list(values)
    return f"{fmean(values):.3f}" if values else "-"


def budget(runs: Sequence[Run]) -> list[Part]:
    """Claim 1. Runs: all channels, lr 1e-6, warmup 0.1; pairs match in all but the start.

    Higher: the difference of test accuracies, pretrained - random, is above 0.
    Shrinks: in each series of budgets the difference at the i-th shortest budget is above that at the i-th of the
    longer half (of an odd number the middle one is left out).
    Ratio: random's errors for each of pretrained's, compared in the same way, fall by a factor below `SHRINK`; that
    they do not fall at all no test could show. Pairs in which a start makes no error are left out.
    """
    chosen = [r for r in usual(runs, ALL) if (r.settings["lr"], r.settings["warmup"]) == (1e-6, 0.1)]
    pairs = [found for found in (by(group, "init") for group in matched(chosen, "init")) if len(found) == 2]
    gain = {id(p["random"]): p["pretrained"].test_accuracy - p["random"].test_accuracy for p in pairs}
    log_ratio = {
        id(p["random"]): math.log((1 - p["random"].test_accuracy) / (1 - p["pretrained"].test_accuracy))
        for p in pairs
        if max(p["random"].test_accuracy, p["pretrained"].test_accuracy) < 1
    }
    shrinks, falls = [], []
    for series in matched((p["random"] for p in pairs), "epochs"):
        ordered = [id(run) for run in sorted(series, key=lambda run: run.settings["epochs"])]
        half = len(ordered) // 2
        for short, long in zip(ordered[:half], ordered[-half:] if half else []):
            shrinks.append(gain[short] - gain[long])
            if short in log_ratio and long in log_ratio:
                falls.append(log_ratio[short] - log_ratio[long])
    used = [run for p in pairs for run in p.values()]
    figures = []
    for epochs in sorted({run.settings["epochs"] for run in used}):
        both = [
            [r.test_accuracy for r in used if (r.settings["init"], r.settings["epochs"]) == (init, epochs)]
            for init in ("pretrained", "random")
        ]
        figures.append(f"{mean(both[0])} / {mean(both[1])} ({epochs} epochs, {len(both[0])} seeds)")
    higher, why = difference(list(gain.values()))
    shrink, why_shrink = difference(shrinks)
    stays, why_stays = difference([math.log(SHRINK) - fall for fall in falls])
    factor = mean([math.exp(fmean(falls))] if falls else [])
    return [
        Part(higher, f"test accuracy {', '.join(figures) or '-'}", f"pretrained over random: {why}", used),
        Part(shrink, f"the difference shrinks by {mean(shrinks)}", f"shrinking: {why_shrink}", used),
        Part(stays, f"the ratio of errors falls by a factor of {factor}", f"ratio staying: {why_stays}", used),
    ]


def sticking(runs: Sequence[Run]) -> list[Part]:
    """Claim 2. Runs: all channels, any warmup, any budget, by start and rate.

    Random at 1e-5 and 1e-4 and pretrained at 1e-4 are to be collapsed at their end, random at 1e-6 learning (see
    `count`). A run that is neither, such as one that has not moved yet, speaks for neither side.
    """
    parts = []
    for init, lr, wanted, other in (
        ("random", 1e-5, "collapsed", "learning"), ("random", 1e-4, "collapsed", "learning"),
        ("random", 1e-6, "learning", "collapsed"), ("pretrained", 1e-4, "collapsed", "learning"),
    ):  # fmt: skip
        cell = [run for run in usual(runs, ALL) if (run.settings["init"], run.settings["lr"]) == (init, lr)]
        parts.append(count_verdicts(cell, wanted, other, f"{init} at {lr:g}"))
    return parts


def short_budget(runs: Sequence[Run]) -> list[Part]:
    """Claim 3. Runs: all channels, in groups that match in all but start and rate, where pretrained ran at 1e-5 and
    1e-6; at 1e-5 the notebook has short budgets alone.

    The difference of validation accuracies, pretrained at 1e-5 - the best of the others in its group, is above 0.
    """
    used, best, others = [], [], []
    for group in matched(usual(runs, ALL), "init", "lr"):
        found = {(run.settings["init"], run.settings["lr"]): run for run in group}
        if {("pretrained", 1e-5), ("pretrained", 1e-6)} <= set(found):
            used += group
            best.append(found.pop(("pretrained", 1e-5)).val_accuracy)
            others.append(max(run.val_accuracy for run in found.values()))
    verdict, why = difference([a - b for a, b in zip(best, others)])
    ours = f"validation accuracy {mean(best)}, the best other start and rate {mean(others)} (n {len(best)})"
    return [Part(verdict, ours, why, used)]


def other_inputs(runs: Sequence[Run]) -> list[Part]:
    """Claim 4.

    Matter more: in each group that matches in all but start and inputs, the mean distance of test accuracies between
    two inputs (same start) less that between the two starts (same inputs) is above 0. Collapsed runs are left out: of
    those speaks claim 2.
    Overfits: at 1e-5 on grid cells, in the longer half of the budgets, the validation loss ends `RISE` times above its
    lowest, while the training loss goes on falling. Where it does not, that counts against the claim only if the
    training data are fitted to `FITTED`.
    Random learns: at 1e-5 on grid cells, by its verdict.
    """
    used, between_inputs, between_starts = [], [], []
    alive = [run for run in usual(runs) if run.verdict != "collapsed"]
    for group in matched(alive, "init", "channels", "encoding"):
        found = {(run.settings["init"], inputs(run)): run.test_accuracy for run in group}
        of_inputs = [abs(x - y) for (a, x), (b, y) in combinations(found.items(), 2) if a[0] == b[0]]
        of_starts = [abs(x - y) for (a, x), (b, y) in combinations(found.items(), 2) if a[1] == b[1]]
        if of_inputs and of_starts:
            used += group
            between_inputs.append(fmean(of_inputs))
            between_starts.append(fmean(of_starts))
    verdict, why = difference([a - b for a, b in zip(between_inputs, between_starts)])
    on_grid = [run for run in usual(runs, GRID) if run.settings["lr"] == 1e-5]
    budgets = sorted({run.settings["epochs"] for run in on_grid})
    long = [run for run in on_grid if run.settings["epochs"] >= budgets[len(budgets) // 2]]
    yes = [run for run in long if overfits(run)]
    no = [run for run in long if not overfits(run) and run.history[-1]["train_accuracy"] >= FITTED]
    return [
        Part(
            verdict,
            f"test accuracies {mean(between_inputs)} apart between inputs, {mean(between_starts)} between starts"
            f" (n {len(between_inputs)})",
            f"inputs over starts: {why}",
            used,
        ),
        Part(
            count(len(yes), len(no), len(long)),
            f"{len(yes)} of {len(long)} overfit on grid cells, {len(no)} fit without",
            f"overfitting: counted over {len(long)} runs",
            long,
        ),
        count_verdicts(
            [run for run in on_grid if run.settings["init"] == "random"],
            "learning", "collapsed", "random on grid cells at 1e-05",
        ),
    ]  # fmt: skip


def overfits(run: Run) -> bool:
    """Whether the validation loss ends well above its lowest, and the training loss fell on meanwhile."""
    lowest, last = min(run.history, key=lambda row: row["val_loss"]), run.history[-1]
    return last["val_loss"] >= RISE * lowest["val_loss"] and last["train_loss"] < lowest["train_loss"]


def planned(runs: Sequence[Run]) -> list[Part]:
    """Claim 5, which the notebook planned to test. Runs: grid cells; pairs match in all but the one setting.

    The difference of test accuracies, with - without, is above 0: once for dropout 0.6 and once for 100,000 cells.
    """
    on_grid, parts = [run for run in runs if inputs(run) == GRID], []
    for name, value, words in (("dropout", "0.6", "dropout 0.6"), ("grid_cells", 100_000, "100,000 cells")):
        usually = getattr(TrainConfig, name)
        groups = [by(group, name) for group in matched(on_grid, name)]
        pairs = [(found[value], found[usually]) for found in groups if {value, usually} <= set(found)]
        verdict, why = difference([a.test_accuracy - b.test_accuracy for a, b in pairs])
        there, without = (mean(run.test_accuracy for run in side) for side in (zip(*pairs) if pairs else ((), ())))
        ours = f"test accuracy {there} with {words}, {without} without (n {len(pairs)})"
        parts.append(Part(verdict, ours, f"{words}: {why}", [run for pair in pairs for run in pair]))
    return parts


def own_rates(runs: Sequence[Run]) -> list[Part]:
    """Claim 6. Runs: all channels, in groups that match in all but start, rate and seed.

    Of the rates that both starts ran at, at least two, each start takes the one with the best mean validation accuracy,
    over the seeds that have all of them. The difference of test accuracies there, pretrained - random seed by seed, is
    above 0.
    """
    starts, used, differences, figures = ("pretrained", "random"), [], [], []
    for group in matched(usual(runs, ALL), "init", "lr", "seed"):
        found = {tuple(run.settings[name] for name in ("init", "lr", "seed")): run for run in group}
        rates, seeds = (sorted({key[place] for key in found}) for place in (1, 2))
        rates = [lr for lr in rates if all(any((init, lr, seed) in found for seed in seeds) for init in starts)]
        seeds = [seed for seed in seeds if all((init, lr, seed) in found for init in starts for lr in rates)]
        if len(rates) < 2 or not seeds:
            continue
        best = {
            init: max(rates, key=lambda lr, init=init: fmean(found[init, lr, seed].val_accuracy for seed in seeds))
            for init in starts
        }
        tests = {init: [found[init, lr, seed].test_accuracy for seed in seeds] for init, lr in best.items()}
        differences += [a - b for a, b in zip(tests["pretrained"], tests["random"])]
        used += [found[init, lr, seed] for init in starts for lr in rates for seed in seeds]
        figures.append(
            f"{mean(tests['pretrained'])} at {best['pretrained']:g} / {mean(tests['random'])} at {best['random']:g}"
            f" ({len(seeds)} seeds)"
        )
    verdict, why = difference(differences)
    return [Part(verdict, f"test accuracy {', '.join(figures) or '-'}", why, used)]


# (claim, the notebook's figures, its rule)
CLAIMS: tuple[tuple[str, str, Callable[[Sequence[Run]], list[Part]]], ...] = (
    (
        "Pretrained beats random at the same budget; the difference shrinks as the budget grows, the ratio of the"
        " errors does not.",
        "test accuracy 0.591 / 0.473 (5 epochs), 0.688 / 0.607 (10), 0.916 / 0.858 (70), 0.924 / 0.891 (100)",
        budget,
    ),
    (
        "Random sticks at one class at 1e-5 and 1e-4, whatever the warmup, and learns at 1e-6; pretrained sticks at"
        " 1e-4 as well.",
        "at 1e-5 stuck with warmup 0, 0.2 and 0.8 (the run with 0.4 is invalid); at 1e-6 it learns in all runs",
        sticking,
    ),
    (
        "Pretrained at 1e-5 is the best use of a short budget.",
        "validation accuracy 0.926 in 10 epochs",
        short_budget,
    ),
    (
        "Inputs matter more than the start; on grid cells alone 1e-5 overfits, and random does learn there.",
        "test accuracy 0.953 with five or three channels, 0.70 to 0.72 with grid cells; validation loss from 0.4 to"
        " 1.1; random 0.646",
        other_inputs,
    ),
    (
        "Dropout 0.6, and 100,000 grid cells, help on grid cells.",
        "planned, never run",
        planned,
    ),
    (
        "Pretrained beats random also where each start has its own best rate.",
        "compared at one shared rate alone",
        own_rates,
    ),
)  # fmt: skip

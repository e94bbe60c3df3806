"""Tests of lesson 4: your statistics beside minibert's, on numbers where mistakes show."""

import math
from itertools import product

import pytest
from checks import need, same

from minibert.lab.ablation import statistics as ours

SIX = [0.11, 0.04, -0.01, 0.16, 0.08, 0.12]


def test_paired_differences(mine):
    random, pretrained = {0: 0.40, 2: 0.50, 1: 0.10}, {1: 0.30, 2: 0.60, 0: 0.70}
    got = mine.paired_differences(random, pretrained)
    need(len(got) == 3, f"paired_differences gives {len(got)} numbers for 3 shared seeds")
    same(
        got, [0.3, 0.2, 0.1], "paired_differences",
        {
            "the order is that of the dictionary; it must be that of the seeds": [0.3, 0.1, 0.2],
            "seeds are mixed: subtract by key, not by place": [-0.1, 0.1, 0.6],
            "it is b - a: what the second start gains": [-0.3, -0.2, -0.1],
        },
    )  # fmt: skip
    got = mine.paired_differences({0: 0.5, 1: 0.5, 7: 0.9}, {0: 0.6, 1: 0.8, 2: 0.1})
    need(len(got) == 2, f"seeds 2 and 7 have no partner; of two pairs paired_differences gives {len(got)} numbers")


@pytest.mark.parametrize(
    "differences", [SIX, SIX[:3], [0.1] * 5, [0.1, 0.2, -0.3], [-0.2, -0.1, -0.1, -0.3], [0.0, 0.1]]
)
def test_sign_flip_p(mine, differences):
    want, n = ours.sign_flip(differences).p, len(differences)
    sums = [abs(sum(s * d for s, d in zip(signs, differences))) for signs in product((1, -1), repeat=n)]
    larger = sum(total > abs(sum(differences)) + 1e-12 for total in sums) / 2**n
    half, strict = "this p is one-sided; take the sums' absolute values", "sums as large as the one seen count, too: >="
    mistakes = {f"{half}; or: {strict}": larger} if larger == want / 2 else {half: want / 2, strict: larger}
    same(mine.sign_flip_p(differences), want, f"sign_flip_p({differences})", mistakes)


@pytest.mark.parametrize(("level", "want"), [(0.05, 6), (0.25, 3), (0.01, 8), (0.0625, 5)])
def test_seeds_needed(mine, level, want):
    got = mine.seeds_needed(level)
    need(got == want, f"seeds_needed({level}) is {got}; it must be {want}: 2 / 2^{want} is {2 / 2**want:.4f}")


@pytest.mark.parametrize("n", [2, 3, 6])
def test_interval(mine, n):
    found = ours.describe(SIX[:n])
    half = found.interval.high - found.mean
    got = mine.interval(SIX[:n])
    need(isinstance(got, tuple) and len(got) == 2, "interval must give (low, high)")
    biased = half * math.sqrt((n - 1) / n)
    mistakes = {
        "it is not divided by sqrt(n): that is how single runs scatter, not their mean": half * math.sqrt(n),
        "the standard deviation is divided by n; by n - 1 (stdev, not pstdev)": biased,
        "1.96 is for many seeds; take T[n]": half / ours.t_quantile(0.975, n - 1) * 1.96,
    }
    same(
        got, [found.interval.low, found.interval.high], f"interval of {n} differences",
        {sentence: [found.mean - h, found.mean + h] for sentence, h in mistakes.items()}, tolerance=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize(
    "p_values", [[0.03, 0.2, 0.01], [0.04], [0.02, 0.02, 0.9, 0.5], [0.01, 0.011, 0.012], [0.4, 0.6]]
)
def test_holm(mine, p_values):
    m = len(p_values)
    same(
        mine.holm(p_values), ours.holm(p_values), f"holm({p_values})",
        {
            "this is Bonferroni: all are multiplied by m": [min(1.0, m * p) for p in p_values],
            "nothing is adjusted": p_values,
            "the answer must be in the order the p values came in": sorted(ours.holm(p_values)),
            "a larger p value got a smaller adjusted one": [
                min(1.0, (m - sorted(p_values).index(p)) * p) for p in p_values
            ],
        },
    )  # fmt: skip


def test_can_fail(mine):
    for n in (3, 6, 20):
        share = mine.can_fail(n)
        same((1 - share) ** n, 0.05, f"the chance of no collapse in {n} runs, at a share of {share:.3f},")
    same(mine.can_fail(5, 0.9), 1 - 0.1**0.2, "can_fail(5, confidence=0.9)")

"""Lesson 4: what a handful of runs can say.

One way to solve it.
"""

import math
from itertools import product
from statistics import mean, stdev

# Exercise 4.1


def paired_differences(a, b):
    """{seed: accuracy} of two starts -> b - a of every seed that both have, in the order of the seeds.

    A seed that only one of them has is left out: it has no partner.
    """
    return [b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())]


# Exercise 4.2


def sign_flip_p(differences):
    """The exact two-sided p: of all 2^n choices of signs, the share whose |sum| is at least that of the one seen.

    Sums that differ by rounding alone (1e-12) count as equal.
    """
    seen = abs(sum(differences)) - 1e-12
    sums = [sum(s * d for s, d in zip(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    return sum(abs(total) >= seen for total in sums) / len(sums)


# Exercise 4.3


def seeds_needed(level):
    """The fewest paired seeds with which `sign_flip_p` can be as small as `level`, if all differences have one sign."""
    n = 1
    while 2 / 2**n > level:
        n += 1
    return n


# Exercise 4.4

T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # n: t(0.975, n - 1)


def interval(differences):
    """The 95 % interval of the mean over seeds, as (low, high): mean -+ t std / sqrt(n), with T[n] for t."""
    n = len(differences)
    half = T[n] * stdev(differences) / math.sqrt(n)
    return mean(differences) - half, mean(differences) + half


# Exercise 4.5


def holm(p_values):
    """p values of m comparisons -> adjusted for being m, in the order they came in (Holm 1979).

    The smallest is multiplied by m, the next by m - 1, ..., the largest by 1. In that order, none may be below the one
    before it, and none above 1.
    """
    adjusted, before = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        before = max(before, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = before
    return adjusted


# Exercise 4.6


def can_fail(n, confidence=0.95):
    """None of n runs collapsed. How large the share of runs that collapse may still be.

    The share p at which n runs without a collapse have a chance of 1 - confidence: (1 - p)^n = 1 - confidence.
    """
    return 1 - (1 - confidence) ** (1 / n)

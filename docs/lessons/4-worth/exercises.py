"""Lesson 4: what a handful of runs can say.

Write what is missing; the tests say what is wrong.
"""

import math
from itertools import product
from statistics import mean, stdev

# Exercise 4.1


def paired_differences(a, b):
    """{seed: accuracy} of two starts -> b - a of every seed that both have, in the order of the seeds.

    A seed that only one of them has is left out: it has no partner.
    """
    raise NotImplementedError("exercise 4.1")


# Exercise 4.2


def sign_flip_p(differences):
    """The exact two-sided p: of all 2^n choices of signs, the share whose |sum| is at least that of the one seen.

    Sums that differ by rounding alone (1e-12) count as equal.
    """
    raise NotImplementedError("exercise 4.2")


# Exercise 4.3


def seeds_needed(level):
    """The fewest paired seeds with which `sign_flip_p` can be as small as `level`, if all differences have one sign."""
    raise NotImplementedError("exercise 4.3")


# Exercise 4.4

T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # n: t(0.975, n - 1)


def interval(differences):
    """The 95 % interval of the mean over seeds, as (low, high): mean -+ t std / sqrt(n), with T[n] for t."""
    raise NotImplementedError("exercise 4.4")


# Exercise 4.5


def holm(p_values):
    """p values of m comparisons -> adjusted for being m, in the order they came in (Holm 1979).

    The smallest is multiplied by m, the next by m - 1, ..., the largest by 1. In that order, none may be below the one
    before it, and none above 1.
    """
    raise NotImplementedError("exercise 4.5")


# Exercise 4.6


def can_fail(n, confidence=0.95):
    """None of n runs collapsed. How large the share of runs that collapse may still be.

    The share p at which n runs without a collapse have a chance of 1 - confidence: (1 - p)^n = 1 - confidence.
    """
    raise NotImplementedError("exercise 4.6")

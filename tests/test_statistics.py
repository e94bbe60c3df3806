"""minibert/lab/ablation/statistics.py: worked examples, simulated experiments, and runs too few or too alike."""

import itertools
import math
from dataclasses import astuple
from statistics import NormalDist

import numpy as np
import pytest

from minibert.lab.ablation import statistics as stats
from minibert.lab.ablation.statistics import (
    Interval,
    can_reach,
    describe,
    error_ratio,
    expected_best,
    holm,
    multi_bootstrap,
    over_examples,
    probability_of_improvement,
    sign_flip,
    steps_to_match,
    t_quantile,
    variance_shares,
    wilson,
)

pytestmark = pytest.mark.filterwarnings("error")

EXPERIMENTS = 2000
NAN = float("nan")


def holds(interval, truth):
    """Whether it does; an end of None is no bound."""
    low, high = astuple(interval)
    return (low is None or low <= truth) and (high is None or truth <= high)


def close(interval, low, high):
    return astuple(interval) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


# One group of runs


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [  # printed tables
        (0.975, 1, 12.7062047),
        (0.975, 2, 4.30265273),
        (0.975, 5, 2.57058184),
        (0.95, 10, 1.81246112),
        (0.995, 30, 2.74999565),
        (0.025, 3, -3.18244631),
        (0.5, 4, 0.0),
        (0.975, 1e9, 1.95996398),
        (1 - 1e-6, 1, 318309.886),
    ],
)
def test_quantiles_of_t(p, df, t):
    assert t_quantile(p, df) == pytest.approx(t, rel=1e-8)


def test_quantiles_of_t_are_scipys():
    reference = pytest.importorskip("scipy.stats").t
    for p, df in itertools.product((0.6, 0.9, 0.975, 0.9995, 0.01), (1, 1.3, 2, 5.5, 29, 1e3, 1e6)):
        assert t_quantile(p, df) == pytest.approx(reference.ppf(p, df), rel=1e-7)


def test_a_description_by_hand():
    found = describe([0.9, 0.1, 0.8, 0.7, 0.5], alive=[True, False, True, True, True])
    assert (found.n, found.best, found.worst, found.median, found.collapsed) == (5, 0.9, 0.1, 0.7, 1)
    assert found.mean == pytest.approx(0.6)
    assert found.std == pytest.approx(math.sqrt((0.09 + 0.25 + 0.04 + 0.01 + 0.01) / 4))
    assert found.iqm == pytest.approx((0.5 + 0.7 + 0.8) / 3)
    assert found.mean_alive == pytest.approx(0.725)
    half = 2.7764451 * found.std / math.sqrt(5)
    assert close(found.interval, 0.6 - half, 0.6 + half)
    assert describe([0, 1, 5, 9, 2, 3, 4, 100]).iqm == (2 + 3 + 4 + 5) / 4
    assert describe([1, 2, 6]).iqm == 3


def test_the_interquartile_mean_is_scipys():
    scipy = pytest.importorskip("scipy.stats")
    for n in range(1, 14):
        x = np.random.default_rng(n).normal(size=n)
        assert describe(x).iqm == pytest.approx(scipy.trim_mean(x, 0.25))


def test_descriptions_of_too_little():
    one = describe([0.3])
    assert (one.mean, one.std, one.interval, one.iqm, one.collapsed, one.mean_alive) == (
        0.3,
        None,
        None,
        0.3,
        None,
        None,
    )
    same = describe([0.1] * 3, alive=[False] * 3)
    assert (same.mean, same.std, same.interval) == (0.1, 0, Interval(0.1, 0.1))
    assert (same.collapsed, same.mean_alive) == (3, None)


def test_the_t_interval_covers():
    rng = np.random.default_rng(0)
    for n in (3, 6):
        found = [describe(rng.normal(0.8, 0.02, n)).interval for _ in range(EXPERIMENTS)]
        assert 0.93 < np.mean([holds(interval, 0.8) for interval in found]) < 0.97


def test_wilsons_interval():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert close(wilson(81, 263).interval, 0.2553, 0.3662)
    assert close(wilson(15, 148).interval, 0.0624, 0.1605)
    assert close(wilson(0, 20).interval, 0, 0.1611)
    assert close(wilson(1, 29).interval, 0.0061, 0.1718)
    assert wilson(1, 4).share == 0.25
    z = NormalDist().inv_cdf(0.95)
    assert wilson(0, 6, confidence=0.9).interval.high == pytest.approx(z**2 / (6 + z**2))
    assert wilson(0, 3).interval.low == 0
    assert wilson(3, 3).interval.high == 1
    assert (wilson(0, 0).share, wilson(0, 0).interval) == (None, Interval(0.0, 1.0))


def test_wilsons_interval_covers():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, EXPERIMENTS)
    for n in (6, 50):
        assert 0.93 < np.mean([holds(wilson(int(rng.binomial(n, q)), n).interval, q) for q in p]) < 0.97


def test_the_interval_over_examples_is_scipys_and_groups_count_once():
    x = np.random.default_rng(0).random(40)
    interval = over_examples(x)
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.t.interval(0.95, 39, x.mean(), scipy.sem(x))
    close(interval, *expected)
    groups = np.arange(40)
    close(over_examples(np.repeat(x, 3), np.repeat(groups, 3)), *expected)  # copies are no news
    assert over_examples(x, ["one"] * 40) is None
    assert over_examples([1.0, 1.0]) == Interval(1.0, 1.0)
    by_hand = np.array([0.0, 1.0, 1.0])  # two groups, deviations -2/3 and 2/3
    half = 12.706204736 * math.sqrt(2 / 1 * 2 * (2 / 3) ** 2) / 3
    close(over_examples(by_hand, ["a", "b", "b"]), 2 / 3 - half, 2 / 3 + half)


def test_the_interval_over_groups_covers():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        size = rng.integers(20, 60, 12)
        owner = np.repeat(np.arange(12), size)
        right = rng.random(len(owner)) < np.clip(0.7 + 0.1 * rng.standard_normal(12), 0, 1)[owner]
        held.append(holds(over_examples(right.astype(float), owner), 0.7))
    assert 0.91 < np.mean(held) < 0.98


def test_the_expected_best_is_the_mean_over_all_choices():
    values = [0.3, 0.9, 0.5, 0.5, 0.1]
    for k in range(1, 6):
        assert expected_best(values, k) == pytest.approx(np.mean([max(c) for c in itertools.combinations(values, k)]))
    assert expected_best([0.1] * 7, 3) == 0.1
    assert expected_best([0.4], 1) == 0.4


# One start against another


def experiment(rng, seeds, examples, spread, people=None):
    """0/1 scores of two starts whose true difference is known: a normal sum above 0, and its groups."""
    hard = rng.normal(size=examples)
    owner = None
    person = np.zeros((3, examples))
    if people:
        owner = rng.integers(0, people, examples)
        person = rng.normal(0, [[0.8], [0.4], [0.4]], (3, people))[:, owner]
    shared = rng.normal(0, spread / 2, (seeds, 1))
    scores = []
    for k, mean in enumerate((1.0, 1.2), start=1):
        z = mean + hard + person[0] + person[k] + rng.normal(0, 0.5, examples) + shared
        scores.append(z + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.5, (seeds, examples)) > 0)
    variance = 1.5 + 1.25 * spread**2 + (0.8 if people else 0)
    truth = [NormalDist().cdf(mean / math.sqrt(variance)) for mean in (1.0, 1.2)]
    return scores, owner, truth[1] - truth[0]


@pytest.mark.parametrize(("seeds", "spread", "people"), [(6, 0.15, None), (12, 0.3, None), (6, 0.15, 15)])
def test_the_interval_of_seeds_and_examples_covers(seeds, spread, people):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(EXPERIMENTS):
        (a, b), groups, truth = experiment(rng, seeds, 200, spread, people)
        held += holds(multi_bootstrap(a, b, groups, draws=1).interval, truth)
    assert 0.93 < held / EXPERIMENTS < 0.97


def test_the_papers_percentiles_are_no_substitute_with_three_seeds():
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(500):
        (a, b), _, truth = experiment(rng, 3, 200, 0.4)
        found = multi_bootstrap(a, b, draws=200)
        held += [holds(found.interval, truth), holds(found.percentile, truth)]
    assert held[0] / 500 > 0.9
    assert held[1] / 500 < 0.86


def test_the_draws_are_means_over_drawn_seeds_and_examples():
    """All (seeds, examples) that can be drawn, gone through one by one, have the same quantiles."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3)), rng.random((3, 3))
    quantiles = lambda all_: np.quantile(all_, [0.025, 0.975], method="inverted_cdf")  # noqa: E731
    of = lambda n: [list(places) for places in itertools.product(range(n), repeat=n)]  # noqa: E731
    exact = [b[t][:, e].mean() - a[s][:, e].mean() for s in of(2) for t in of(3) for e in of(3)]
    found = multi_bootstrap(a, b, paired=False, draws=100_000)
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert astuple(found.percentile) == pytest.approx(quantiles(exact), abs=0.01)
    assert found.at_or_below_zero == pytest.approx(np.mean(np.array(exact) <= 0), abs=0.01)

    exact = [(b[:2] - a)[s][:, e].mean() for s in of(2) for e in of(3)]
    found = multi_bootstrap(a, b[:2], draws=100_000)
    assert astuple(found.percentile) == pytest.approx(quantiles(exact), abs=0.01)

    # Groups of 1 and 2 examples: a draw is a mean over as many examples as it happens to have.
    people = [[0], [1, 2]]
    exact = [(b[:2] - a)[s][:, [i for g in e for i in people[g]]].mean() for s in of(2) for e in of(2)]
    found = multi_bootstrap(a, b[:2], ["x", "y", "y"], draws=100_000)
    assert found.difference == pytest.approx((b[:2] - a).mean())
    assert astuple(found.percentile) == pytest.approx(quantiles(exact), abs=0.01)
    assert found.at_or_below_zero == pytest.approx(np.mean(np.array(exact) <= 0), abs=0.01)


def test_the_interval_of_seeds_and_examples_by_hand():
    d = np.array([[0.0, 0.2], [0.1, 0.7]])  # mean 0.25, seeds 0.1 and 0.4, examples 0.05 and 0.45, interaction +-0.1
    by_seeds, by_examples, by_both = 0.045 / 2, 0.08 / 2, 4 * 0.01 / 4
    variance = by_seeds + by_examples - by_both
    free = max(1, variance**2 / (by_seeds**2 + by_examples**2 + by_both**2))
    half = t_quantile(0.975, free) * math.sqrt(variance)
    found = multi_bootstrap(np.zeros((2, 2)), d).interval
    assert astuple(found) == pytest.approx((0.25 - half, 0.25 + half))
    # The same by groups of one, and by equal groups of equal examples.
    assert multi_bootstrap(np.zeros((2, 2)), d, ["a", "b"]).interval == found
    twice = multi_bootstrap(np.zeros((2, 4)), np.repeat(d, 2, axis=1), [1, 1, 2, 2]).interval
    assert astuple(twice) == pytest.approx(astuple(found))
    # Where examples are all alike, only seeds are left: the t interval of their differences; and the other way round.
    rng = np.random.default_rng(0)
    x = rng.normal(size=5)
    alike = multi_bootstrap(np.zeros((5, 40)), np.repeat(x[:, None], 40, axis=1)).interval
    assert astuple(alike) == pytest.approx(astuple(describe(x).interval))
    alike = multi_bootstrap(np.zeros((3, 5)), np.repeat(x[None], 3, axis=0)).interval
    assert astuple(alike) == pytest.approx(astuple(describe(x).interval))
    # Unpaired seeds of equal examples: Welch's interval.
    y = rng.normal(size=4)
    one, other = x.var(ddof=1) / 5, y.var(ddof=1) / 4
    free = (one + other) ** 2 / (one**2 / 4 + other**2 / 3)
    half = t_quantile(0.975, free) * math.sqrt(one + other)
    welch = multi_bootstrap(np.repeat(x[:, None], 9, axis=1), np.repeat(y[:, None], 9, axis=1), paired=False).interval
    assert astuple(welch) == pytest.approx((y.mean() - x.mean() - half, y.mean() - x.mean() + half))


def test_pairs_and_people_matter():
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.1, (6, 1))
    a = common + rng.normal(0.5, 0.01, (6, 50))
    b = common + rng.normal(0.52, 0.01, (6, 50))
    width = lambda interval: interval.high - interval.low  # noqa: E731
    paired, unpaired = multi_bootstrap(a, b), multi_bootstrap(a, b, paired=False)
    assert width(unpaired.interval) > 5 * width(paired.interval)
    assert width(unpaired.percentile) > 5 * width(paired.percentile)
    people = np.arange(50) // 10
    b = b + rng.normal(0, 0.1, 5)[people]
    plain, grouped = multi_bootstrap(a, b), multi_bootstrap(a, b, people)
    assert width(grouped.interval) > 2 * width(plain.interval)
    assert width(grouped.percentile) > 2 * width(plain.percentile)


def test_a_bootstrap_of_too_little():
    same = multi_bootstrap(np.ones((3, 4)), np.ones((3, 4)))
    assert astuple(same) == (0, (0, 0), (0, 0), 1)
    for a, b in [(np.zeros((1, 9)), np.ones((1, 9))), (np.zeros((3, 1)), np.ones((3, 1)))]:
        found = multi_bootstrap(a, b)
        assert (found.difference, found.interval, found.percentile) == (1, None, Interval(1, 1))
        assert found.at_or_below_zero == 0
    assert multi_bootstrap(np.zeros((3, 9)), np.eye(3, 9), ["one"] * 9).interval is None
    # Thirds do not add up in floating point: no difference must stay none.
    same = multi_bootstrap(np.tile([1.0, 0, 1], (3, 1)), np.tile([1.0, 0, 1], (7, 1)), paired=False)
    assert (same.difference, same.percentile, same.at_or_below_zero) == (0, Interval(0, 0), 1)


def test_signs_flipped_by_hand():
    found = sign_flip([1, 2, 3])  # |sums|: 6, 4, 2, 0, each twice
    assert (found.p, found.smallest, found.mean, found.exact) == (0.25, 0.25, 2, True)
    assert sign_flip([1, 2, -3]).p == 1
    assert sign_flip([-1, 2, 3]).p == 0.5
    assert sign_flip([0.1, 0.2, 0.3, 0.4, 0.5]).p == 0.0625
    assert sign_flip([-0.1] * 6).p == 0.03125
    assert sign_flip([0.1, 0.1, 0.1, -0.1, 0.1, 0.1]).p == 14 / 64
    assert sign_flip([-0.2, 0.3, 0.2, -0.5]).p == 1  # rounding alone makes two of the sums smaller
    zeros = sign_flip([0.1, 0.2, 0, 0.4, 0.1, 0.1])
    assert (zeros.p, zeros.smallest) == (0.0625, 0.0625)
    assert (sign_flip([5]).p, sign_flip([0, 0]).p, sign_flip([0, 0]).smallest) == (1, 1, 1)


def test_signs_flipped_are_scipys():
    scipy = pytest.importorskip("scipy.stats")
    for n in (4, 7, 10):
        x = np.random.default_rng(n).normal(0.5, 1, n)
        reference = scipy.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip(x).p == pytest.approx(reference.pvalue)


def test_signs_are_drawn_beyond_twenty():
    x = np.random.default_rng(0).normal(0.3, 1, 30)
    found = sign_flip(x[:21])
    sums = np.zeros(1)
    for value in x[:21]:
        sums = np.concatenate([sums + value, sums - value])
    assert not found.exact
    assert found.p == pytest.approx((np.abs(sums) >= abs(x[:21].sum()) - 1e-9).mean(), abs=0.005)
    assert found == sign_flip(x[:21], seed=0) != sign_flip(x[:21], seed=1)
    assert sign_flip(np.ones(30)).p == sign_flip(np.ones(30)).smallest == 1 / 100_001
    assert sign_flip(np.zeros(30)).p == 1


def test_what_can_be_told():
    assert [can_reach(n) for n in range(9)] == [False] * 6 + [True] * 3
    assert can_reach(5, level=0.0625)
    assert can_reach(30, level=1e-4)
    assert not can_reach(30, level=1e-6)  # more than is drawn


def test_holms_correction():
    # Holm's procedure on 0.01, 0.04, 0.03, 0.005: x4, x1, x2, x3, and never below a smaller p's.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_the_probability_of_improvement():
    assert probability_of_improvement([1, 2], [1, 3]).probability == (0.5 + 1 + 0 + 1) / 4
    found = probability_of_improvement([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7])
    assert found.probability == pytest.approx((21 + 5 / 2) / 36)
    assert 0 <= found.interval.low < found.probability < found.interval.high <= 1
    mirrored = probability_of_improvement([2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6])
    assert mirrored.probability == pytest.approx(1 - found.probability)
    for a, b, probability in [
        ([1, 2, 3], [4, 5, 6], 1),
        ([4, 5], [1, 2], 0),
        ([1, 1], [1, 1], 0.5),
        ([1], [0, 2], 0.5),
    ]:
        assert astuple(probability_of_improvement(a, b)) == (probability, None)


def test_the_probability_of_improvement_is_mann_whitneys():
    scipy = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).integers(0, 9, (2, 12))
    expected = scipy.mannwhitneyu(b, a).statistic / 144
    assert probability_of_improvement(a, b).probability == pytest.approx(expected)


def test_the_ratio_of_errors():
    found = error_ratio([0.8, 0.9], [0.9, 0.95])
    assert found.ratio == pytest.approx(0.5)
    assert astuple(found.interval) == pytest.approx((0.5, 0.5))  # pairs keep to their ratio, unpaired seeds would not
    found = error_ratio([0.8, 0.82, 0.79, 0.81], [0.9, 0.88, 0.9, 0.91])
    assert 0 < found.interval.low < found.ratio < found.interval.high < 1
    assert astuple(error_ratio([1, 1], [0.9, 1])) == (None, None)
    assert astuple(error_ratio([0.5, 0.5], [1, 1])) == (0, None)
    assert astuple(error_ratio([0.5], [0.75])) == (0.5, None)
    neither = error_ratio([1, 1, 0.5], [1, 1, 0.75])  # 0 / 0 in a third of the draws
    assert astuple(neither) == (0.5, (0.5, 0.5))
    some = error_ratio([1, 1, 0.5], [0.9, 0.9, 0.9])
    assert (some.ratio, some.interval.high) == (pytest.approx(0.6), None)
    assert some.interval.low > 0


def test_the_intervals_of_ratio_probability_and_steps_cover():
    """On few seeds, where the unwidened ones cover 75, 88 and 80 %."""
    rng = np.random.default_rng(0)
    x = np.array([25, 50, 100, 200, 400])
    curve = 0.3 + 0.15 * np.log2(x / 25)
    held, n = np.zeros(3), 400
    for _ in range(n):
        shared = rng.normal(0, 0.01, 3)
        a, b = 0.85 + shared + rng.normal(0, 0.02, 3), 0.88 + shared + rng.normal(0, 0.02, 3)
        held[0] += holds(error_ratio(a, b, draws=400).interval, 0.8)
        found = probability_of_improvement(rng.normal(0, 1, 6), rng.normal(0.5, 1, 6), draws=400).interval
        held[1] += found is None or holds(found, NormalDist().cdf(0.5 / math.sqrt(2)))
        curves = curve + rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.01, (3, 5))
        goal = rng.normal(0.6, 0.02, 3)
        held[2] += holds(steps_to_match(x, curves, goal, log=True, draws=400).interval, 100)
    assert (held / n > 0.93).all()


# How far the other has to go


def test_steps_to_match_by_hand():
    curves = [[0.1, 0.5, 0.3, 0.7], [0.3, 0.5, 0.5, 0.9]]  # mean 0.2, 0.5, 0.4, 0.8
    linear = lambda target, **more: steps_to_match([1, 2, 3, 4], curves, target, log=False, **more)  # noqa: E731
    assert linear(0.35).at == pytest.approx(1.5)
    assert linear(0.5).at == pytest.approx(2)
    assert linear(0.65).at == pytest.approx(3.5)  # from 0.5, which was reached, not from 0.4
    assert linear([0.3, 0.4]).at == pytest.approx(1.5)
    assert linear(0.1).at == 1
    assert linear(0.81).at is None
    found = linear(0.35, spent=0.5)
    assert (found.multiplier, found.transferred) == (pytest.approx(3), pytest.approx(1))
    assert linear(0.81, spent=0.5).multiplier is None
    logarithmic = steps_to_match([100, 400], [[0.2, 0.6]], 0.4, log=True, spent=50)
    assert astuple(logarithmic) == (pytest.approx(200), None, None, pytest.approx(4), pytest.approx(150))


def test_both_sides_spread_the_steps_to_match():
    # Of 3 seeds one comes up three times in 1 of 27 draws: more than 2.5 %, so that the seeds themselves are the ends.
    x, line = np.arange(21), np.linspace(0, 1, 21)
    wide = math.sqrt(3 / 2) * 4.30265273 / 1.95996398
    found = steps_to_match(x, line - [[0.05], [0.0], [-0.01]], 0.5, log=False)
    middle = 10 + 20 * 0.04 / 3
    assert found.at == pytest.approx(middle)
    assert astuple(found.interval) == pytest.approx((middle - wide * (middle - 9.8), middle + wide * (11 - middle)))
    found = steps_to_match(x, [line, line], [0.5, 0.49, 0.55], log=False)
    assert astuple(found.interval) == pytest.approx((middle - wide * (middle - 9.8), middle + wide * (11 - middle)))


def test_beyond_the_budget_is_a_result():
    curves = [[0.1, 0.5], [0.2, 0.7], [0.1, 0.6]]
    never = steps_to_match([1, 2], curves, [0.9, 0.91, 0.92], log=False)
    assert astuple(never) == (None, (None, None), 0, None, None)
    often = steps_to_match([1, 2], curves, [0.56, 0.58, 0.57], log=False)
    assert 1 < often.interval.low < often.at
    assert often.interval.high is None
    assert 0.5 < often.reached < 0.975
    always = steps_to_match([1, 2], curves, [-1, -1], log=False)
    assert astuple(always) == (1, (1, 1), 1, None, None)
    fixed = steps_to_match([1, 2], [[0.1, 0.9], [0.1, 0.9]], 0.5, log=False)
    assert astuple(fixed)[:3] == (pytest.approx(1.5), (pytest.approx(1.5), pytest.approx(1.5)), 1)
    assert steps_to_match([1, 2], curves, [0.3], log=False).interval is None
    # A target that scatters makes the interval wider than one that does not.
    loose = steps_to_match([1, 2], curves, [0.3, 0.5], log=False)
    firm = steps_to_match([1, 2], curves, 0.4, log=False)
    assert loose.interval.low < firm.interval.low
    assert steps_to_match([5], [[0.4], [0.5]], 0.1, log=True).at == 5


# Where the spread comes from


def test_variances_of_a_crossed_design_by_hand():
    # Effects of weights -1, 1 and of order -3, 0, 3, and +-0.5 that neither explains.
    values = [-4.5, -0.5, 1.5, -1.5, 0.5, 4.5]
    found = variance_shares(values, {"weights": [0, 0, 0, 1, 1, 1], "order": list("abcabc"), "head": [0] * 6})
    rows, columns = np.array(values).reshape(2, 3).mean(axis=1), np.array(values).reshape(2, 3).mean(axis=0)
    rest = np.array(values).reshape(2, 3) - rows[:, None] - columns
    noise = np.square(rest).sum() / 2
    expected = {
        "weights": rows.var(ddof=1) - noise / 3,
        "order": columns.var(ddof=1) - noise / 2,
        "head": None,
        "residual": noise,
    }
    assert found.variance == {name: None if v is None else pytest.approx(v) for name, v in expected.items()}
    assert found.share["order"] == pytest.approx(expected["order"] / sum(v for v in expected.values() if v))
    assert found.share["head"] is None


def test_variances_of_one_factor_at_a_time_by_hand():
    # Base (0, 0) twice; weights 1 and 2; order 1.
    found = variance_shares([1, 3, 5, 8, 6], {"weights": [0, 0, 1, 2, 0], "order": [0, 0, 0, 0, 1]})
    noise = 2.0  # of 1 and 3
    assert found.variance == {
        "weights": pytest.approx(np.var([2, 5, 8], ddof=1) - noise * (1 / 2 + 1 + 1) / 3),
        "order": pytest.approx(np.var([2, 6], ddof=1) - noise * (1 / 2 + 1) / 2),
        "residual": pytest.approx(noise),
    }
    bare = variance_shares([2, 5, 8, 6], {"weights": [0, 1, 2, 0], "order": [0, 0, 0, 1]})
    assert bare.variance == {"weights": pytest.approx(9), "order": pytest.approx(8), "residual": None}
    assert bare.share == {"weights": pytest.approx(9 / 17), "order": pytest.approx(8 / 17), "residual": None}


def test_variances_are_right_on_average():
    rng = np.random.default_rng(0)
    weights, order = np.divmod(np.arange(48) // 2, 6)
    found = []
    for _ in range(500):
        x = rng.normal(0, 2, 4)[weights] + rng.normal(0, 3, 6)[order] + rng.normal(0, 1, 48)
        found.append(list(variance_shares(x, {"weights": weights, "order": order}).variance.values()))
    assert np.mean(found, axis=0) == pytest.approx([4, 9, 1], rel=0.1)


def test_variances_of_too_little():
    same = variance_shares([0.1] * 6, {"weights": [0, 0, 0, 1, 1, 1], "order": [0, 1, 2] * 2})  # three add up to more
    assert same.variance == {"weights": 0, "order": 0, "residual": 0}
    assert set(same.share.values()) == {None}
    assert variance_shares([0.1], {"weights": [7]}).variance == {"weights": None, "residual": None}
    assert variance_shares([1, 3], {}).variance == {"residual": 2}
    assert variance_shares([1, 3], {"weights": "ab"}).variance == {"weights": 2, "residual": None}
    level = variance_shares([1, 3, 1, 3], {"weights": [0, 0, 1, 1]})  # means alike: less than noise alone would give
    assert level.variance == {"weights": 0, "residual": 2}


# All


def test_draws_repeat_and_follow_the_seed():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 30))
    x, y = a.mean(axis=1), b.mean(axis=1)
    for call in (
        lambda **seed: multi_bootstrap(a, b, **seed),
        lambda **seed: probability_of_improvement(a.ravel(), b.ravel(), **seed),
        lambda **seed: error_ratio(x, y, **seed),
        lambda **seed: steps_to_match(range(1, 31), np.sort(a), y, log=True, **seed),
    ):
        assert call() == call() == call(seed=0) != call(seed=1)


def test_draws_in_portions_are_as_good(monkeypatch):
    a, b = np.random.default_rng(0).random((2, 5, 20))
    whole = multi_bootstrap(a, b, draws=20_000)
    monkeypatch.setattr(stats, "CHUNK", 3000)
    parts = multi_bootstrap(a, b, draws=20_000)
    assert astuple(parts.percentile) == pytest.approx(astuple(whole.percentile), abs=0.01)
    assert parts.interval == whole.interval


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: describe([]), "values: must have 1 dimension"),
        (lambda: describe([0.1, NAN]), "values: must be finite"),
        (lambda: describe([0.1, 0.2], alive=[True]), "alive: .1,., but values: .2,."),
        (lambda: wilson(3, 2), "successes: 3 of 2"),
        (lambda: wilson(-1, 2), "successes: -1 of 2"),
        (lambda: wilson(1, 2, confidence=1), "confidence: 1"),
        (lambda: expected_best([], 1), "values: must have"),
        (lambda: expected_best([1, 2], 3), "k: 3, must be from 1 to the 2"),
        (lambda: expected_best([1, 2], 0), "k: 0"),
        (lambda: multi_bootstrap([1, 0], [1, 0]), "a: must have 2 dimension"),
        (lambda: multi_bootstrap(np.ones((0, 3)), np.ones((0, 3))), "a: must have 2 dimension"),
        (lambda: multi_bootstrap(np.ones((2, 3)), np.ones((2, 4))), "a has 3 examples, b 4"),
        (lambda: multi_bootstrap(np.ones((2, 3)), np.ones((3, 3))), "paired, but a has 2 seeds, b 3"),
        (lambda: multi_bootstrap(np.ones((2, 3)), np.ones((2, 3)), [1, 2]), "groups: 2, but 3 examples"),
        (lambda: multi_bootstrap(np.ones((2, 3)), np.ones((2, 3)), draws=0), "draws: 0"),
        (lambda: sign_flip([]), "differences: must have"),
        (lambda: can_reach(-1), "n: -1"),
        (lambda: can_reach(3, level=0), "level: 0"),
        (lambda: holm([0.5, 1.5]), "p_values"),
        (lambda: holm([NAN]), "p_values"),
        (lambda: probability_of_improvement([], [1]), "a: must have"),
        (lambda: probability_of_improvement([1], [1], draws=0), "draws: 0"),
        (lambda: error_ratio([0.5], [0.5, 0.5]), "paired, but a has 1 seeds, b 2"),
        (lambda: error_ratio([50], [60]), "accuracies from 0 to 1"),
        (lambda: error_ratio([0.5], [0.5], draws=0), "draws: 0"),
        (lambda: steps_to_match([], [[]], 0.5, log=False), "x: must have"),
        (lambda: steps_to_match([1, 2], [[1, 2, 3]], 0.5, log=False), "curves have 3 points, x 2"),
        (lambda: steps_to_match([2, 1], [[1, 2]], 0.5, log=False), "x: must rise"),
        (lambda: steps_to_match([0, 1], [[1, 2]], 0.5, log=True), "x: must rise, and from above 0"),
        (lambda: steps_to_match([0, 1], [[1, 2]], [], log=False), "target: must have"),
        (lambda: steps_to_match([0, 1], [[1, 2]], 1, log=False, spent=0), "spent: 0"),
        (lambda: steps_to_match([0, 1], [[1, 2]], 1, log=False, draws=0), "draws: 0"),
        (lambda: variance_shares([], {}), "values: must have"),
        (lambda: variance_shares([1, 2], {"order": [1]}), "order: 1 levels, but 2 values"),
        (lambda: variance_shares([1, 2], {"residual": [1, 2]}), "residual"),
        (lambda: variance_shares([1, 2], {"order": [1, 2], "head": [1, 2]}), "neither crossed"),
        (lambda: t_quantile(1, 3), "p: 1"),
        (lambda: t_quantile(1 - 1e-9, 1e7), "p: 0.999999999"),
        (lambda: t_quantile(0.9, 0.5), "df: 0.5"),
    ],
)
def test_what_makes_no_sense_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()

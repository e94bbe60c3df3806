"""minibert/seeds.py: how --seed is read, and streams that share nothing."""

from itertools import product

import pytest

from minibert.errors import InputError
from minibert.seeds import Seeds, derive


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", Seeds()),
        ("7", Seeds(encoder=7, head=7, order=7, dropout=7, subset=7, split=0)),
        (" 7 ", Seeds(encoder=7, head=7, order=7, dropout=7, subset=7, split=0)),
        ("7,order=3", Seeds(encoder=7, head=7, order=3, dropout=7, subset=7, split=0)),
        ("7,split=2", Seeds(encoder=7, head=7, order=7, dropout=7, subset=7, split=2)),
        ("order=3", Seeds(order=3)),
        ("order=3,encoder=1", Seeds(encoder=1, order=3)),
        ("1,encoder=2,head=3,order=4,dropout=5,subset=6,split=7", Seeds(2, 3, 4, 5, 6, 7)),
        ("12345678901234567890", Seeds(*[12345678901234567890] * 5, 0)),
    ],
)
def test_what_a_seed_sets(text, seeds):
    assert Seeds.parse(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1.5",
        "1e3",
        "7,8",
        "order=3,7",
        "7,",
        ",7",
        "oder=3",
        "order=",
        "order=-1",
        "order=x",
        "7;8",
        "order=3,order=4",
    ],
)
def test_bad_seed_names_the_parts(text):
    with pytest.raises(InputError, match=r"--seed .*encoder, head, order, dropout, subset, split"):
        Seeds.parse(text)


def test_purposes_have_seeds_of_their_own():
    purposes = [("encoder",), ("head",), ("order", 1), ("order", 2), ("order", 12), ("order", 1, 2), ("dropout", 1), ()]
    seeds = [derive(seed, *purpose) for seed, purpose in product(range(20), purposes)]
    assert len(set(seeds)) == len(seeds) == 160


def test_a_number_is_not_its_name():
    assert derive(0, 1) != derive(0, "1")


def test_seeds_are_the_same_everywhere():
    assert derive(0, "order", 1) == 34984826333690148
    assert derive(7, "dropout", 3) == 27111556349287053
    assert derive(0, "split") == 18057354141151650


def test_seeds_suit_torch():
    seeds = [derive(seed, "order", epoch) for seed, epoch in product((0, 7, 2**80), range(100))]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**53  # and use the room


def test_spaces_behind_the_comma_are_allowed_and_a_name_is_needed():
    assert Seeds.parse("7, order = 3") == Seeds(7, 7, 3, 7, 7, 0)
    for text in ("=3", "7,=3", "9" * 5000):
        with pytest.raises(InputError, match="--seed"):
            Seeds.parse(text)

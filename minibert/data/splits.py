"""Which rows train, which choose the best epoch, which are read once at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from minibert.data.columns import Names
from minibert.data.table import MOST, Table
from minibert.errors import InputError
from minibert.seeds import derive

SPLITS = ("train", "val", "test")
ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val"}
SHARE = 0.1  # of the rows, for validation and again for test


def split_rows(table: Table, seed: int) -> dict[str, np.ndarray]:
    """Row numbers of each split: as the table says, else whole groups, else 80/10/10 of each class.

    Raises:
        InputError: one class only, or very many; an empty split, an unknown split name, a label that training never
            sees.
    """
    labels = Names.of(table.labels)
    if len(labels.names) < 2:
        raise InputError(f"{table.name}: one class only ({table.labels[0]!r}); a classifier needs two or more")
    if len(labels.names) > MOST:
        raise InputError(
            f"{table.name}: {len(labels.names):,} different labels in {len(labels):,} rows; {MOST:,} are the most:"
            " is it the right column?"
        )
    if table.splits is not None:
        splits = Names.of(table.splits)
        names = [ALIASES.get(name.strip().lower(), name.strip().lower()) for name in splits.names]
        unknown = sorted(set(names) - set(SPLITS))
        if unknown:
            raise InputError(f"{table.name}: split is {unknown[0]!r} somewhere; allowed are {', '.join(SPLITS)}")
        chosen = np.array([SPLITS.index(name) for name in names], np.uint8)[splits.codes]
    else:
        generator = np.random.default_rng(derive(seed, "split"))
        chosen = np.zeros(len(labels), np.uint8)
        taken = by_class(labels.codes, generator) if table.groups is None else by_group(table.groups, generator)
        for name, some in taken.items():
            chosen[some] = SPLITS.index(name)
    rows = {name: np.flatnonzero(chosen == place).astype(np.int32) for place, name in enumerate(SPLITS)}
    for name in SPLITS:
        if not len(rows[name]):
            counts = ", ".join(f"{len(rows[n])} {n}" for n in SPLITS)
            raise InputError(
                f"{table.name}: no rows for {name} ({counts}); give more rows or groups, or a `split` column"
            )
    for name in ("val", "test"):
        unseen = np.setdiff1d(labels.codes[rows[name]], labels.codes[rows["train"]])
        if len(unseen):
            raise InputError(
                f"{table.name}: label {labels.names[unseen[0]]!r} is in {name} but not in train; move rows of it,"
                " take it out, or try another --seed split=N"
            )
    return rows


def fewer(
    rows: np.ndarray, labels: np.ndarray, count: int, seed: int, what: str = "--examples", split: str = "training"
) -> np.ndarray:
    """`count` of the rows, each class in its share, those of a smaller count among those of a larger one.

    In the order that they are taken in, the r-th of n rows of a class stands at r / n: first one of each class, then
    the classes in step.

    Args:
        rows: row numbers of one split; labels: of all rows, names or their places in alphabetical order.
        what, split: who asks, and of which split, for messages.

    Raises:
        InputError: more than there are, or fewer than there are classes.
    """
    own = list(by_label(labels[rows]))
    classes = len(own)
    if not classes <= count <= len(rows):
        raise InputError(
            f"{what} {count}: the {split} split has {len(rows):,} of {classes} classes; take a number from"
            f" {classes} to {len(rows)}, or all"
        )
    generator = np.random.default_rng(derive(seed, "subset"))
    own = [generator.permutation(rows[places]) for places in own]
    place = np.concatenate([np.arange(len(part)) / len(part) for part in own])
    tie = generator.permutation(len(place))
    return np.sort(np.concatenate(own)[np.lexsort((tie, place))[:count]])


def by_label(labels: np.ndarray) -> Iterator[np.ndarray]:
    """The places of each label that occurs, ascending; the labels in their order. One after another, since all of them
    at once are 8 bytes a row.
    """
    return (np.flatnonzero(labels == label) for label in np.unique(labels))


def by_class(labels: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """The rows of a tenth of each class, for val and for test; at least one of a class that has three, none of a
    smaller one.
    """
    taken: dict[str, list[np.ndarray]] = {"test": [], "val": []}
    for places in by_label(labels):
        rows = generator.permutation(places)
        share = max(1, round(SHARE * len(rows))) if len(rows) >= 3 else 0
        taken["test"].append(rows[:share].copy())  # a view would keep all the others
        taken["val"].append(rows[share : 2 * share].copy())
    return {name: np.concatenate(rows) for name, rows in taken.items()}


def by_group(groups: Sequence[str], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """The rows of whole groups in random order, until test and then val hold a tenth of all."""
    groups = Names.of(groups)
    sizes, order = np.bincount(groups.codes), generator.permutation(len(groups.names))
    taken, first = {}, 0
    for name in ("test", "val"):
        last, count = first, 0
        while last < len(order) - 1 and count < SHARE * len(groups):
            count += int(sizes[order[last]])
            last += 1
        taken[name] = np.flatnonzero(np.isin(groups.codes, order[first:last]))
        first = last
    return taken

"""Which rows train, which choose the best epoch, which are read once at the end."""

from __future__ import annotations

import numpy as np

from minibert.data.table import Table
from minibert.errors import InputError
from minibert.seeds import derive

SPLITS = ("train", "val", "test")
ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val"}
MOST = 4096  # classes: a report's matrix of true and predicted ones has the square of it, 134 MB
SHARE = 0.1  # of the rows, for validation and again for test


def split_rows(table: Table, seed: int) -> dict[str, np.ndarray]:
    """Row numbers of each split: as the table says, else whole groups, else 80/10/10 of each class.

    Raises:
        InputError: one class only, or very many; an empty split, an unknown split name, a label that training never
            sees.
    """
    labels = np.array(table.labels)
    if len(set(table.labels)) < 2:
        raise InputError(f"{table.name}: one class only ({table.labels[0]!r}); a classifier needs two or more")
    if len(set(table.labels)) > MOST:
        raise InputError(
            f"{table.name}: {len(set(table.labels)):,} different labels in {len(labels):,} rows; {MOST:,} are the most:"
            " is it the right column?"
        )
    if table.splits is not None:
        names = [ALIASES.get(name.strip().lower(), name.strip().lower()) for name in table.splits]
        unknown = sorted(set(names) - set(SPLITS))
        if unknown:
            raise InputError(f"{table.name}: split is {unknown[0]!r} somewhere; allowed are {', '.join(SPLITS)}")
        chosen = np.array(names)
    else:
        generator = np.random.default_rng(derive(seed, "split"))
        chosen = np.full(len(labels), "train", dtype="<U5")
        if table.groups is not None:
            by_group(chosen, np.array(table.groups), generator)
        else:
            by_class(chosen, labels, generator)
    rows = {name: np.flatnonzero(chosen == name) for name in SPLITS}
    for name in SPLITS:
        if not len(rows[name]):
            counts = ", ".join(f"{len(rows[n])} {n}" for n in SPLITS)
            raise InputError(
                f"{table.name}: no rows for {name} ({counts}); give more rows or groups, or a `split` column"
            )
    for name in ("val", "test"):
        unseen = sorted(set(labels[rows[name]]) - set(labels[rows["train"]]))
        if unseen:
            raise InputError(
                f"{table.name}: label {str(unseen[0])!r} is in {name} but not in train; move rows of it,"
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
        rows: row numbers of one split; labels: of all rows.
        what, split: who asks, and of which split, for messages.

    Raises:
        InputError: more than there are, or fewer than there are classes.
    """
    classes = sorted(set(labels[rows]))
    if not len(classes) <= count <= len(rows):
        raise InputError(
            f"{what} {count}: the {split} split has {len(rows):,} of {len(classes)} classes; take a number from"
            f" {len(classes)} to {len(rows)}, or all"
        )
    generator = np.random.default_rng(derive(seed, "subset"))
    own = [generator.permutation(rows[labels[rows] == label]) for label in classes]
    place = np.concatenate([np.arange(len(part)) / len(part) for part in own])
    tie = generator.permutation(len(place))
    return np.sort(np.concatenate(own)[np.lexsort((tie, place))[:count]])


def by_class(chosen: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> None:
    """A tenth of each class to val and to test; at least one of a class that has three, none of a smaller one."""
    for label in sorted(set(labels)):
        rows = generator.permutation(np.flatnonzero(labels == label))
        share = max(1, round(SHARE * len(rows))) if len(rows) >= 3 else 0
        chosen[rows[:share]] = "test"
        chosen[rows[share : 2 * share]] = "val"


def by_group(chosen: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> None:
    """Whole groups in random order, until test and then val hold a tenth of the rows."""
    order = generator.permutation(sorted(set(groups)))
    for name in ("test", "val"):
        while len(order) > 1 and (chosen == name).sum() < SHARE * len(chosen):
            chosen[groups == order[0]] = name
            order = order[1:]

"""The tables of a grid's findings, in words: one form for the page, for Markdown and for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minibert.lab.ablation.findings import Found, label, of_interval, signed
from minibert.lab.ablation.grid import shown

WIDTH = 80


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        rows: (condition, cells); rows of one condition stand together.
        narrow: the columns that a terminal has room for; none: not shown there.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    note: str = ""
    narrow: tuple[int, ...] = ()


def tables(found: Found) -> list[Table]:
    """All that have a row, in the order of the report."""
    makers = (settings, matched, best, expected, epochs, examples, variance, claims, problems)
    return [table for table in (make(found) for make in makers) if table.rows]


def settings(found: Found) -> Table:
    def cells(row: Found) -> tuple[str, ...]:
        val, test, lost = row["val"] or {}, row["test"] or {}, row["collapsed_or_failed"]
        return (
            row["start"], f"{row['finished']}/{row['asked']}",
            number(val.get("mean")), number(test.get("mean")), number(test.get("std")),
            number(test.get("median")), number(test.get("iqm")), number(test.get("best")), number(test.get("worst")),
            between(test.get("interval")), number(test.get("mean_alive")), number(val.get("mean_alive")),
            f"{lost['count']}/{lost['n']}", between(lost["interval"], "{:.2f}".format) if lost["n"] else "-",
            number(row["majority"]["test"]),
        )  # fmt: skip

    return Table(
        "settings", "Every start, under every condition",
        ("start", "runs", "val", "test", "std", "median", "iqm", "best", "worst", "95 % of the mean", "test, alive",
         "val, alive", "lost", "95 % of lost", "constant"),
        of(found["settings"], cells),
        "Accuracies of the best epoch, means over finished runs; alive: without the collapsed ones. lost: collapsed or"
        " failed, of those that ended. constant: the test accuracy of always saying the commonest class.",
        (0, 1, 2, 3, 4, 10, 12, 13),
    )  # fmt: skip


COMPARED = ("pairs", "difference", "95 %", "p", "p, Holm", "P(better)", "95 % of P", "errors", "95 % of errors",
            "difference, val", "95 %, val")  # fmt: skip
COMPARED_NOTE = (
    "Test accuracy less the baseline's, runs of one seed in pairs; intervals over seeds and examples (groups, where"
    " there are). p: exact sign-flip test, left out where so few pairs cannot reach 0.05. P(better): that a run beats"
    " one of the baseline. errors: for each of the baseline's, over seeds alone."
)


def compared(row: Found) -> tuple[str, ...]:
    test, val = row["test"] or {}, row["val"] or {}
    flip, better, errors = (row[name] or {} for name in ("sign_flip", "improvement", "error_ratio"))
    untold = "cannot be told" if test else "-"
    pairs = str(row["n"]) if row["paired"] else "unpaired"
    return (
        pairs, number(test.get("difference"), signed), between(test.get("interval"), signed, untold),
        number(flip.get("p"), p_value, untold), number(flip.get("holm"), p_value, untold),
        number(better.get("probability"), "{:.2f}".format), between(better.get("interval"), "{:.2f}".format),
        number(errors.get("ratio"), "{:.2f}".format), between(errors.get("interval"), "{:.2f}".format),
        number(val.get("difference"), signed), between(val.get("interval"), signed, untold),
    )  # fmt: skip


def matched(found: Found) -> Table:
    return Table(
        "matched", f"At matched settings, against {found['baseline']}", ("start", *COMPARED),
        of(found["matched"], lambda row: (row["start"], *compared(row))), COMPARED_NOTE, (0, 1, 2, 3, 5, 6),
    )  # fmt: skip


def best(found: Found) -> Table:
    """The baseline's row has its rate and figures, and nothing to be compared with."""
    pairs = {(label(row["condition"]), row["start"]): row for row in found["best"]}

    def cells(row: Found) -> tuple[str, ...]:
        rate = number(row["lr"], shown) + {"lowest": " (lowest)", "highest": " (highest)"}.get(row["edge"], "")
        pair = pairs.get((label(row["condition"]), row["start"]))
        val, test = row["val"] or {}, row["test"] or {}
        return (row["start"], rate, number(row["warmup"], shown), str(row["tried"]), number(val.get("mean")),
                number(test.get("mean")), *(compared(pair) if pair else ("-",) * len(COMPARED)))  # fmt: skip

    return Table(
        "best", f"Each start at its own best rate, against {found['baseline']}",
        ("start", "rate", "warmup", "tried", "val", "test", *COMPARED), of(found["chosen"], cells),
        "The rate and warmup with the best mean validation accuracy, collapsed runs included, failed ones as 0."
        " (lowest), (highest): at the edge of what was tried. " + COMPARED_NOTE,
        (0, 1, 2, 5, 7, 8, 9),
    )  # fmt: skip


def expected(found: Found) -> Table:
    most = max((len(row["expected_best"]) for row in found["chosen"]), default=0)

    def cells(row: Found) -> tuple[str, ...]:
        values = row["expected_best"]
        return row["start"], *(number(values[k] if k < len(values) else None) for k in range(most))

    return Table(
        "expected", "The best validation accuracy that k rates would have given",
        ("start", *(f"k = {k}" for k in range(1, most + 1))),
        of(found["chosen"], cells) if most > 1 else (),
        "Expected over all choices of k of the rates tried: whoever tunes more gets more.",
    )  # fmt: skip


MATCH = ("needs", "95 %", "times as many")


def matching(result: Found | None, form: Callable[[float], str]) -> tuple[str, ...]:
    if result is None:
        return ("-",) * len(MATCH)
    beyond = f"> {result['budget']:,}"
    first = "≤ " if result["at"] == result["first"] else ""
    ends = [beyond if end is None else form(end) for end in result["interval"] or ()]
    return (
        beyond if result["at"] is None else first + form(result["at"]),
        " to ".join(dict.fromkeys(ends)) or "cannot be told",
        number(result["multiplier"], "{:.1f}".format),
    )


def epochs(found: Found) -> Table:
    at_best = bool(found["best"])
    rows = [{"condition": row["condition"], "start": row["start"], **result}
            for row in (found["best"] or found["matched"]) for result in row["epochs"]]  # fmt: skip
    return Table(
        "epochs", f"Epochs that {found['baseline']} needs for what another start has"
                  + (", each at its best rate" if at_best else ""),
        ("start", "has, val", "after epochs", *MATCH),
        of(rows, lambda row: (row["start"], number(row["target"]), str(row["spent"]),
                              *matching(row, "{:.1f}".format))),
        "On the mean validation curves, what was reached stays reached.",
        (0, 1, 2, 3, 4),
    )  # fmt: skip


def examples(found: Found) -> Table:
    def cells(row: Found) -> tuple[str, ...]:
        result = row["match"]
        moved = number(result and result["transferred"], "{:,.0f}".format)
        return (row["start"], f"{row['examples']:,}", number(row["test"]["mean"]), number(row["test"]["std"]),
                *matching(result, "{:,.0f}".format), moved)  # fmt: skip

    return Table(
        "examples", f"Examples that {found['baseline']} needs for what another start has",
        ("start", "examples", "test", "std", *MATCH, "worth"), of(found["examples"], cells),
        "On straight lines over the logarithm of the number. worth: examples needed less examples given, the effective"
        " data transferred.",
        (0, 1, 2, 4, 5, 6),
    )  # fmt: skip


def variance(found: Found) -> Table:
    rows = [{"condition": row["condition"], "start": row["start"], "factor": factor, "n": row["n"],
             "variance": row["variance"].get(factor), "share": row["share"].get(factor)}
            for row in found["variance"] for factor in row["variance"] or ("cannot be told",)]  # fmt: skip
    return Table(
        "variance", "Which seed the spread of test accuracy comes from",
        ("start", "seed", "runs", "standard deviation", "share of variance"),
        of(rows, lambda row: (row["start"], row["factor"], str(row["n"]),
                              number(row["variance"], lambda v: f"{v**0.5:.4f}"),
                              number(row["share"], "{:.0%}".format))),
        "An order of size: with 3 levels a variance can by chance be seen as 0.03 to 3.7 times what it is.",
        (0, 1, 2, 3, 4),
    )  # fmt: skip


def claims(found: Found) -> Table:
    rows = tuple(("", tuple(number(row[name], shown) for name in ("claim", "notebook", "ours", "verdict", "n")))
                 for row in found.get("claims", ()))  # fmt: skip
    return Table("claims", "The notebook's claims", ("claim", "notebook", "ours", "verdict", "n"), rows)


def problems(found: Found) -> Table:
    """Runs that are not finished. Those without a folder are too many to be named."""
    rows = [run for run in found["runs"] if run["state"] not in ("finished", "missing")]
    return Table(
        "problems", "Runs that failed, are unfinished or broken", ("start", "seed", "run", "state", "reason"),
        of(rows, lambda run: (run["start"], run["seed"], run["name"], run["state"], run["reason"] or "-")),
        narrow=(0, 1, 3, 4),
    )  # fmt: skip


# Cells


def of(rows: Sequence[Found], cells: Callable[[Found], tuple[str, ...]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """In the order in which conditions first come up, each condition's rows together."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(label(row["condition"]), []).append(cells(row))
    return tuple((name, row) for name, group in groups.items() for row in group)


def number(value: Any, form: Callable[[Any], str] = "{:.3f}".format, none: str = "-") -> str:
    return none if value is None else form(value)


def between(interval: Sequence[float | None] | None, form: Callable[[float], str] = "{:.3f}".format,
            none: str = "-") -> str:  # fmt: skip
    return none if interval is None else of_interval(interval, form)


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


# The terminal


def terminal(found: Found) -> list[str]:
    """The tables in 80 columns, and the answer last."""
    lines: list[str] = []
    for table in tables(found):
        if table.narrow:
            lines += [*wrap(table.title), *block(table), ""]
        elif table.name == "claims":  # sentences, no columns
            lines += [*wrap(table.title), *(line for _, row in table.rows for line in sentence(*row)), ""]
    for note in found["notes"]:
        lines += wrap(note)
    return [*lines, *wrap(found["answer"])]


def wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def sentence(claim: str, notebook: str, ours: str, verdict: str, n: str) -> list[str]:
    """A row of `claims`."""
    return textwrap.wrap(f"{verdict} (n {n}): {claim}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def block(table: Table) -> list[str]:
    """The narrow columns, without the last ones where names are so long that they do not fit."""
    columns = list(table.narrow)
    while True:
        cells = [[table.head[i] for i in columns], *([row[i] for i in columns] for _, row in table.rows)]
        if table.head[columns[-1]] == "reason":
            room = WIDTH - sum(max(map(len, column)) + 2 for column in list(zip(*cells))[:-1])
            cells = [[*row, last if len(last) <= room else last[: max(0, room - 1)] + "…"] for *row, last in cells]
        widths = [max(map(len, column)) for column in zip(*cells)]
        if sum(widths) + 2 * (len(widths) - 1) <= WIDTH or len(columns) == 1:
            break
        columns.pop()
    lines, before = [], ""
    for name, row in [("", cells[0]), *((name, row) for (name, _), row in zip(table.rows, cells[1:]))]:
        if name != before:
            lines += wrap(f"{name}:")
        before = name
        lines.append("  ".join(f"{cell:<{width}}" if i == 0 or table.name == "problems" else f"{cell:>{width}}"
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip()[:WIDTH])  # fmt: skip
    return lines

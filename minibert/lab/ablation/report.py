"""A grid's report as files: a page, the same in Markdown, its pictures, and the numbers behind them.

FOLDER/report.html    one file, nothing from elsewhere    report.md, figures/*.svg    the same tables and pictures
FOLDER/findings.json  all that was found                  data/*.csv                  the same, as tables of raw numbers
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minibert.errors import InputError, Say
from minibert.files import replace_file
from minibert.lab.ablation.figures import Picture, inline, pictures
from minibert.lab.ablation.findings import Found, find
from minibert.lab.ablation.grid import shown
from minibert.lab.ablation.results import Grid, read_grid
from minibert.lab.ablation.text import Table, tables, terminal
from minibert.progress import duration

# (heading, its tables, its pictures); a picture belongs where its name begins so.
SECTIONS = (
    ("Every seed", (), ("seeds",)),
    ("Tables", ("best", "expected", "settings", "matched"), ()),
    ("Curves", (), ("curves",)),
    ("Rates", (), ("rates",)),
    ("Epochs and examples to match", ("epochs", "examples"), ("epochs", "examples")),
    ("Where the spread comes from", ("variance",), ()),
    ("Inside the network", (), ("parts",)),
    ("The notebook's claims", ("claims",), ()),
    ("Runs without a result", ("problems",), ()),
)


class NotInstalledError(InputError):
    """Packages of the extra `report` are missing."""


def write_report(grid: Grid, found: Found, out: Path | str | None = None) -> Path:
    """Write all files of the report into `out` (None: report/ in the grid's folder); an older report is replaced.

    Returns:
        The page.

    Raises:
        InputError: matplotlib or jinja2 is not installed; `out` holds something else.
    """
    try:
        import jinja2
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise NotInstalledError("a report needs matplotlib and jinja2: pip install -e '.[report]'") from None
    out = grid.path / "report" if out is None else Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / "findings.json").is_file():
        raise InputError(f"--out {out} holds something that is no report; choose another folder")

    drawn, written = pictures(found), tables(found)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), undefined=jinja2.StrictUndefined,
        autoescape=lambda name: name == "report.html.j2", trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"inline": inline, "cell": cell}
    content = {"found": found, "sections": sections(written, drawn), "facts": facts(found)}
    files = {"findings.json": json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"}
    files |= {f"figures/{picture.name}.svg": picture.svg for picture in drawn}
    files |= {f"data/{name}.csv": text_of(rows) for name, rows in data(found).items() if rows}
    for name in ("report.md", "report.html"):
        files[name] = environment.get_template(f"{name}.j2").render(content)

    for old in (*out.glob("figures/*.svg"), *out.glob("data/*.csv")):
        if f"{old.parent.name}/{old.name}" not in files:
            old.unlink()
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(out / name, lambda beside: beside.write_text(text, encoding="utf-8"))  # noqa: B023
    return out / "report.html"


def tell(path: Path | str, baseline: str | None = None, out: Path | str | None = None, say: Say = print) -> None:
    """Say what a grid found, write its page, and end with the answer in words and where the page lies.

    Raises:
        InputError: no grid there; as write_report, but for packages that are missing: then there is no page.
    """
    grid = read_grid(path)
    found = find(grid, baseline)
    for line in terminal(found):
        say(line)
    try:
        say(f"the page: {write_report(grid, found, out)}")
    except NotInstalledError as error:
        if out is not None:
            raise
        say(f"no page: {error}")


def sections(written: list[Table], drawn: list[Picture]) -> list[tuple[str, list[Table], list[Picture]]]:
    """Those with something in them."""
    made = [
        (heading, [table for name in names for table in written if table.name == name],
         [picture for picture in drawn if picture.name.startswith(starts)] if starts else [])
        for heading, names, starts in SECTIONS
    ]  # fmt: skip
    return [section for section in made if section[1] or section[2]]


def facts(found: Found) -> list[tuple[str, list[str]]]:
    """By what the runs were made."""
    about, counts, seconds = found["about"], found["counts"], found["about"]["seconds"]
    runtime = [f"{duration(seconds['sum'])} of training in all, {duration(seconds['mean'])} a run, the longest"
               f" {duration(seconds['longest'])}"] if counts["finished"] else []  # fmt: skip
    rows = [
        ("runs", [", ".join(f"{count} {state}" for state, count in counts.items() if count)]),
        ("runtime", runtime),
        ("hardware", about["devices"]),
        ("precision", about["precisions"]),
        ("versions", [f"{name} {', '.join(values)}" for name, values in about["versions"].items()]),
        ("commit", about["commits"]),
        ("checkpoint, SHA-256", about["checkpoints"]),
        ("data", about["summaries"]),
        ("data, SHA-256", [f"{name} {digest}" for name, digest in about["data"].items()]),
        ("settings of all runs", [", ".join(f"{name} {shown(value)}" for name, value in found["fixed"].items())]),
    ]
    return [(name, [value for value in values if value]) for name, values in rows if any(values)]


# Numbers


def data(found: Found) -> dict[str, list[Found]]:
    """The raw numbers behind tables and pictures, by file."""
    return {
        "runs": found["runs"],
        "settings": found["settings"],
        "matched": [without(row, "epochs") for row in found["matched"]],
        "chosen": [without(row, "expected_best") for row in found["chosen"]],
        "best": [without(row, "epochs") for row in found["best"]],
        "expected": [{"condition": row["condition"], "start": row["start"], "k": k, "val": value}
                     for row in found["chosen"] for k, value in enumerate(row["expected_best"], 1)],
        "epochs": [{"rates": rates, "condition": row["condition"], "start": row["start"], **result}
                   for rates in ("matched", "best") for row in found[rates] for result in row["epochs"]],
        "examples": found["examples"],
        "variance": [{"condition": row["condition"], "start": row["start"], "n": row["n"], "factor": factor,
                      "variance": value, "share": row["share"][factor]}
                     for row in found["variance"] for factor, value in row["variance"].items()],
        "curves": [{"condition": row["condition"], "start": row["start"], "n": row["n"], "split": split, "epoch": epoch,
                    **{key: values[i] for key, values in row[split].items() if values}}
                   for row in found["curves"] for split in ("train", "val") for i, epoch in enumerate(row["epochs"])],
        "rates": [{"condition": row["condition"], "start": row["start"], "lr": lr, "warmup": warmup,
                   "val": row["val"][y][x], "lost": row["lost"][y][x]}
                  for row in found["heatmaps"] for y, warmup in enumerate(row["warmup"])
                  for x, lr in enumerate(row["lr"])],
        "parts": [{"condition": row["condition"], "start": row["start"], "part": part, "epoch": epoch,
                   "gradient": row["gradient"][i][j], "cls": row["cls"][i][j]}
                  for row in found["parts"] for i, part in enumerate(row["names"])
                  for j, epoch in enumerate(row["epochs"])],
        "claims": found.get("claims", []),
    }  # fmt: skip


def without(row: Found, key: str) -> Found:
    return {name: value for name, value in row.items() if name != key}


def text_of(rows: list[Found]) -> str:
    """CSV, a column a number: test.mean, test.interval.low, and so on."""
    lines = [dict(flat("", row)) for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{name}.{key}" if name and name != "condition" else str(key), inner)
    elif name.split(".")[-1] == "interval" and value is not None:
        yield from ((f"{name}.low", value[0]), (f"{name}.high", value[1]))
    else:
        yield name, " ".join(map(str, value)) if isinstance(value, list) else value


def cell(text: str) -> str:
    """For a table in Markdown."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

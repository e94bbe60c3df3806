"""python -m minibert predict | explain | ablate | report | plot | probe | parity | bench | fetch"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `guarded` listens, Ctrl-C ends the imports without a traceback

import argparse
import functools
import json
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from minibert import __version__
from minibert.commands import guarded
from minibert.config import ALONE, PRECISIONS, TrainConfig, add_flags
from minibert.errors import InputError, Stopped

FIELDS = [entry.name for entry in fields(TrainConfig) if entry.name not in ALONE]  # of a grid
# What a probe takes of a run's settings.
SETTINGS = (
    "init", "model", "pool", "head", "data", "charset", "text_column", "label_column", "text_b_column", "delimiter",
    "max_examples", "encoding", "channels", "steps", "grid_cells", "max_length", "seed",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m minibert")
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    add_predict_flags(verbs.add_parser("predict", help="a run's answers for new texts or windows"))
    add_explain_flags(verbs.add_parser("explain", help="what in a text or window moved a run's answer"))
    ablate = verbs.add_parser("ablate", help="run a grid of settings and seeds, and say what the starts were worth")
    add_ablate_flags(ablate)
    fetch = verbs.add_parser("fetch", help="put a checkpoint into weights/, to be had without a network from then on")
    fetch.add_argument("name", metavar="NAME", help="minilm-l6, bert-base-uncased, or any BERT on the hub")
    parity = verbs.add_parser("parity", help="compare every component with a reference; exit code 1 where one differs")
    parity.add_argument("--model", metavar="NAME_OR_PATH", default="auto", help="as in train.py (default: auto)")
    parity.add_argument("--against", metavar="NAME", help="transformers or formulas (default: the first that is there)")
    probe = verbs.add_parser("probe", help="look at a network before its first step: signal, gradients, drift")
    add_flags(probe, SETTINGS)
    probe.add_argument("--inputs", metavar="N", type=int, default=24, help="training examples (default: %(default)s)")
    probe.add_argument("--json", action="store_true", help="all figures, and the whole manifest, as JSON")
    probe.add_argument("--out", metavar="FILE", type=Path, help="also a picture, .svg: cosines by layer, drift")
    plot = verbs.add_parser("plot", help="draw the curves of one or a few runs")
    plot.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of runs, also while they run")
    plot.add_argument("--loss", action="store_true", help="the loss, too, below the accuracy")
    plot.add_argument("--out", metavar="FILE", type=Path, help="a picture instead, .svg or .png (needs matplotlib)")
    plot.add_argument("--ascii", action="store_true", help="without characters beyond ASCII")
    bench = verbs.add_parser("bench", help="time training and evaluation beside the reference implementation")
    bench.add_argument("--cases", metavar="A,B", help="of the names it prints (default: all; job takes minutes)")
    bench.add_argument("--precision", metavar="NAME", default="auto", help="auto, fp32, bf16 (default: auto)")
    bench.add_argument("--device", metavar="NAME", default="auto", help="cpu, cuda; auto: cuda where there is one")
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="turns that the two sides take (default: 3)")
    bench.add_argument("--growth", action="store_true", help="instead: how a step grows with batch, layers, vocabulary")
    bench.add_argument("--memory", action="store_true", help="instead: the memory of a run, foretold and measured")
    bench.add_argument("--json", action="store_true", help="all figures as JSON")
    report = verbs.add_parser("report", help="what a grid of runs says: tables, and a page with pictures")
    report.add_argument("folder", metavar="DIR", help="the grid's, as ablate names it")
    report.add_argument("--baseline", metavar="START", help="the start that others are compared with (default: random)")
    report.add_argument("--out", metavar="FOLDER", help="where the page goes (default: DIR/report)")
    given = parser.parse_args(arguments)
    if given.verb is None:
        parser.print_help(sys.stderr)
        return 2
    run = {"predict": run_predict, "explain": run_explain, "ablate": run_ablate, "report": run_report, "plot": run_plot,
           "probe": run_probe, "parity": run_parity, "bench": run_bench, "fetch": run_fetch}  # fmt: skip
    return run[given.verb](given)


def add_predict_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-",
        help="one text a line (.txt), a column text (.csv, .tsv, .jsonl), an array x (.npz); -: texts from standard"
        " input (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", type=Path, help="a .csv or .jsonl file (default: to standard output)")
    parser.add_argument("--json", action="store_true", help="JSON lines to standard output instead of CSV")
    add_file_flags(parser)


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """How a file of new texts is read."""
    parser.add_argument("--charset", metavar="NAME", default="utf-8", help="encoding of the texts (default: utf-8)")
    own = parser.add_argument_group("columns of the file (default: as in the run's own data)")
    own.add_argument("--text-column", metavar="NAME", help="of texts")
    own.add_argument("--text-b-column", metavar="NAME", help="of second texts")
    own.add_argument("--delimiter", metavar="X", help="between cells: one character, tab, or auto")


def columns_given(given: argparse.Namespace) -> dict[str, str]:
    columns = {name: getattr(given, name) for name in ("text_column", "text_b_column", "delimiter")}
    return {name: value for name, value in columns.items() if value is not None}


def run_predict(given: argparse.Namespace) -> int:
    from minibert.predict import predict_file

    predict_file(given.run, given.file, given.out, given.charset, given.json, columns_given(given))
    return 0


def add_explain_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument("text", metavar="TEXT|FILE", nargs="?", help="a text; or a file, or -, as predict takes it")
    parser.add_argument("--text-b", metavar="TEXT", help="the second text, where the run has pairs")
    parser.add_argument("--row", metavar="N", type=int, help="instead: row N of the run's data, a validation row")
    parser.add_argument("--label", metavar="NAME", help="the class that is asked about (default: the predicted one)")
    parser.add_argument("--method", choices=("integrated", "gradient"), default="integrated", metavar="NAME",
                        help="integrated (gradients) or gradient (x input) (default: %(default)s)")  # fmt: skip
    parser.add_argument("--steps", metavar="N", type=int, default=50, help="of integrated gradients (default: 50)")
    parser.add_argument(
        "--attention", metavar="LAYER[.HEAD]", help="instead: what a layer's heads look at; needs --out"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="a page, .html; with --attention also .svg")
    add_file_flags(parser)


def run_explain(given: argparse.Namespace) -> int:
    if given.steps < 1:
        raise InputError(f"--steps {given.steps}: it must be at least 1")
    from minibert.explain import explain_command

    explain_command(
        given.run, given.text, pair=given.text_b, row=given.row, label=given.label, attention=given.attention,
        steps=given.steps if given.method == "integrated" else 0, out=given.out, charset=given.charset,
        columns=columns_given(given),
    )  # fmt: skip
    return 0


def add_ablate_flags(parser: argparse.ArgumentParser) -> None:
    """The grid's own flags; then those of train.py, which take several values each."""
    parser.usage = "%(prog)s [--preset NAME] [--SETTING VALUE ...] ..."
    parser.description = (
        "Each setting takes one value or several; the grid is their product, times seeds. What is not given is as in"
        " the preset. The same command again goes on where it stands."
    )
    own = parser.add_argument_group("grid")
    own.add_argument("--preset", metavar="NAME", default="default",
                     help="a grid that comes with it: default, examples, rates, stuck, notebook")  # fmt: skip
    own.add_argument("--grid", metavar="FILE", type=Path, help="a grid of your own, in TOML, in place of a preset")
    own.add_argument("--seeds", metavar="N", type=int, help="seeds 0 to N-1 for each setting (default: the preset's)")
    own.add_argument("--out", metavar="DIR", type=Path, help="the grid's folder (default: runs/ablate-PRESET)")
    own.add_argument(
        "--jobs", metavar="N", type=int, help="runs at a time (default: one a core, one on a GPU; on Slurm 256)"
    )
    own.add_argument("--scale", metavar="X", type=float, default=1.0, help="shrink epochs and examples by this factor")
    own.add_argument("--baseline", metavar="START", help="the start that others are compared with")
    own.add_argument(
        "--dry-run", action="store_true", help="only print the runs, and about how long they take or what is submitted"
    )
    own.add_argument("--keep-weights", action="store_true", help="keep each run's model, not only its predictions")
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--launcher", metavar="{local,slurm}", default="local", help="where the runs are done (default: %(default)s)"
    )
    for name, metavar, kind, text in (
        ("partition", "NAME", str, "Slurm's"),
        ("account", "NAME", str, "who pays"),
        ("time", "MINUTES", int, "of a job; a run that is not done goes back into the queue (default: 60)"),
        ("gpus", "N", int, "of a job (default: 0)"),
        ("cpus", "N", int, "of a job, and so threads (default: 1)"),
        ("memory", "GB", float, "of a job (default: the cluster's)"),
    ):
        cluster.add_argument(f"--{name}", metavar=metavar, type=kind, default=argparse.SUPPRESS, help=text)
    cluster.add_argument(
        "--slurm-options", metavar="KEY=VALUE", nargs="+", dest="options", default=argparse.SUPPRESS,
        help="more of sbatch's options, as in qos=low constraint=a100 exclusive",
    )  # fmt: skip
    cluster.add_argument("--cancel", action="store_true", help="cancel the grid's jobs, and run nothing")
    add_flags(parser, FIELDS, many=True)


def launcher_of(given: argparse.Namespace) -> Any:
    """What --launcher names; None for local ones, which are counted once the grid is known."""
    from minibert.lab.ablation.slurm import Slurm

    options = {entry.name: getattr(given, entry.name) for entry in fields(Slurm) if hasattr(given, entry.name)}
    jobs = options.pop("jobs")
    if given.launcher == "slurm":
        return Slurm(**options, **({} if jobs is None else {"jobs": jobs}))
    if given.launcher != "local":
        raise InputError(f"--launcher {given.launcher}: it must be local or slurm")
    if options or given.cancel:
        name = next((f"--{name}" for name in options), "--cancel").replace("--options", "--slurm-options")
        raise InputError(f"{name} is for --launcher slurm")
    return None


def run_ablate(given: argparse.Namespace) -> int:
    from minibert.lab.ablation.ablate import ablate
    from minibert.lab.ablation.grid import check_seeds, preset, read_grid_file
    from minibert.lab.ablation.local import Local

    values = {name: getattr(given, name) for name in FIELDS if hasattr(given, name)}
    if given.seeds is not None and "seed" in values:
        raise InputError("--seeds and --seed: give one of them")
    grid = preset(given.preset) if given.grid is None else read_grid_file(given.grid)
    grid = grid.override(values)
    if "init" in values:
        grid = replace(grid, title="", question="")  # the preset's question was about its own starts
    if given.baseline is not None:
        grid = replace(grid, baseline=given.baseline)
    if given.seeds is not None:
        check_seeds(given.seeds)
        grid = replace(grid, seeds=given.seeds)
    stem = given.preset if given.grid is None else given.grid.stem
    stem += "".join(f"-{Path(data).stem}" for data in values.get("data", []))
    out = given.out or Path("runs") / f"ablate-{stem}"
    command = " ".join(["python -m minibert", *map(shlex.quote, sys.argv[1:])])
    launcher = launcher_of(given)
    if given.cancel:
        launcher.cancel(out)
        return 0
    if launcher:
        launcher.check(grid)
    try:
        failed = ablate(
            grid, out, jobs=None if launcher else given.jobs, scale=given.scale, own_examples="examples" in values,
            dry_run=given.dry_run, keep_weights=given.keep_weights, command=command, launcher=launcher,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped((launcher or Local).stopped) from None
    if not given.dry_run:
        from minibert.lab.ablation.report import tell

        tell(out, given.baseline)
    return 1 if failed else 0


def run_fetch(given: argparse.Namespace) -> int:
    from minibert import sources

    sources.fetch(given.name)
    return 0


def run_parity(given: argparse.Namespace) -> int:
    from minibert import sources
    from minibert.lab.parity import format_rows, parity

    source = sources.resolve(given.model)
    name, rows = parity(source.path, given.against)
    print(f"{source.name} {source.sha256[:12]} beside {name}\n{format_rows(rows)}")
    return 0 if all(row.ok for row in rows) else 1


def run_probe(given: argparse.Namespace) -> int:
    config = TrainConfig(**{name: value for name, value in vars(given).items() if name in SETTINGS})
    from minibert.errors import silent
    from minibert.files import write_output
    from minibert.lab import pictures
    from minibert.lab.drawing import check_matplotlib
    from minibert.lab.probe import format_probe, probe
    from minibert.lines import tell
    from minibert.pages import check_page

    if given.out is not None:
        check_page(given.out, (".svg",))
        check_matplotlib()
    result = probe(config, given.inputs, say=silent if given.json else tell)
    if given.out is not None:
        text = pictures.probe(result)
        write_output(given.out, lambda beside: beside.write_text(text, encoding="utf-8"))
    print(json.dumps(result, indent=1) if given.json else format_probe(result))
    return 0


def run_plot(given: argparse.Namespace) -> int:
    from minibert.lab import plot

    if given.out is not None:
        plot.check_picture(given.out)
    runs, metrics = plot.read(given.runs), ["accuracy", "loss"] if given.loss else ["accuracy"]
    if given.out is not None:
        plot.picture(runs, metrics, given.out)
        print(given.out)
    else:
        print("\n".join(plot.in_terminal(runs, metrics, given.ascii or plot.must_be_plain(sys.stdout))))
    return 0


def run_bench(given: argparse.Namespace) -> int:
    from minibert.lab.bench import bench, growth

    names = given.cases.split(",") if given.cases else None
    if given.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {given.device}: it must be one of auto, cpu, cuda")
    if given.rounds < 1:
        raise InputError(f"--rounds {given.rounds}: it must be at least 1")
    if given.precision not in PRECISIONS[:3]:
        raise InputError(f"--precision {given.precision}: it must be one of {', '.join(PRECISIONS[:3])}")
    say = functools.partial(print, file=sys.stderr if given.json else sys.stdout, flush=True)
    if given.growth:
        result = growth(given.precision, say)
    elif given.memory:
        from minibert.lab.memory import memory

        result = memory(say)
    else:
        result = bench(names, given.precision, given.rounds, say, given.device)
    if given.json:
        print(json.dumps(result, indent=1))
    return 0


def run_report(given: argparse.Namespace) -> int:
    from minibert.lab.ablation.report import tell

    tell(given.folder, given.baseline, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

"""python -m minibert fetch | parity | probe | bench | report"""

from __future__ import annotations

import argparse
import functools
import json
import sys

from minibert.commands import guarded
from minibert.config import PRECISIONS, TrainConfig, add_flags
from minibert.errors import InputError

# What a probe takes of a run's settings.
SETTINGS = ("init", "model", "pool", "data", "charset", "encoding", "channels", "steps", "grid_cells", "max_length",
            "seed")  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m minibert")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fetch | parity | probe | bench | report")
    fetch = verbs.add_parser("fetch", help="put a checkpoint into weights/, to be had without a network from then on")
    fetch.add_argument("name", metavar="NAME", help="minilm-l6, bert-base-uncased, or any BERT on the hub")
    parity = verbs.add_parser("parity", help="compare every component with a reference; exit code 1 where one differs")
    parity.add_argument("--model", metavar="NAME_OR_PATH", default="auto", help="as in train.py (default: auto)")
    parity.add_argument("--against", metavar="NAME", help="transformers or formulas (default: the first that is there)")
    probe = verbs.add_parser("probe", help="look at a network before its first step: signal, gradients, drift")
    add_flags(probe, SETTINGS)
    probe.add_argument("--inputs", metavar="N", type=int, default=24, help="training examples (default: %(default)s)")
    probe.add_argument("--json", action="store_true", help="all figures, and the whole manifest, as JSON")
    bench = verbs.add_parser("bench", help="time training and evaluation beside the reference implementation")
    bench.add_argument("--cases", metavar="A,B", help="of the names it prints (default: all; job takes minutes)")
    bench.add_argument("--precision", metavar="NAME", default="auto", help="auto, fp32, bf16 (default: auto)")
    bench.add_argument("--device", metavar="NAME", default="auto", help="cpu, cuda; auto: cuda where there is one")
    bench.add_argument("--rounds", type=int, default=3, metavar="N", help="turns that the two sides take (default: 3)")
    bench.add_argument("--growth", action="store_true", help="instead: how a step grows with batch, layers, vocabulary")
    bench.add_argument("--json", action="store_true", help="all figures as JSON")
    report = verbs.add_parser("report", help="what a grid of runs says: tables, and a page with pictures")
    report.add_argument("folder", metavar="DIR", help="the grid's, as ablate names it")
    report.add_argument("--baseline", metavar="START", help="the start that others are compared with (default: random)")
    report.add_argument("--out", metavar="FOLDER", help="where the page goes (default: DIR/report)")
    given = parser.parse_args(arguments)
    run = {"fetch": run_fetch, "parity": run_parity, "probe": run_probe, "bench": run_bench, "report": run_report}
    return run[given.verb](given)


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
    from minibert.lab.probe import format_probe, probe

    result = probe(config, given.inputs, say=(lambda line: None) if given.json else print)
    print(json.dumps(result, indent=1) if given.json else format_probe(result))
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
    else:
        result = bench(names, given.precision, given.rounds, say, given.device)
    if given.json:
        print(json.dumps(result, indent=1))
    return 0


def run_report(given: argparse.Namespace) -> int:
    from minibert.lab.ablation.findings import find
    from minibert.lab.ablation.report import write_report
    from minibert.lab.ablation.results import read_grid
    from minibert.lab.ablation.text import terminal

    grid = read_grid(given.folder)
    found = find(grid, given.baseline)
    print("\n".join(terminal(found)))
    print(f"the page: {write_report(grid, found, given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

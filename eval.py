"""Validation and test report of a run, or several runs side by side: python eval.py runs/NAME ..."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `guarded` listens, Ctrl-C ends the imports without a traceback

import argparse
import json
import sys
from pathlib import Path

from minibert.commands import guarded
from minibert.errors import InputError
from minibert.files import check_output, write_output


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", metavar="DIR", nargs="+", type=Path,
                        help="the run's folder, as train.py's last line names it; of several, a table")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--predictions", metavar="FILE.csv", type=Path, help="also write one row an example")
    parser.add_argument("--baseline", metavar="words|forest", help="also what does without BERT reach (scikit-learn)")
    given = parser.parse_args(arguments)
    if given.predictions is not None:
        check_output(given.predictions, "--predictions")
    if len(given.runs) > 1:
        compare(given)
        return
    from minibert.engine.processes import joined  # imports torch, which --help need not wait for
    from minibert.evaluation import format_report
    from minibert.lab.baseline import baseline, check_kind, format_baseline
    from minibert.training.outcome import evaluate_run, write_predictions

    if given.baseline is not None:
        check_kind(given.baseline)  # before a model is loaded
    (path,) = given.runs
    with joined() as processes:
        reports, rows = evaluate_run(path)
    if processes.rank:
        return  # the first one speaks
    found = None
    if given.baseline is not None:
        rows = list(rows) if given.predictions is not None else rows
        found = baseline(path, given.baseline, rows)
    if given.json:
        more = {} if found is None else {"baseline": found}
        print(json.dumps(reports | more, indent=2))
    else:
        parts = [format_report(f"{name:<10}", reports[key]) for key, name in (("val", "validation"), ("test", "test"))]
        print("\n\n".join([*parts, *([] if found is None else [format_baseline(found, reports)])]))
    if given.predictions is not None:
        write_predictions(given.predictions, rows, write_output)


def compare(given: argparse.Namespace) -> None:
    """The reports of several runs, as a table or as a list in JSON."""
    for name in ("predictions", "baseline"):
        if getattr(given, name) is not None:
            raise InputError(f"--{name} is about one run; got {len(given.runs)}")
    from minibert.comparison import format_comparison, score
    from minibert.engine.processes import joined

    with joined() as processes:
        runs = [score(path) for path in given.runs]
    if processes.rank:
        return
    if given.json:
        entries = [{"run": str(run.path), "init": run.config.init, "lr": run.config.lr} | run.reports for run in runs]
        print(json.dumps(entries, indent=2))
    else:
        print(format_comparison(runs))


if __name__ == "__main__":
    sys.exit(guarded(main, evaluates=True))

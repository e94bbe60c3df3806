"""Validation and test report of a run: python eval.py runs/NAME"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from minibert.commands import guarded


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="DIR", type=Path, help="the run's folder, as train.py's last line names it")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--predictions", metavar="FILE.csv", type=Path, help="also write one row an example")
    given = parser.parse_args(arguments)
    from minibert.engine.processes import joined  # imports torch, which --help need not wait for
    from minibert.evaluation import format_report
    from minibert.training.outcome import evaluate_run, write_predictions

    with joined() as processes:
        reports, predictions = evaluate_run(given.run)
    if processes.rank:
        return  # the first one speaks
    if given.predictions is not None:
        write_predictions(given.predictions, predictions)
    if given.json:
        print(json.dumps(reports, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(format_report(f"{name:<10}", reports[key]) for key, name in
                          (("val", "validation"), ("test", "test"))))  # fmt: skip


if __name__ == "__main__":
    sys.exit(guarded(main))

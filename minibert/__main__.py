"""python -m minibert fetch | parity"""

from __future__ import annotations

import argparse
import sys

from minibert.commands import guarded


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m minibert")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fetch | parity")
    fetch = verbs.add_parser("fetch", help="put a checkpoint into weights/, to be had without a network from then on")
    fetch.add_argument("name", metavar="NAME", help="minilm-l6, bert-base-uncased, or any BERT on the hub")
    parity = verbs.add_parser("parity", help="compare every component with a reference; exit code 1 where one differs")
    parity.add_argument("--model", metavar="NAME_OR_PATH", default="auto", help="as in train.py (default: auto)")
    parity.add_argument("--against", metavar="NAME", help="transformers or formulas (default: the first that is there)")
    given = parser.parse_args(arguments)
    return {"fetch": run_fetch, "parity": run_parity}[given.verb](given)


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


if __name__ == "__main__":
    sys.exit(guarded(main))

"""Fine-tune a BERT classifier: python train.py --init pretrained --lr 1e-6 --warmup 0.1"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from minibert.commands import guarded
from minibert.config import TrainConfig, flag
from minibert.errors import InputError

TYPES = {"int": int, "float": float}


def parser() -> argparse.ArgumentParser:
    """A flag for each field of TrainConfig, under the heading that the field names, and --resume."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for entry in fields(TrainConfig):
        facts = dict(entry.metadata)
        name = facts.pop("group")
        group = groups.setdefault(name, parser.add_argument_group(name))
        if entry.default is not None:
            facts["help"] += f" (default: {'on' if entry.default is True else entry.default})"
        if entry.type == "bool":
            facts["action"] = argparse.BooleanOptionalAction
        else:
            facts["type"] = TYPES.get(entry.type, str)
        if "choices" not in facts and entry.type != "bool":
            facts["metavar"] = {"int": "N", "float": "X"}.get(entry.type, entry.name.upper())
        group.add_argument(flag(entry.name), dest=entry.name, default=argparse.SUPPRESS, **facts)
    groups["run"].add_argument("--resume", metavar="DIR", help="go on with a stopped run; its settings are its own")
    return parser


def main(arguments: list[str]) -> None:
    given = vars(parser().parse_args(arguments))
    folder = given.pop("resume")
    if folder is not None and given:
        raise InputError(f"--resume takes the run's own settings; leave out {', '.join(map(flag, given))}")
    config = TrainConfig(**given)
    from minibert.training.loop import resume, train  # imports torch, which --help need not wait for

    if folder is None:
        train(config)
    else:
        resume(Path(folder))


if __name__ == "__main__":
    sys.exit(guarded(main, "; go on with --resume and the run's folder, from its last whole epoch"))

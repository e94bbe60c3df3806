"""Fine-tune a BERT classifier: python train.py --init pretrained --lr 1e-6 --warmup 0.1"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minibert.commands import guarded
from minibert.config import TrainConfig, add_flags, flag
from minibert.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The flags of all settings, and --resume."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    groups = add_flags(parser)
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
    sys.exit(guarded(main))

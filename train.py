"""Fine-tune a BERT classifier: python train.py --init pretrained --lr 1e-6 --warmup 0.1"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `guarded` listens, Ctrl-C ends the imports without a traceback

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from minibert.commands import guarded
from minibert.config import TrainConfig, add_flags, flag
from minibert.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The flags of all settings, --resume and --quiet."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    groups = add_flags(parser)
    groups["run"].add_argument("--resume", metavar="DIR", help="go on with a stopped run; its settings are its own")
    groups["run"].add_argument(
        "--force", action="store_true", help="with --resume: also where its last bits may differ"
    )
    groups["run"].add_argument("--quiet", action="store_true", help="only the last lines: what came out, what is next")
    return parser


def main(arguments: list[str]) -> None:
    given = vars(parser().parse_args(arguments))
    folder, force, quiet = given.pop("resume"), given.pop("force"), given.pop("quiet")
    if folder is not None and given:
        raise InputError(f"--resume takes the run's own settings; leave out {', '.join(map(flag, given))}")
    if folder is None and force:
        raise InputError("--force goes with --resume")
    config = TrainConfig(**given)
    from minibert.errors import silent
    from minibert.lines import tell
    from minibert.progress import no_bars
    from minibert.training.run import resume, train  # imports torch, which --help need not wait for
    from minibert.training.screen import last_lines

    say = silent if quiet else tell
    with no_bars() if quiet else nullcontext():
        path = train(config, say) if folder is None else resume(Path(folder), say, force)
    for line in last_lines(path) if quiet else ():
        tell(line)


if __name__ == "__main__":
    sys.exit(guarded(main))

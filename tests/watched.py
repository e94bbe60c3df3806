"""train.py, watched: python tests/watched.py EVERY, then arguments of train.py.

Behind every so many steps, a line of JSON to standard output: the steps, the memory that is the process's own in bytes
(RssAnon: without files mapped into it), how many handles are open, and the seconds since the process began.
"""

import time

START = time.monotonic()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from minibert.commands import guarded  # noqa: E402
from minibert.training.keeper import Keeper  # noqa: E402


def own_memory() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def main() -> None:
    every, steps, look = int(sys.argv.pop(1)), 0, Keeper.look

    def watched(self: Keeper, *arguments: object) -> None:
        nonlocal steps
        look(self, *arguments)
        steps += 1
        if steps % every == 0:
            handles = len(os.listdir("/proc/self/fd"))
            print(json.dumps([steps, own_memory(), handles, time.monotonic() - START]))

    Keeper.look = watched
    sys.exit(guarded(train.main))


main()

"""A search guided by coverage: python tests/fuzz/guided.py A,B,C -runs=100000 [FOLDER of inputs]. Extra: `fuzz`.

A,B,C: targets, each searched in a fork of its own; or `all`. Options are libFuzzer's. An input that is no finding is
one that is read, or refused by an InputError, within 20 seconds and 2 GB.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["minibert", "zipfile", "csv", "numpy.lib"]):
    from targets import TARGETS, Target

from minibert.errors import InputError


def search(target: Target, options: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        target.lay(folder)

        def one(data: bytes) -> None:
            with suppress(InputError):
                target(folder, data)

        atheris.Setup([sys.argv[0], "-timeout=20", "-rss_limit_mb=2048", *options], one)
        atheris.Fuzz()


def main() -> None:
    failed = []
    for name in list(TARGETS) if sys.argv[1] == "all" else sys.argv[1].split(","):
        print(f"target {name}", flush=True)
        pid = os.fork()
        if not pid:
            search(TARGETS[name], sys.argv[2:])
        if os.waitpid(pid, 0)[1]:
            failed.append(name)
    sys.exit(f"findings in: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

"""A search guided by coverage: python tests/fuzz/guided.py TARGET -runs=100000 [FOLDER of inputs]. Extra: `fuzz`.

Options are libFuzzer's; `all` in place of a target: each in turn, in a process of its own. An input that is no finding
is one that is read, or refused by an InputError, within 20 seconds and 2 GB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["minibert", "zipfile", "csv", "numpy.lib"]):
    from targets import TARGETS

from minibert.errors import InputError


def main() -> None:
    name = sys.argv.pop(1)
    if name == "all":
        search = [sys.executable, __file__]
        failed = [name for name in TARGETS if subprocess.run([*search, name, *sys.argv[1:]]).returncode]
        sys.exit(f"findings in: {', '.join(failed)}" if failed else 0)
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        target.lay(Path(folder).resolve())

        def one(data: bytes) -> None:
            with suppress(InputError):
                target(Path(folder).resolve(), data)

        atheris.Setup([sys.argv[0], "-timeout=20", "-rss_limit_mb=2048", *sys.argv[1:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

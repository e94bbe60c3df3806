"""A search guided by coverage: python tests/fuzz/guided.py TARGET -runs=100000 [FOLDER of inputs]. Extra: `fuzz`.

Options are libFuzzer's. An input that is no finding is one that is read, or refused by an InputError.
"""

from __future__ import annotations

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
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        target.lay(Path(folder))

        def one(data: bytes) -> None:
            with suppress(InputError):
                target(Path(folder), data)

        atheris.Setup([*sys.argv, "-timeout=20", "-rss_limit_mb=2048"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

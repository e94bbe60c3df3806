"""Hostile files: whatever their bytes are, each is read or refused in one InputError. See docs/reliability.md.

A short search each time, with all that was found once (tests/fuzz/corpus.txt); `pytest -m fuzz -n0` searches long,
and tests/fuzz/guided.py by coverage.
"""

import faulthandler
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
from targets import TARGETS, Target

from minibert.errors import InputError

CORPUS = [line.split() for line in (Path(__file__).parent / "fuzz" / "corpus.txt").read_text().splitlines()]
SECONDS = 60
INPUTS = st.tuples(st.integers(0, 255), st.binary(max_size=60)).map(lambda parts: bytes([parts[0]]) + parts[1])


@pytest.fixture
def feed(tmp_path):
    """Lets a target read, and only an InputError pass; whoever takes too long ends the process."""

    def lay(name):
        target = TARGETS[name]
        target.lay(tmp_path)

        def read(data):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                with suppress(InputError):
                    target(tmp_path, data)
            finally:
                faulthandler.cancel_dump_traceback_later()

        return read

    return lay


def search(feed, name, count):
    read = feed(name)
    quiet = settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    quiet(given(INPUTS)(read))()


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_and_a_short_search(feed, name):
    read = feed(name)
    for target, data in CORPUS:
        if target == name:
            read(bytes.fromhex(data))
    search(lambda name: read, name, 25)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_a_long_search(feed, name):
    search(feed, name, 10_000)


@pytest.mark.parametrize("name", TARGETS)
def test_a_good_file_is_read(tmp_path, name):
    """Else the searches find nothing because nothing is ever read."""
    if name == "archive":
        pytest.skip("test_sources.py reads a good one: its files have known hashes")
    TARGETS[name].lay(tmp_path)
    TARGETS[name](tmp_path, b"\x70")


@pytest.mark.parametrize(
    "act",
    [lambda folder: (folder.parent / "out").write_text("x"), lambda folder: (folder.parent / "out").mkdir(),
     lambda folder: (folder / "in").rename(folder.parent / "out"), lambda folder: subprocess.run(["true"]),
     lambda folder: refuse("")],
)  # fmt: skip
def test_the_searches_see(tmp_path, act):
    """What is written outside, started, and refused without a word."""
    with pytest.raises(AssertionError):
        Target("in", bytes, act)(tmp_path, b"")
    assert Target("in", bytes, lambda folder: (folder / "out").write_text("x"))(tmp_path, b"") == 1


def refuse(text):
    raise InputError(text)

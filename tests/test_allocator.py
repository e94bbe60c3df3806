"""minibert/allocator.py, in processes of their own: what it sets is for all of one."""

import os
import platform
import subprocess
import sys

import pytest

from minibert.lab.ablation import worker

NAME = "THP_MEM_ALLOC_ENABLE"

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is spoken to")

# Two blocks of 24 MB: freed, they stay for the next turn (steady), or go back to the system, page by page (tidy).
FAULTS = """
import ctypes, os, resource
from minibert.allocator import steady, tidy
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def turn():
    blocks = [c.malloc(size) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        c.free(block)
size = 24 << 20
WORK
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""


def child(work, **variables):
    left = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "THP_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.replace("WORK", work)], env=left | variables, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    faults, huge = done.stdout.split()
    return int(faults), huge


@glibc
def test_what_was_freed_is_there_for_the_next_step():
    pages = 5 * 2 * (24 << 20) // os.sysconf("SC_PAGE_SIZE")  # if each block came anew from the system each time
    kept, huge = child("steady()")
    assert (kept < pages / 100, huge) == (True, "None")
    given_back, _ = child("steady(); tidy()")
    assert given_back > pages / 100


@glibc
def test_variables_that_set_something_else_change_nothing():
    assert child("steady()", MALLOC_ARENA_MAX="2", GLIBC_TUNABLES="glibc.cpu.x86_ibt=off")[0] < 1000


@glibc
def test_who_has_set_the_allocator_keeps_that():
    assert child("tidy()", MALLOC_MMAP_THRESHOLD_="33554432", MALLOC_TRIM_THRESHOLD_="200000000")[0] < 1000
    kept, huge = child("steady(evaluates=True)", MALLOC_MMAP_THRESHOLD_="1000000", THP_MEM_ALLOC_ENABLE="0")
    assert (kept > 1000, huge) == (True, "0")


@pytest.mark.parametrize(("evaluates", "huge"), [(True, "1"), (False, "None")])
def test_evaluation_has_huge_pages_and_training_does_not(evaluates, huge):
    left = {name: value for name, value in os.environ.items() if name != NAME}
    script = "import os; from minibert.commands import guarded; "
    script += f"guarded(lambda _: print(os.environ.get({NAME!r})), evaluates={evaluates})"
    done = subprocess.run([sys.executable, "-c", script], env=left, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == huge


@glibc
def test_who_imports_minibert_keeps_the_allocator_that_was():
    faults, huge = child("import minibert, minibert.training.run")
    assert (faults > 1000, huge) == (True, "None")


def test_each_order_of_a_worker_begins_steady(tmp_path, monkeypatch):
    """The run before may have left the allocator tidy."""
    done = []
    monkeypatch.setattr(worker, "steady", lambda: done.append("steady"))
    monkeypatch.setattr(worker, "take", lambda *order: done.append("take"))
    monkeypatch.setattr(worker.os, "dup2", lambda *descriptors: None)
    for _ in range(2):
        worker.perform({"grid": str(tmp_path), "name": "a", "settings": {}, "keep_weights": False})
    assert done == ["steady", "take"] * 2

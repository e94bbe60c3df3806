"""How glibc keeps the memory that each step frees and asks for again. On other systems nothing is done.

It holds for the whole process, so `steady` is for commands alone: a program that imports minibert decides for itself.
Settings made through glibc's own variables are kept.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

MMAP, TRIM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt

# Any of glibc's variables that sets one of the two, or ends its own rule for both.
OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def steady(evaluates: bool = False) -> None:
    """Blocks of up to 32 MB are kept for the next step. glibc's own rule ends there, too, but only once blocks of that
    size were freed, and gives the heap's end back before.

    Args:
        evaluates: this process, eval.py's, trains nothing. Large tensors then lie in huge pages, where blocks of many
            sizes leave fewer holes: a third less memory. Training would take about a quarter more (docs/log.md). It
            has to be said before torch makes its first tensor.
    """
    if evaluates:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's
    mallopt(MMAP, 32 << 20)
    mallopt(TRIM, 64 << 20)


def tidy() -> None:
    """From now on blocks of a megabyte and more are given back as soon as they are free: less memory, more time."""
    mallopt(MMAP, 1 << 20)
    mallopt(TRIM, 1 << 17)


def mallopt(what: int, size: int) -> None:
    chosen = any(name in os.environ for name in OWN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not chosen:
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(what, size)

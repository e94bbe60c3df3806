"""How glibc keeps the memory that each step frees and asks for again. Of other systems nothing is asked.

It is for the whole process, so `steady` is for commands alone: whoever imports minibert has a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

MMAP, TRIM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt


def steady(evaluates: bool = False) -> None:
    """Blocks of up to 32 MB are kept for the next step. glibc's own rule ends there, too, but only once blocks of that
    size were freed, and gives the heap's end back before. Who has set glibc's allocator by its variables keeps that.

    Args:
        evaluates: this process trains nothing. Large tensors then lie in huge pages, where blocks of many sizes leave
            fewer holes: a third less memory. In training the same would take up to a quarter more (docs/log.md). It
            has to be said before torch makes its first tensor.
    """
    if evaluates:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        mallopt(MMAP, 32 << 20)
        mallopt(TRIM, 64 << 20)


def tidy() -> None:
    """From now on blocks of a megabyte and more are given back as soon as they are free: less memory, more time."""
    mallopt(MMAP, 1 << 20)
    mallopt(TRIM, 1 << 17)


def mallopt(what: int, size: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(what, size)

"""How glibc keeps the memory that a training frees and asks for again in every step. Of other systems nothing is asked.

Both are for the whole process, so `steady` is for commands alone: whoever imports minibert has a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

MMAP, TRIM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt


def steady() -> None:
    """Before torch makes its first tensor: blocks of up to 32 MB are kept for the next step, and large ones lie in huge
    pages. These sizes are where glibc's own rule ends after a while, often later than a short run: docs/log.md.

    Who has set glibc's allocator by its variables keeps that.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's: tensors of 2 MB and more are aligned for them
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

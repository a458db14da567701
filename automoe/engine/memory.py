"""The C library's memory on a CPU: what a training step frees stays with the process, for the next step.

By default glibc gives large blocks back to the system when they are freed (those of more than 32 MB always, smaller
ones whenever the top of the heap is free), and the system hands them out again page by page, each zeroed. That was an
eighth of a training step.
"""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Keep freed memory in this process from now on. False where the C library is not glibc and nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))

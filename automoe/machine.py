"""What this process may use of the machine."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores this process may use (a container's or a batch system's share, not the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

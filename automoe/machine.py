"""What this process may use of the machine."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores this process may use (a container's or a batch system's share, not the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX): elsewhere it would be slower."""
    import torch

    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, name, lambda: False)():
            return True
    return False

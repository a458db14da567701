"""What this process may use of the machine, and processes beside it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


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


def one_core_environment() -> dict[str, str]:
    """Environment variables for a process that is one of as many as there are cores, and works on pictures: no threads
    beside its own, and freed pictures are kept for the next ones. What is set already stays."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "LP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # glibc would give every picture-sized array back to the system and fetch it again: a third of the time.
    wanted |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 29)}
    return wanted | {name: os.environ[name] for name in wanted if name in os.environ}


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Have PyTorch compute with one thread meanwhile."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def worker_processes(count: int, begin: Callable[[], None]) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes that each use one core, and call `begin` first. Where the block raises, or is interrupted, they
    are ended at once, in the middle of what they do. A signal from the keyboard is for the one that started them."""
    before = {process.pid for process in multiprocessing.active_children()}
    variables, kept = one_core_environment(), dict(os.environ)
    os.environ.update(variables)
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin_worker, (begin,))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            if process.pid not in before:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name in variables:
            if name in kept:
                os.environ[name] = kept[name]
            else:
                del os.environ[name]


def _begin_worker(begin: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    begin()


def end_with_parent() -> None:
    """Have this process get SIGTERM when the one that started it ends, however that comes about (Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

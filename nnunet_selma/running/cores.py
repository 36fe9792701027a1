"""Threads, loading processes and memory of a training on a CPU, chosen so that they do not get in each other's way."""

import ctypes
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MOST_WORKERS = 12
"""As many loading processes as nnU-Net starts at most."""
_CORES_PER_WORKER = 4
"""One core loads patches for three that compute; fewer cores load between the steps."""
# parameters of glibc's mallopt
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 2**28


@dataclass(frozen=True)
class Share:
    """How the cores are shared out."""

    cores: int
    threads: int
    """Compute threads of the training process."""
    workers: int
    """Processes that load patches for training; 0 loads them between the steps, in the training process. nnU-Net adds half as many for
    validation, which rest while training loads."""

    def __str__(self) -> str:
        """One line for a log."""
        loading = f"{self.workers} loading process(es)" if self.workers else "patches loaded between the steps"
        return f"{self.cores} cores: {self.threads} compute threads, {loading}"


def share_cores(cores: int, environment: Mapping[str, str]) -> Share:
    """Threads and loading processes that together are no more than the cores; OMP_NUM_THREADS and nnUNet_n_proc_DA win.

    nnU-Net itself gives PyTorch all cores and starts up to twelve loading processes beside it.
    """
    said_threads, said_workers = _number(environment, "OMP_NUM_THREADS"), _number(environment, "nnUNet_n_proc_DA")
    if said_workers is not None:
        workers = said_workers
    elif said_threads:
        workers = min(_MOST_WORKERS, max(0, cores - said_threads))
    else:
        workers = min(_MOST_WORKERS, cores // _CORES_PER_WORKER)
    return Share(cores, said_threads or max(1, cores - workers), workers)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").split(",")[0].strip()
    return int(text) if text.isdigit() else None


def usable_cores() -> int:
    """The cores this process may use: its affinity (SLURM, taskset) and the quota of its control group (containers)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(file: Path) -> int:
    """Whole cores in a `cpu.max` of control groups version 2; a large number where there is no limit."""
    try:
        quota, period = file.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return 2**31


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Let glibc keep freed memory for the next step instead of giving it back to the system; True if it now does.

    Every step frees and asks for the same large blocks. Each block that comes back from the system is mapped page by page, which
    takes longer than computing an activation. The process keeps the memory of its largest step. Nothing is changed where a user has
    settings of his own (MALLOC_…, GLIBC_TUNABLES, LD_PRELOAD) or the system has another C library.
    """
    own = [name for name in environment if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(key, value) == 1 for key, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _TOP_PAD_BYTES))
    )

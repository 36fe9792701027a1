"""Threads, loading processes and memory of a training on a CPU, within the cores that the process may use."""

import ctypes
import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_MOST_WORKERS = 12
"""Greatest number of loading processes, as in nnU-Net."""
_CORES_PER_WORKER = 4
"""Cores for each loading process, which so serves three cores that compute; with fewer cores patches are loaded between the steps."""
_UNKNOWN_MEMORY = 16 * 10**9
"""Bytes that are taken for those of a machine that does not say."""
# parameters of glibc's mallopt
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 2**28


@dataclass(frozen=True)
class CoreShares:
    """Shares of the cores for computing and for loading."""

    cores: int
    threads: int
    """Compute threads of the training process."""
    workers: int
    """Processes that load patches for training; 0 loads them in the training process, between the steps. nnU-Net adds half as many for
    validation, which are idle during training steps."""

    def __str__(self) -> str:
        """One line for a log."""
        loading = f"{self.workers} loading process(es)" if self.workers else "patches loaded between the steps"
        return f"{self.cores} cores: {self.threads} compute threads, {loading}"


def share_cores(cores: int, environment: Mapping[str, str]) -> CoreShares:
    """Threads and loading processes that together do not exceed the cores; OMP_NUM_THREADS and nnUNet_n_proc_DA overrule this.

    nnU-Net itself gives PyTorch all cores and starts up to twelve loading processes beside it.
    """
    chosen_threads, chosen_workers = _number(environment, "OMP_NUM_THREADS"), _number(environment, "nnUNet_n_proc_DA")
    if chosen_workers is not None:
        workers = chosen_workers
    elif chosen_threads:
        workers = min(_MOST_WORKERS, max(0, cores - chosen_threads))
    else:
        workers = min(_MOST_WORKERS, cores // _CORES_PER_WORKER)
    return CoreShares(cores, chosen_threads or max(1, cores - workers), workers)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """The number in an environment variable, the first of several; None where there is none."""
    text = environment.get(name, "").split(",")[0].strip()
    return int(text) if text.isdigit() else None


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity (SLURM, taskset) and the quota of its control group (containers)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(file: Path) -> int:
    """Quota of cores in a `cpu.max` of control groups version 2, rounded up; a large number where there is no limit."""
    try:
        quota, period = file.read_text(encoding="utf-8").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return 2**31


def usable_memory() -> int:
    """Bytes of memory that this process may use: those of the machine, or of its control group (containers, SLURM) if that has less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else _UNKNOWN_MEMORY
    return min([installed, *_memory_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _memory_limits(groups: Path, root: Path) -> Iterator[int]:
    """Limits of memory, in bytes, of the control groups that a process is in and of those around them, in either version.

    Args:
        groups: file that lists the groups of the process, as /proc/self/cgroup.
        root: folder of all groups, as /sys/fs/cgroup. A container sees its own group there.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:  # no control groups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(top):
                break
            try:
                yield int((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError):  # there is no such file, or no limit
                continue


def compute_threads() -> int:
    """Number of threads for computing, decoding and compressing in this process: OMP_NUM_THREADS, or else all cores it may use."""
    return _number(os.environ, "OMP_NUM_THREADS") or usable_cores()


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Let glibc keep freed memory for the next step instead of giving it back to the system; True if it now does.

    Every step frees and allocates the same large blocks, and the system maps a new block page by page, which takes longer than computing an
    activation. The process keeps the memory of its largest step. Nothing is changed where the user has set MALLOC_…, GLIBC_TUNABLES or
    LD_PRELOAD, or the system has another C library.
    """
    settings = [name for name in environment if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    if settings or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(key, value) == 1 for key, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _TOP_PAD_BYTES))
    )

import subprocess
import sys

import pytest

from nnunet_selma.running import cores
from nnunet_selma.running.cores import share_cores


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16, 64, 256])
def test_no_two_compute_threads_share_a_core(count):
    share = share_cores(count, {})
    assert share.threads >= 1
    assert share.threads + share.workers <= count
    assert share.workers <= 12


@pytest.mark.parametrize(
    ("environment", "threads", "workers"),
    [
        ({}, 6, 2),
        ({"nnUNet_n_proc_DA": "5"}, 3, 5),
        ({"nnUNet_n_proc_DA": "0"}, 8, 0),
        ({"OMP_NUM_THREADS": "4"}, 4, 4),
        ({"OMP_NUM_THREADS": "8"}, 8, 0),
        ({"OMP_NUM_THREADS": "16", "nnUNet_n_proc_DA": "12"}, 16, 12),
        ({"OMP_NUM_THREADS": "4,2"}, 4, 4),
        ({"OMP_NUM_THREADS": ""}, 6, 2),
    ],
)
def test_what_the_user_says_wins(environment, threads, workers):
    share = share_cores(8, environment)
    assert (share.threads, share.workers) == (threads, workers)


def test_the_line_for_the_log_says_both():
    assert str(share_cores(8, {})) == "8 cores: 6 compute threads, 2 loading process(es)"
    assert str(share_cores(2, {})) == "2 cores: 2 compute threads, patches loaded between the steps"


@pytest.mark.parametrize(
    ("text", "expected"), [("150000 100000\n", 2), ("400000 100000\n", 4), ("max 100000\n", 2**31), ("", 2**31)]
)
def test_the_quota_of_a_container_counts(text, expected, tmp_path):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert cores._quota(file) == expected
    assert cores._quota(tmp_path / "missing") == 2**31


def test_a_users_own_allocator_settings_stay():
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"):
        assert not cores.keep_freed_memory({name: "1"})


STEPS = """
import resource, torch
from nnunet_selma.running.cores import keep_freed_memory
kept = {keep} and keep_freed_memory({{}})
def step():
    blocks = [torch.ones(12_000_000) for _ in range(2)]
    return sum(float(block[0]) for block in blocks)
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), sorted(faults)[3])
"""


def test_freed_memory_is_there_for_the_next_step():
    """Counted in page faults. By default glibc gives every block above 32 MB back: two of 48 MB are 23,000 new pages a step."""
    faults = {}
    for keep in (True, False):
        done = subprocess.run(
            [sys.executable, "-c", STEPS.format(keep=keep)], capture_output=True, text=True, check=True
        )
        kept, faults[keep] = (int(word) for word in done.stdout.split())
        if keep and not kept:
            pytest.skip("the C library is not glibc")
    assert faults[True] < 0.1 * faults[False]


def test_the_smallest_limit_of_all_control_groups_around_a_process_counts(tmp_path):
    """A SLURM job's limit lies above the group of its step; a group without a limit says "max"."""
    root = tmp_path / "cgroup"
    step = root / "slurm" / "job_7" / "step_0"
    step.mkdir(parents=True)
    (step / "memory.max").write_text("max\n")
    (step.parent / "memory.max").write_text("8000000000\n")
    (root / "memory.max").write_text("9000000000\n")
    groups = tmp_path / "groups"
    groups.write_text("0::/slurm/job_7/step_0\n")
    assert sorted(cores._memory_limits(groups, root)) == [8_000_000_000, 9_000_000_000]
    (root / "memory" / "job").mkdir(parents=True)
    (root / "memory" / "job" / "memory.limit_in_bytes").write_text("5000000000\n")
    groups.write_text("4:cpu:/job\n3:memory:/job\n")
    assert list(cores._memory_limits(groups, root)) == [5_000_000_000]
    assert list(cores._memory_limits(tmp_path / "nothing", root)) == []
    assert cores.usable_memory() > 10**8

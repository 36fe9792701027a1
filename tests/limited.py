"""Commands in a process of their own whose address space is limited by the system."""

import re
import subprocess
import sys

RUN = """
import resource, sys
import torch, zarr, tifffile, ome_zarr_models, cc3d, skimage.morphology, matplotlib.pyplot, nnunetv2.inference.predict_from_raw_data
from nnunet_selma import cli
import nnunet_selma.objects, nnunet_selma.pictures.overview, nnunet_selma.prediction
from pathlib import Path
import re
def size(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = size("VmSize")
resource.setrlimit(resource.RLIMIT_AS, (before + int(float(sys.argv[1])),) * 2)
code = cli.main(sys.argv[2:])
print("peak", size("VmHWM"))
sys.exit(code)
"""


def peak_within(limit, *arguments):
    """Run a command with so many bytes beyond what the process has after its imports; returns its peak memory in bytes. Linux only."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(limit), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(re.search(r"peak (\d+)", done.stdout)[1])

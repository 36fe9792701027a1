"""Memory is bounded by --max-memory and not by the volume, under a limit that the system enforces."""

import re
import subprocess
import sys

import numpy as np
import pytest

from nnunet_selma.json_files import read_json
from tests.volume_prediction.models import write_model

SHAPE = (704, 1536, 1536)
LIMIT = 0.8 * 10**9
"""Bytes that the process may take beyond what it has after its imports."""

RUN = """
import resource, sys
import torch, zarr, tifffile, ome_zarr_models, nnunetv2.inference.predict_from_raw_data
from nnunet_selma import cli
from nnunet_selma.volume_prediction import predict_volume
from pathlib import Path
import re
def size(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = size("VmSize")
resource.setrlimit(resource.RLIMIT_AS, (before + int(sys.argv[1]),) * 2)
code = cli.main(sys.argv[2:])
print("peak", size("VmHWM"))
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_volume_four_times_as_large_as_the_limit(tmp_path):
    zarr = pytest.importorskip("zarr")
    rng = np.random.default_rng(0)
    volume = zarr.create_array(
        str(tmp_path / "brain.zarr"), shape=SHAPE, chunks=(64, 256, 256), dtype="u2", fill_value=3
    )
    spot = rng.integers(500, 3000, (64, 96, 96), dtype=np.uint16)
    volume[200:264, 300:396, 700:796] = spot
    assert np.prod(SHAPE) * 2 > 4 * LIMIT
    model = write_model(tmp_path / "model")
    mask = np.zeros([length // 32 for length in SHAPE], np.uint8)
    mask[200 // 32 : 264 // 32 + 1, 300 // 32 : 396 // 32 + 1, 700 // 32 : 796 // 32 + 1] = 1
    zarr.create_array(str(tmp_path / "mask.zarr"), shape=mask.shape, chunks=mask.shape, dtype="u1")[:] = mask
    output = tmp_path / "out.ome.zarr"
    done = subprocess.run(
        [
            sys.executable, "-c", RUN, str(int(LIMIT)), "predict-volume", str(tmp_path / "brain.zarr"), "-o", str(output), "-m", str(model.folder),
            "--max-memory", "1.3", "--no-raw", "--mask", str(tmp_path / "mask.zarr"),
        ],
        capture_output=True, text=True, check=False, env={"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    record = read_json(tmp_path / "out_segmentation.json")
    assert record["result"]["foreground"] > 0
    assert record["result"]["blocks"] > record["result"]["blocks without tissue"] > 0
    assert int(re.search(r"peak (\d+)", done.stdout)[1]) < 1.3 * 10**9

"""Memory is bounded by --max-memory and not by the volume, under a limit that the system enforces."""

import sys

import numpy as np
import pytest
import tifffile

from nnunet_selma.running.json_files import read_json
from tests.limited import peak_within
from tests.prediction.models import write_model

SHAPE = (704, 1536, 1536)
LIMIT = 0.8 * 10**9
"""Bytes that the process may take beyond what it has after its imports."""
SPOT = (slice(200, 264), slice(300, 396), slice(700, 796))


def slices(folder):
    """3.3 GB in memory, little on disk: planes without the spot are one file under many names."""
    folder.mkdir()
    spot = np.random.default_rng(0).integers(500, 3000, (64, 96, 96), dtype=np.uint16)
    for z in range(SHAPE[0]):
        path = folder / f"z{z:04d}.tif"
        if SPOT[0].start <= z < SPOT[0].stop:
            plane = np.full(SHAPE[1:], 3, np.uint16)
            plane[SPOT[1:]] = spot[z - SPOT[0].start]
            tifffile.imwrite(path, plane, compression="zlib")
        elif z == 0:
            tifffile.imwrite(path, np.full(SHAPE[1:], 3, np.uint16), compression="zlib")
        else:
            path.hardlink_to(folder / "z0000.tif")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_volume_four_times_as_large_as_the_limit(tmp_path):
    """Copied from slices with its coarser levels, predicted by two folds, probabilities included."""
    zarr = pytest.importorskip("zarr")
    assert np.prod(SHAPE) * 2 > 4 * LIMIT
    model = write_model(tmp_path / "model", folds=2)
    mask = np.zeros([length // 32 for length in SHAPE], np.uint8)
    mask[tuple(slice(bounds.start // 32, bounds.stop // 32 + 1) for bounds in SPOT)] = 1
    zarr.create_array(str(tmp_path / "mask.zarr"), shape=mask.shape, chunks=mask.shape, dtype="u1")[:] = mask
    peak = peak_within(
        LIMIT,
        "predict-volume",
        slices(tmp_path / "slices"),
        "-o",
        tmp_path / "out.ome.zarr",
        "-m",
        model.folder,
        "--max-memory",
        "1.3",
        "--mask",
        tmp_path / "mask.zarr",
        "--probabilities",
    )
    record = read_json(tmp_path / "out_segmentation.json")
    assert record["result"]["foreground"] > 0
    assert record["result"]["blocks"] > record["result"]["blocks without tissue"] > 0
    assert peak < 1.3 * 10**9

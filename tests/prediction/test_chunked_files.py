"""Predicting HDF5 of microscopes: how often chunks are read, and how much memory is taken."""

import io
import sys
from dataclasses import replace
from math import prod

import h5py
import numpy as np
import pytest
import tifffile

from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import hdf5, open_volume
from tests.limited import peak_within
from tests.prediction.models import pointwise_plans, texture, write_model
from tests.volumes.microscope_files import write_bdv, write_imaris

SPACING = (1.0, 1.0, 1.0)


class CountedFile(io.FileIO):
    """A file that counts the bytes that are read from it."""

    count = 0

    def readinto(self, buffer):
        read = super().readinto(buffer)
        CountedFile.count += read or 0
        return read


class OpenedFile(h5py.File):
    """An HDF5 file whose bytes are counted."""

    def __init__(self, path):
        super().__init__(CountedFile(path), "r")
        self.path = path

    @property
    def filename(self):
        return str(self.path)


WRITERS = {
    "Imaris": lambda folder, voxels, chunks: write_imaris(
        folder / "v.ims", [voxels], spacing_um_zyx=SPACING, chunks=chunks, levels=1
    ),
    "BigDataViewer": lambda folder, voxels, chunks: write_bdv(
        folder / "v.h5", [voxels], spacing_um_zyx=SPACING, chunks=chunks, levels=1
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "chunks", "raw"),
    [
        ("Imaris", (8, 32, 32), True),
        ("Imaris", (16, 64, 64), True),
        ("Imaris", (16, 64, 64), False),
        ("Imaris", (64, 16, 16), True),
        ("BigDataViewer", (16, 64, 64), True),
        ("BigDataViewer", (1, 240, 200), True),
    ],
)
def test_chunks_are_hardly_read_twice(kind, chunks, raw, tmp_path, rng, monkeypatch):
    """Counted as bytes that HDF5 asks the file for, of an image that cannot be compressed."""
    voxels = texture(rng, (192, 240, 200))[0]
    path = WRITERS[kind](tmp_path, voxels, chunks) or tmp_path / "v.ims"
    stored = prod(-(-n // edge) * edge for n, edge in zip(voxels.shape, chunks, strict=True)) * 2
    file_bytes = min(stored, sum(file.stat().st_size for file in tmp_path.glob("v.*")))
    monkeypatch.setattr(CountedFile, "count", 0)
    monkeypatch.setattr(hdf5, "_opened", OpenedFile)
    model = write_model(tmp_path / "model", pointwise_plans(1.0))
    output = tmp_path / "out.ome.zarr"
    settings = VolumePrediction(
        inputs=(path,), output=output, model=replace(model, step_size=1.0), block=64, raw=raw, tissue_only=False
    )
    predict_volume(settings, Execution())
    assert CountedFile.count > 0.9 * file_bytes
    assert CountedFile.count <= 1.3 * file_bytes
    assert np.count_nonzero(open_volume(output / "labels" / "segmentation").read())


SHAPE = (864, 1536, 1536)
"""4.1 GB of 16 bits in memory."""
LIMIT = 0.8 * 10**9
"""Bytes that the process may take beyond what it has after its imports."""
SPOT = (slice(200, 264), slice(300, 396), slice(700, 796))


def large_imaris(folder, spot):
    """An Imaris file in which most chunks have no voxels of their own, and read as 3."""
    path = write_imaris(folder / "v.ims", [spot], spacing_um_zyx=SPACING, levels=1)
    with h5py.File(path, "a") as file:
        for number, (axis, length) in enumerate(zip("XYZ", SHAPE[::-1], strict=True)):
            file["DataSetInfo/Image"].attrs[axis] = np.frombuffer(str(length).encode(), "S1")
            file["DataSetInfo/Image"].attrs[f"ExtMax{number}"] = np.frombuffer(str(length).encode(), "S1")
            channel = file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"]
            channel.attrs[f"ImageSize{axis}"] = np.frombuffer(str(length).encode(), "S1")
        del channel["Data"]
        data = channel.create_dataset("Data", SHAPE, np.uint16, chunks=(8, 256, 256), compression="gzip", fillvalue=3)
        data[SPOT] = spot
    return path


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_file_five_times_as_large_as_the_limit(tmp_path):
    """Predicted within a mask, from the chunks of the file itself."""
    assert prod(SHAPE) * 2 > 5 * LIMIT
    spot = np.random.default_rng(0).integers(500, 3000, (64, 96, 96), dtype=np.uint16)
    mask = np.zeros([length // 32 for length in SHAPE], np.uint8)
    mask[tuple(slice(bounds.start // 32, bounds.stop // 32 + 1) for bounds in SPOT)] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    model, out = write_model(tmp_path / "model"), tmp_path / "out.ome.zarr"
    options = ["-o", out, "-m", model.folder, "--max-memory", "1.3", "-step_size", "1", "--no-raw"]
    peak = peak_within(LIMIT, "predict-volume", large_imaris(tmp_path, spot), *options, "--mask", tmp_path / "mask.tif")
    record = read_json(tmp_path / "out_segmentation.json")
    assert record["result"]["foreground"] > 0
    assert record["result"]["blocks"] > record["result"]["blocks without tissue"] > 0
    assert peak < 1.3 * 10**9

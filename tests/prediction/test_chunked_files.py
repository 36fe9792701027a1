"""Predicting HDF5 of microscopes: how often chunks are read, and how much memory is taken."""

import io
from dataclasses import replace
from math import prod

import h5py
import numpy as np
import pytest

from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.volumes import hdf5, open_volume
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

"""Chunks that are lost, and chunks that a program never wrote because they are empty."""

from pathlib import Path

import numpy as np
import pytest

from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.lost_chunks import lost_chunks
from tests.conftest import write_image

zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")

CHUNK = 16
BOX = (8, 16, 16)
"""Shape of the boxes of a map of tissue, voxels."""
SHAPE = (96, 112, 128)


def brain(rng):
    """Two round halves with a deep notch between them, a hollow that opens to one side, and nothing outside."""
    z, y, x = (np.arange(n).reshape([-1 if a == b else 1 for b in range(3)]) for a, n in enumerate(SHAPE))
    halves = [((z - 48) / 44) ** 2 + ((y - 56) / 50) ** 2 + ((x - centre) / 34) ** 2 < 1 for centre in (36, 92)]
    bridge = (abs(z - 48) < 12) & (abs(y - 80) < 20) & (abs(x - 64) < 30)
    hollow = (abs(z - 48) < 22) & (y < 60) & (abs(x - 36) < 18)
    return np.where((halves[0] | halves[1] | bridge) & ~hollow, rng.integers(300, 4000, SHAPE), 0).astype(np.uint16)


def halved(voxels):
    """The mean of windows of 2 × 2 × 2 voxels."""
    z, y, x = (n // 2 for n in voxels.shape)
    return voxels.reshape(z, 2, y, 2, x, 2).mean((1, 3, 5))


def write(path, voxels, version, levels=1):
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    for level in range(levels):
        group.create_array(str(level), data=voxels, chunks=(CHUNK,) * 3, config={"write_empty_chunks": False})
        voxels = halved(voxels).astype(np.uint16)
    multiscale = {
        "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
        "datasets": [
            {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [2.0**n] * 3}]}
            for n in range(levels)
        ],
    }
    metadata = {"multiscales": [multiscale]}
    group.attrs.update({"ome": {"version": "0.5", **metadata}} if version == 3 else metadata)
    return path


def lose(path, stored, level, lost):
    """Delete the files of chunks."""
    array = zarr.open_array(str(path / str(level)), mode="r")
    files = [path / str(level) / array.metadata.encode_chunk_key(tuple(place)) for place in np.argwhere(stored & lost)]
    assert files
    for file in files:
        Path(file).unlink()


def tissue_of(path):
    """True for the grid boxes that hold values."""
    voxels = open_volume(path).read() > 0
    for axis, edge in enumerate(BOX):
        voxels = np.logical_or.reduceat(voxels, np.arange(0, voxels.shape[axis], edge), axis)
    return voxels


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("levels", [1, 3])
class TestAgainstEmptyChunks:
    @pytest.fixture
    def path(self, rng, version, levels, tmp_path):
        return write(tmp_path / "v.ome.zarr", brain(rng), version, levels)

    def test_chunks_outside_tissue_are_no_loss(self, path):
        volume = open_volume(path)
        stored = volume.stored_files()
        assert 0.3 < stored.mean() < 0.9
        assert lost_chunks(volume) is None

    @pytest.mark.parametrize("kind", ["a twentieth", "one inside", "a slab", "the last third"])
    def test_chunks_inside_tissue_are_named(self, path, kind, rng):
        stored = open_volume(path).stored_files()
        z, y, x = np.indices(stored.shape)
        lost = {
            "a twentieth": rng.random(stored.shape) < 0.05,
            "one inside": (z == 2) & (y == 5) & (x == 5),
            "a slab": z == 3,
            "the last third": z >= 4,
        }[kind]
        lose(path, stored, 0, lost)
        sentence = lost_chunks(open_volume(path))
        missing = stored.size - int((stored & ~lost).sum())
        assert f"v.ome.zarr: {missing} of {stored.size} chunks have no file and read as empty" in sentence
        assert "the image goes on at" in sentence

    def test_only_chunks_in_tissue_are_counted_with_a_map_of_tissue(self, path, rng):
        assert lost_chunks(open_volume(path), tissue_of(path), BOX) is None
        stored = open_volume(path).stored_files()
        lost = rng.random(stored.shape) < 0.05
        lose(path, stored, 0, lost)
        tissue = tissue_of(path)
        tissue[7:] = False
        edges = np.array(BOX)
        around = np.zeros(stored.shape, bool)  # by hand: each chunk, one box wider on each side
        for place in np.ndindex(*stored.shape):
            first = np.maximum(np.array(place) * CHUNK // edges - 1, 0)
            stop = -(-(np.array(place) + 1) * CHUNK // edges) + 1
            around[place] = tissue[tuple(map(slice, first, stop))].any()
        missing = int((~(stored & ~lost) & around).sum())
        assert 0 < missing < (~(stored & ~lost)).sum()
        sentence = lost_chunks(open_volume(path), tissue, BOX)
        assert f": {missing} of {stored.size} chunks in or beside tissue have no file" in sentence
        assert "the image goes on at" in sentence
        assert lost_chunks(open_volume(path), np.zeros_like(tissue), BOX) is None

    def test_levels_that_were_lost_as_well(self, path, levels):
        for level in range(levels):
            stored = open_volume(path, level=level).stored_files()
            lose(path, stored, level, np.indices(stored.shape)[0] >= stored.shape[0] // 2)
        assert "the image goes on at" in lost_chunks(open_volume(path))

    def test_an_image_without_any_chunk(self, path):
        stored = open_volume(path).stored_files()
        lose(path, stored, 0, stored)
        assert "the image is empty, or was not copied" in lost_chunks(open_volume(path))


def test_a_complete_image_and_other_formats_are_in_order(rng, tmp_path):
    voxels = rng.integers(1, 9, (32, 32, 32), dtype=np.uint8)
    assert lost_chunks(open_volume(write(tmp_path / "v.zarr", voxels, 3))) is None
    assert lost_chunks(open_volume(write_image(tmp_path / "v.nii.gz", voxels))) is None


def test_a_coarser_level_proves_the_loss_of_sparse_labels(tmp_path):
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[24:28, 24:28, 24:28] = 1
    labels[56, 56, 56] = 1
    path = write(tmp_path / "v.zarr", labels * 8, 3, levels=2)
    assert lost_chunks(open_volume(path)) is None
    stored = open_volume(path).stored_files()
    lose(path, stored, 0, np.indices(stored.shape).max(0) == 1)
    assert "the image goes on at 1 of them or more, the first at voxel 16, 16, 16 (z, y, x)" in lost_chunks(
        open_volume(path)
    )


def test_a_lost_channel_is_noticed(tmp_path):
    path = tmp_path / "v.zarr"
    group = zarr.open_group(str(path), mode="w")
    array = group.create_array("0", data=np.ones((2, 32, 32, 32), np.uint16), chunks=(1, 16, 16, 16))
    axes = [{"name": name} for name in "czyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    (path / "0" / array.metadata.encode_chunk_key((1, 0, 1, 0))).unlink()
    assert lost_chunks(open_volume(path, channel=0)) is None
    assert "1 of 8 chunks" in lost_chunks(open_volume(path, channel=1))


def test_a_fill_value_of_nan_is_empty(tmp_path):
    voxels = np.full((48, 16, 16), np.nan, np.float32)
    voxels[:20] = 1.0
    path = tmp_path / "v.zarr"
    zarr.create_array(path, data=voxels, chunks=(16, 16, 16), fill_value=np.nan, config={"write_empty_chunks": False})
    volume = open_volume(path)
    assert volume.stored_files().ravel().tolist() == [True, True, False]
    assert lost_chunks(volume) is None

"""Finding labels and their image, and reading slices and chunks few times."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.objects import reading
from nnunet_selma.objects.reading import BLOCK_VOXELS, block_edge, open_sources, slices_kept
from nnunet_selma.volumes.base import Volume
from tests.conftest import write_image
from tests.objects.volumes import SPACING, blobs, write_ome_zarr, write_slices


class Stack(Volume):
    """Slices in memory that counts how often each is read."""

    def __init__(self, voxels, path=None):
        self.voxels, self.path = voxels, path
        self.shape, self.dtype = voxels.shape, voxels.dtype
        self.spacing_um_zyx = None
        self.reads = np.zeros(len(voxels), int)
        self.calls = 0

    def _read(self, z, y, x):
        self.reads[z] += 1
        self.calls += 1
        return self.voxels[z, y, x]


class Large(Volume):
    """A shape and nothing else."""

    def __init__(self, shape, dtype=np.uint8, plane_wise=True, chunk_zyx=None):
        self.shape, self.dtype, self.plane_wise, self.chunk_zyx = shape, np.dtype(dtype), plane_wise, chunk_zyx

    def _read(self, z, y, x):
        raise AssertionError("only its shape is asked for")


@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    kept=st.integers(0, 3),
    boxes=st.lists(st.tuples(*[st.integers(0, 12)] * 6), max_size=6),
)
def test_boxes_cut_from_kept_slices_are_those_of_the_volume(shape, kept, boxes):
    voxels = np.arange(prod(shape)).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "SLAB_BYTES", kept * voxels[0].nbytes)
        patch.setattr(reading, "_LEAST_SLICES", 1)
        read = slices_kept(Stack(voxels))
    for corners in boxes:
        box = [slice(*sorted(min(c, n) for c in corners[i::3])) for i, n in enumerate(shape)]
        np.testing.assert_array_equal(read(*box), voxels[tuple(box)])


def test_each_slice_is_read_once_for_all_blocks(rng, monkeypatch):
    stack = Stack(rng.integers(0, 2, (100, 40, 40), dtype=np.uint8))
    monkeypatch.setattr(reading, "SLAB_BYTES", 20 * 40 * 40)
    monkeypatch.setattr(reading, "BLOCK_VOXELS", 16 * 16 * 16)
    edge, read = block_edge([stack]), slices_kept(stack)
    assert edge == (16, 16, 16)
    for block in blocks(stack.shape, edge):
        np.testing.assert_array_equal(read(*block.box), stack.voxels[block.box])
    assert (stack.reads == 1).all()
    assert stack.calls == 7  # slabs: one call each, because some files are read from the beginning every time


@pytest.mark.parametrize(
    ("shape", "dtype", "edge"),
    [
        ((2000, 2000, 2500), np.uint8, (32, 512, 512)),
        ((2000, 2000, 2500), np.uint16, (16, 1024, 1024)),
        ((2000, 12000, 14000), np.uint16, (8, 1024, 1024)),  # slices of 336 MB
        ((100, 200, 300), np.uint8, (128, 256, 256)),
        ((1, 9000, 9000), np.uint8, (2, 2048, 2048)),
    ],
)
def test_blocks_of_slices(shape, dtype, edge):
    assert block_edge([Large(shape, dtype)]) == edge
    assert prod(edge) <= BLOCK_VOXELS


@pytest.mark.parametrize(
    ("chunk", "edge"),
    [
        (None, (256, 256, 256)),
        ((64, 64, 64), (256, 256, 256)),
        ((1, 1024, 1024), (16, 1024, 1024)),
        ((100, 100, 100), (400, 200, 200)),
        ((1, 8192, 8192), (1, 4096, 4096)),
    ],
)
def test_blocks_of_chunks(chunk, edge):
    found = block_edge([Large((3000, 9000, 9000), plane_wise=False, chunk_zyx=chunk)])
    assert found == edge
    assert prod(found) <= BLOCK_VOXELS


def test_an_image_of_slices_decides_for_labels_in_chunks():
    labels = Large((2000, 2000, 2500), plane_wise=False, chunk_zyx=(64, 64, 64))
    raw = Large((2000, 2000, 2500), np.uint16)
    assert block_edge([labels, raw]) == block_edge([raw])


def test_chunks_of_an_ome_zarr_are_found(tmp_path, rng):
    path = write_ome_zarr(tmp_path / "a.ome.zarr", cells=blobs(rng, (20, 20, 20)))
    sources = open_sources(path, name=None, raw=None, without_raw=False, channel=None)
    assert sources.edge == (32, 32, 32)  # of the chunk's 16
    assert sources.raw is None


def opened(path, **options):
    options = {"name": None, "raw": None, "without_raw": False, "channel": None, **options}
    return open_sources(path, **options)


def test_labels_of_an_ome_zarr_bring_their_image(tmp_path, rng):
    values = blobs(rng)
    raw = rng.integers(0, 9, values.shape, dtype=np.uint16)
    brain = write_ome_zarr(tmp_path / "brain.ome.zarr", raw, cells=values)
    for path in (brain, brain / "labels" / "cells"):
        found = opened(path)
        np.testing.assert_array_equal(found.read_labels(*map(slice, values.shape)), values)
        np.testing.assert_array_equal(found.read_raw(*map(slice, values.shape)), raw)
        assert found.spacing_um_zyx == SPACING
        assert found.classes == {1: "cell"}
    assert opened(brain, without_raw=True).raw is None
    write_ome_zarr(brain, vessels=(values > 0).astype(np.uint8))
    with pytest.raises(SelmaError, match="cells, vessels; give one of them"):
        opened(brain)
    assert opened(brain, name="vessels").labels.read().max() == 1
    with pytest.raises(SelmaError, match="has no label image axons"):
        opened(brain, name="axons")


def test_shapes_that_differ_are_both_named(tmp_path, rng):
    labels = write_slices(tmp_path / "labels", np.zeros((3, 4, 5), np.uint8))
    raw = write_image(tmp_path / "raw.nii.gz", np.zeros((3, 4, 6), np.uint16))
    with pytest.raises(SelmaError, match=r"raw.nii.gz: has 3 × 4 × 6 .*labels have 3 × 4 × 5"):
        opened(labels, raw=raw)


def test_the_image_says_the_voxel_size_where_the_labels_do_not(tmp_path, rng):
    labels = write_slices(tmp_path / "labels", np.zeros((3, 4, 5), np.uint8))
    raw = write_image(tmp_path / "raw.nii.gz", np.zeros((3, 4, 5), np.uint16), (4.0, 1.5, 2.0))
    assert opened(labels).spacing_um_zyx is None
    assert opened(labels, raw=raw).spacing_um_zyx == SPACING


def test_an_image_with_a_nan_is_refused(tmp_path, rng):
    voxels = rng.random((3, 4, 5)).astype(np.float32)
    voxels[1, 2, 3] = np.nan
    raw = write_image(tmp_path / "raw.nii.gz", voxels)
    labels = write_slices(tmp_path / "labels", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(SelmaError, match=r"raw.nii.gz: holds NaN"):
        opened(labels, raw=raw).read_raw(slice(0, 3), slice(0, 4), slice(0, 5))

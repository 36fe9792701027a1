from collections import Counter

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.conversion.tiles import (
    ALL_TISSUE,
    TileSettings,
    choose_tiles,
    foreground_mask,
    grid,
    read_slab,
    slab_steps,
    slabs,
    tissue_map,
)
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Volume


class Array(Volume):
    """A volume in memory that counts how often each slice is read."""

    def __init__(self, voxels):
        self.voxels, self.shape, self.dtype, self.spacing_um_zyx = voxels, voxels.shape, voxels.dtype, None
        self.reads = np.zeros(len(voxels), int)

    def _read(self, z, y, x):
        self.reads[z] += 1
        return self.voxels[z, y, x]


def brain(rng, shape=(96, 128, 160)):
    """Camera background with a box of structured tissue in the middle."""
    voxels = rng.normal(100, 5, shape)
    z, y, x = (slice(n // 4, 3 * n // 4) for n in shape)
    voxels[z, y, x] += 400 + 300 * rng.random(voxels[z, y, x].shape)
    return voxels.astype(np.uint16)


@given(st.tuples(*[st.integers(1, 300)] * 3), st.integers(8, 100))
def test_the_grid_lies_inside_and_does_not_overlap(shape, tile):
    tiles = grid(shape, tile)
    seen = np.zeros(shape, np.uint8) if np.prod(shape) < 2e6 else None
    for one in tiles:
        assert all(s >= 0 and s + n <= length for s, n, length in zip(one.start, one.shape, shape, strict=True))
        assert one.shape == tuple(min(tile, length) for length in shape)
        if seen is not None:
            seen[one.box] += 1
    if seen is not None:
        assert seen.max() == 1
    assert len(tiles) == np.prod([max(1, length // tile) for length in shape])


def test_the_tissue_map_finds_the_tissue(rng):
    voxels = brain(rng)
    tissue = tissue_map(Array(voxels), 32)
    assert np.log(150) < tissue.log_threshold < np.log(500)
    truth = np.array([(voxels[t.box] > 300).mean() for t in tissue.tiles])
    np.testing.assert_allclose(tissue.foreground, truth, atol=0.3)  # blocks of 16 voxels are coarse in a tile of 32
    assert np.corrcoef(tissue.foreground, truth)[0, 1] > 0.98


def test_a_volume_without_outside_is_all_tissue(rng):
    tissue = tissue_map(Array(rng.normal(1000, 60, (32, 32, 32)).astype(np.uint16)), 16)
    assert tissue.log_threshold == ALL_TISSUE
    assert (tissue.foreground == 1).all()


def test_sparse_bright_cells_do_not_hide_the_tissue_around_them(rng):
    voxels = rng.normal(1000, 60, (64, 64, 64))
    for z, y, x in rng.integers(2, 62, (60, 3)):
        voxels[z - 2 : z + 2, y - 2 : y + 2, x - 2 : x + 2] += 9000
    assert tissue_map(Array(voxels.astype(np.uint16)), 32).foreground.min() > 0.9


def test_tiles_are_rich_in_tissue_seeded_and_in_reading_order(rng):
    tissue = tissue_map(Array(brain(rng)), 32)
    chosen = choose_tiles(tissue, TileSettings(tile=32, per_volume=6, min_foreground=0.5))
    assert len(chosen) == 6
    assert chosen == sorted(chosen)
    share = dict(zip(tissue.tiles, tissue.foreground, strict=True))
    assert min(share[t] for t in chosen) >= 0.5
    assert chosen == choose_tiles(tissue, TileSettings(tile=32, per_volume=6, min_foreground=0.5))
    choices = [
        choose_tiles(tissue, TileSettings(tile=32, per_volume=6, min_foreground=0.2, seed=seed)) for seed in range(3)
    ]
    assert choices[0] != choices[1] != choices[2]


def test_structure_is_signal_and_the_edge_of_the_tissue_is_not(rng):
    voxels = rng.normal(100, 2, (32, 64, 192))
    voxels[:, :, :128] += 900  # smooth tissue, whose edge lies in the third tile
    voxels[:, :, 80:112] += 900 * (rng.random((32, 64, 32)) < 0.1)
    voxels[:, :, 128:152] += 900
    left, middle, right = tissue_map(Array(voxels.astype(np.uint16)), 64).signal
    assert middle > 2 * left
    assert middle > 2 * right


def test_no_tile_where_there_is_nothing():
    tissue = tissue_map(Array(np.full((32, 32, 32), 7, np.uint16)), 16)
    assert choose_tiles(tissue, TileSettings(tile=16)) == []


def test_the_sparse_read_is_sparse(rng):
    volume = Array(brain(rng, (256, 64, 64)))
    tissue_map(volume, 128)
    assert volume.reads.sum() == 16  # 8 slices a layer of tiles


def read_all(volume, tiles):
    """Every tile with its voxels, and the slices that reading reported."""
    read, reported = {}, 0
    for slab in slabs(tiles, volume.dtype.itemsize):
        boxes = [np.empty(tile.shape, volume.dtype) for tile in slab]
        steps = sum(read_slab(volume, slab, boxes))
        assert steps == slab_steps(volume, slab)
        reported += steps
        read.update(zip(slab, boxes, strict=True))
    return read, reported


@pytest.mark.parametrize("at_once", [64, 2])
@pytest.mark.parametrize("apart", [True, False])
def test_tiles_read_by_slab_equal_the_boxes_and_each_slice_is_read_once_a_pass(rng, monkeypatch, at_once, apart):
    monkeypatch.setattr("nnunet_selma.conversion.tiles.SLAB_BYTES", at_once * 32**3 * 2)
    volume = Array(brain(rng))
    volume.slices_apart = apart
    tiles = grid(volume.shape, 32)[::3]
    read, _ = read_all(volume, tiles)
    assert set(read) == set(tiles)
    for tile, voxels in read.items():
        np.testing.assert_array_equal(voxels, volume.voxels[tile.box])
    layers = Counter(tile.start[0] for tile in tiles)
    assert volume.reads.max() == -(-max(layers.values()) // at_once)


def test_a_slab_holds_at_least_one_tile_and_never_two_layers(rng, monkeypatch):
    monkeypatch.setattr("nnunet_selma.conversion.tiles.SLAB_BYTES", 1)
    assert [len(slab) for slab in slabs(grid((64, 64, 64), 32), 2)] == [1] * 8
    monkeypatch.setattr("nnunet_selma.conversion.tiles.SLAB_BYTES", 2**40)
    assert [len(slab) for slab in slabs(grid((64, 64, 64), 32), 2)] == [4, 4]


def test_a_volume_in_chunks_is_read_box_by_box(rng):
    volume = Array(brain(rng))
    volume.plane_wise = False
    read, reported = read_all(volume, grid(volume.shape, 32)[:3])
    assert reported == 3 * 32
    for tile, voxels in read.items():
        np.testing.assert_array_equal(voxels, volume.voxels[tile.box])


def test_tiles_of_a_stack_of_slices(rng, tmp_path):
    voxels = brain(rng)
    for z, plane in enumerate(voxels):
        tifffile.imwrite(tmp_path / f"s{z}.tif", plane)
    volume = open_volume(tmp_path)
    tiles = choose_tiles(tissue_map(volume, 16), TileSettings(tile=16, per_volume=3))
    for tile, read in read_all(volume, tiles)[0].items():
        np.testing.assert_array_equal(read, voxels[tile.box])


def test_the_mask_follows_the_tissue(rng):
    voxels = brain(rng)
    mask = foreground_mask(voxels, np.log(250))
    truth = voxels > 300
    assert (mask.astype(bool) & truth).sum() / truth.sum() > 0.9  # a box mean rounds corners
    assert (mask.astype(bool) & ~truth).mean() < 0.15
    assert foreground_mask(voxels, ALL_TISSUE).all()

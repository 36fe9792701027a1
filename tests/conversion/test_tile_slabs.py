from collections import Counter

import numpy as np
import pytest
import tifffile

from nnunet_selma.conversion.tile_slabs import TilePlan, read_tiles, slices_read, tiles_of_slabs
from nnunet_selma.conversion.tiles import Tile, TileSettings, choose_tiles, tile_grid, tissue_map
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume
from tests.conversion.volumes import Array, brain


def test_a_plan_is_read_back_and_keeps_its_form_in_files(tmp_path):
    plan = TilePlan(tiles=(Tile((0, 1, 2), (3, 4, 5)), Tile((3, 1, 2), (3, 4, 5))), log_threshold=5.5, unit=1.0)
    write_json(tmp_path / "plan.json", plan.as_json())
    content = read_json(tmp_path / "plan.json")
    assert content == {
        "tiles": [[[0, 1, 2], [3, 4, 5]], [[3, 1, 2], [3, 4, 5]]],
        "log_threshold": 5.5,
        "unit": 1.0,
    }
    assert TilePlan.from_json(content) == plan


def read_all(volume, tiles):
    """Every tile with its voxels, and the slices that reading reported."""
    read, reported = {}, 0
    for slab in tiles_of_slabs(tiles, volume.dtype.itemsize):
        boxes = [np.empty(tile.shape, volume.dtype) for tile in slab]
        steps = sum(read_tiles(volume, slab, boxes))
        assert steps == slices_read(volume, slab)
        reported += steps
        read.update(zip(slab, boxes, strict=True))
    return read, reported


@pytest.mark.parametrize("at_once", [64, 2])
@pytest.mark.parametrize("apart", [True, False])
def test_tiles_read_by_slab_equal_the_boxes_and_each_slice_is_read_once_a_pass(rng, monkeypatch, at_once, apart):
    monkeypatch.setattr("nnunet_selma.conversion.tile_slabs.SLAB_TILE_BYTES", at_once * 32**3 * 2)
    volume = Array(brain(rng))
    volume.slices_apart = apart
    tiles = tile_grid(volume.shape, 32)[::3]
    read, _ = read_all(volume, tiles)
    assert set(read) == set(tiles)
    for tile, voxels in read.items():
        np.testing.assert_array_equal(voxels, volume.voxels[tile.box])
    layers = Counter(tile.start[0] for tile in tiles)
    assert volume.reads.max() == -(-max(layers.values()) // at_once)


def test_a_slab_holds_at_least_one_tile_and_never_two_layers(rng, monkeypatch):
    monkeypatch.setattr("nnunet_selma.conversion.tile_slabs.SLAB_TILE_BYTES", 1)
    assert [len(slab) for slab in tiles_of_slabs(tile_grid((64, 64, 64), 32), 2)] == [1] * 8
    monkeypatch.setattr("nnunet_selma.conversion.tile_slabs.SLAB_TILE_BYTES", 2**40)
    assert [len(slab) for slab in tiles_of_slabs(tile_grid((64, 64, 64), 32), 2)] == [4, 4]


def test_a_volume_in_chunks_is_read_box_by_box(rng):
    volume = Array(brain(rng))
    volume.plane_wise = False
    read, reported = read_all(volume, tile_grid(volume.shape, 32)[:3])
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

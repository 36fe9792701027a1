import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.conversion.tiles import (
    TileSettings,
    choose_tiles,
    tile_grid,
    tissue_map,
)
from nnunet_selma.morphology.tissue import ALL_TISSUE, tissue_voxels
from tests.conversion.volumes import Array, brain


@given(st.tuples(*[st.integers(1, 300)] * 3), st.integers(8, 100))
def test_the_grid_lies_inside_and_does_not_overlap(shape, tile):
    tiles = tile_grid(shape, tile)
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
    border = 144 + np.arange(64)[:, None] // 4  # aslant, so that it cuts boxes anywhere
    voxels += 900 * ((np.arange(192) >= 128) & (np.arange(192) < border))
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


def test_the_mask_follows_the_tissue(rng):
    voxels = brain(rng)
    mask = tissue_voxels(voxels, np.log(250))
    truth = voxels > 300
    assert (mask.astype(bool) & truth).sum() / truth.sum() > 0.9  # a box mean rounds corners
    assert (mask.astype(bool) & ~truth).mean() < 0.15
    assert tissue_voxels(voxels, ALL_TISSUE).all()

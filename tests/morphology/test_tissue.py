import numpy as np
import pytest
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.tissue import CELL, Tissue, cell_means, cells_of_mask
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image


@pytest.mark.parametrize("shape", [(40, 50, 60), (3, 17, 16), (8, 16, 33)])
def test_cells_are_means_of_their_middle_slice_however_the_volume_is_cut(shape, rng):
    voxels = rng.integers(0, 1000, (1, *shape), dtype=np.uint16)
    whole = cell_means(voxels, 0, shape[0], 1.0)
    for step in (1, 5, 8):
        parts = [cell_means(voxels[:, z : z + step], z, shape[0], 1.0) for z in range(0, shape[0], step)]
        assert np.array_equal(np.concatenate(parts), whole)
    z, y, x = (-(-length // edge) for length, edge in zip(shape, CELL, strict=True))
    assert whole.shape == (z, y, x)
    middle = min(4, shape[0] - 1)
    assert whole[0, 0, 0] == pytest.approx(np.log1p(voxels[0, middle, :16, :16].astype(float)).mean(), rel=1e-5)
    assert whole[0, -1, -1] == pytest.approx(
        np.log1p(voxels[0, middle, 16 * (y - 1) :, 16 * (x - 1) :].astype(float)).mean(), rel=1e-5
    )


def test_what_is_bright_is_tissue_and_so_are_two_cells_around_it():
    means = np.full((9, 9, 9), 1.0, np.float32)
    means[4, 3:6, :] = 5.0
    tissue = Tissue.from_means(means)
    assert tissue.cells[2:7, 1:8].all()
    assert not tissue.cells[1].any()
    assert not tissue.cells[:, 0].any()
    box = (slice(0, 72), slice(20, 100), slice(3, 5))
    assert np.array_equal(
        tissue.mask(box)[:, :, 0], np.repeat(np.repeat(tissue.cells[:, :, 0], 8, 0), 16, 1)[:, 20:100]
    )
    assert tissue.touches((slice(0, 17), slice(32, 33), slice(0, 1)))
    assert not tissue.touches((slice(0, 16), slice(0, 144), slice(0, 144)))


def test_a_volume_without_empty_space_is_all_tissue():
    assert Tissue.from_means(np.full((2, 3, 4), 5.0, np.float32)).share == 1
    assert Tissue.everywhere((9, 17, 16)).cells.shape == (2, 2, 1)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_mask_of_any_resolution_marks_the_cells_it_reaches(scale, tmp_path):
    shape = (40, 60, 80)
    mask = np.zeros([length // scale for length in shape], np.uint8)
    mask[20 // scale, 40 // scale, 60 // scale] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    cells = cells_of_mask(open_volume(tmp_path / "mask.tif"), shape, None)
    assert cells.shape == (5, 4, 5)
    assert cells[20 // 8, 40 // 16, 60 // 16]
    assert cells.sum() <= 8


def test_a_mask_of_another_field_of_view_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.ones((40, 20, 80), np.uint8))
    with pytest.raises(SelmaError, match="field of view"):
        cells_of_mask(open_volume(tmp_path / "mask.tif"), (40, 60, 80), None)


def test_a_mask_at_the_voxel_size_of_an_atlas(tmp_path):
    """Its voxels are cubes and those of the brain are not; the spacings say that both are equally long."""
    shape, spacing = (100, 400, 300), (4.0, 1.8, 1.8)
    mask = np.ones([round(n * s / 25) for n, s in zip(shape, spacing, strict=True)], np.uint8)
    write_image(tmp_path / "mask.nii.gz", mask, spacing_zyx=(0.025, 0.025, 0.025))
    assert cells_of_mask(open_volume(tmp_path / "mask.nii.gz"), shape, spacing).all()
    with pytest.raises(SelmaError, match="field of view"):
        cells_of_mask(open_volume(tmp_path / "mask.nii.gz"), (200, 400, 300), spacing)

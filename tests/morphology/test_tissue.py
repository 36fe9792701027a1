import numpy as np
import pytest
import tifffile

from nnunet_selma.conversion.tiles import tissue_map
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.tissue import (
    ALL_TISSUE,
    GRID_BOX,
    TissueGrid,
    box_means,
    find_tissue,
    grid_means,
    mask_boxes,
)
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Volume
from tests.conftest import write_image


class ArrayVolume(Volume):
    """A volume in memory."""

    def __init__(self, voxels):
        self.voxels, self.shape, self.dtype, self.spacing_um_zyx = voxels, voxels.shape, voxels.dtype, None

    def _read(self, z, y, x):
        return self.voxels[z, y, x]


@pytest.mark.parametrize("shape", [(40, 50, 60), (3, 17, 16), (8, 16, 33)])
def test_grid_boxes_are_means_of_their_middle_slice_however_the_volume_is_cut(shape, rng):
    voxels = rng.integers(0, 1000, (1, *shape), dtype=np.uint16)
    whole = grid_means(voxels, 0, shape[0], 1.0)
    for step in (1, 5, 8):
        parts = [grid_means(voxels[:, z : z + step], z, shape[0], 1.0) for z in range(0, shape[0], step)]
        assert np.array_equal(np.concatenate(parts), whole)
    z, y, x = (-(-length // edge) for length, edge in zip(shape, GRID_BOX, strict=True))
    assert whole.shape == (z, y, x)
    middle = min(4, shape[0] - 1)
    assert whole[0, 0, 0] == pytest.approx(np.log1p(voxels[0, middle, :16, :16].astype(float)).mean(), rel=1e-5)
    assert whole[0, -1, -1] == pytest.approx(
        np.log1p(voxels[0, middle, 16 * (y - 1) :, 16 * (x - 1) :].astype(float)).mean(), rel=1e-5
    )


def test_tissue_exceeds_the_middle_between_two_camps():
    """Worked by hand: means of 1 (outside) and 5 (tissue) have their middle at 3, however the boxes are arranged."""
    means = np.array([[1.0, 5.0, 1.0], [5.0, 1.0, 1.0]])
    tissue, threshold = find_tissue(means)
    assert threshold == 3
    assert tissue.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "means",
    [
        np.full(100, 4.0),
        np.linspace(4, 5, 100),  # a ramp is no two camps
        np.repeat([4.0, 4.3], 50),  # two camps that differ by less than a factor of 1.5
        np.repeat([4.0, 8.0], [99, 1]),  # one bright cell
    ],
)
def test_all_boxes_are_tissue_where_there_are_no_two_camps(means):
    tissue, threshold = find_tissue(means)
    assert threshold == ALL_TISSUE
    assert tissue.all()


def test_box_means_are_those_of_numpy(rng):
    plane = rng.random((37, 50))
    means = box_means(plane, (16, 20))
    for (row, column), mean in np.ndenumerate(means):
        assert mean == pytest.approx(plane[16 * row : 16 * row + 16, 20 * column : 20 * column + 20].mean())
    assert means.shape == (3, 3)


def test_tiles_and_blocks_see_the_same_tissue(rng):
    """A tile of 128 is measured in boxes of 16×16 as blocks are, here in slices that are all alike."""
    plane = rng.normal(100, 5, (128, 256))
    plane[30:100, 70:200] += 400
    voxels = np.repeat(plane[None], 128, axis=0).astype(np.uint16)
    tiles = tissue_map(ArrayVolume(voxels), 128)
    tissue, threshold = find_tissue(grid_means(voxels[None], 0, 128, 1.0)[0])
    assert tiles.log_threshold == pytest.approx(threshold, abs=0.01)  # tiles look at half of the lines
    assert tiles.foreground.tolist() == [tissue[:, :8].mean(), tissue[:, 8:].mean()]


def test_what_is_bright_is_tissue_and_so_are_two_grid_boxes_around_it():
    means = np.full((9, 9, 9), 1.0, np.float32)
    means[4, 3:6, :] = 5.0
    tissue = TissueGrid.from_means(means)
    assert tissue.boxes[2:7, 1:8].all()
    assert not tissue.boxes[1].any()
    assert not tissue.boxes[:, 0].any()
    box = (slice(0, 72), slice(20, 100), slice(3, 5))
    assert np.array_equal(
        tissue.mask(box)[:, :, 0], np.repeat(np.repeat(tissue.boxes[:, :, 0], 8, 0), 16, 1)[:, 20:100]
    )
    assert tissue.touches((slice(0, 17), slice(32, 33), slice(0, 1)))
    assert not tissue.touches((slice(0, 16), slice(0, 144), slice(0, 144)))


def test_a_volume_without_empty_space_is_all_tissue():
    assert TissueGrid.from_means(np.full((2, 3, 4), 5.0, np.float32)).share == 1
    assert TissueGrid.whole((9, 17, 16)).boxes.shape == (2, 2, 1)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_mask_of_any_resolution_marks_the_grid_boxes_it_reaches(scale, tmp_path):
    shape = (40, 60, 80)
    mask = np.zeros([length // scale for length in shape], np.uint8)
    mask[20 // scale, 40 // scale, 60 // scale] = 1
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    boxes = mask_boxes(open_volume(tmp_path / "mask.tif"), shape, None)
    assert boxes.shape == (5, 4, 5)
    assert boxes[20 // 8, 40 // 16, 60 // 16]
    assert boxes.sum() <= 8


def test_a_mask_of_another_field_of_view_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.ones((40, 20, 80), np.uint8))
    with pytest.raises(SelmaError, match="field of view"):
        mask_boxes(open_volume(tmp_path / "mask.tif"), (40, 60, 80), None)


def test_a_mask_at_the_voxel_size_of_an_atlas(tmp_path):
    """Its voxels are cubes and those of the brain are not; the spacings say that both are equally long."""
    shape, spacing = (100, 400, 300), (4.0, 1.8, 1.8)
    mask = np.ones([round(n * s / 25) for n, s in zip(shape, spacing, strict=True)], np.uint8)
    write_image(tmp_path / "mask.nii.gz", mask, spacing_zyx=(0.025, 0.025, 0.025))
    assert mask_boxes(open_volume(tmp_path / "mask.nii.gz"), shape, spacing).all()
    with pytest.raises(SelmaError, match="field of view"):
        mask_boxes(open_volume(tmp_path / "mask.nii.gz"), (200, 400, 300), spacing)

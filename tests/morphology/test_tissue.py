import numpy as np
import pytest
import tifffile
from scipy.ndimage import binary_closing, binary_fill_holes
from skimage.measure import block_reduce

from nnunet_selma.conversion.tiles import tissue_map
from nnunet_selma.morphology.tissue import (
    ALL_TISSUE,
    GRID_BOX,
    TissueGrid,
    box_means,
    find_tissue,
    grid_box,
    grid_means,
    grid_shape,
)
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Volume


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
    tissue, threshold = find_tissue(grid_means(voxels[None], 0, 128, 1.0))
    assert tiles.log_threshold == pytest.approx(threshold, abs=0.01)  # tiles look at half of the lines
    assert tiles.foreground.tolist() == [tissue[:, :, :8].mean(), tissue[:, :, 8:].mean()]


def mixtures():
    """Simulated box means of outside, tissue and a bright part; sd 2 % outside, 15 % in tissue and 30 % in the bright part."""
    rng = np.random.default_rng(0)
    for outside, tissue in ((100, 200), (110, 300), (100, 500), (20, 150)):
        for outside_share in (0.2, 0.4, 0.6):
            for bright in (1000, 3000, 8000, 20000):
                for bright_share in (0.05, 0.1, 0.2, 0.3):
                    shares = [outside_share, 1 - outside_share - bright_share, bright_share]
                    kinds = rng.choice(3, 20000, p=shares)
                    spread = rng.normal(1, np.array([0.02, 0.15, 0.3])[kinds]).clip(0.3, 2)
                    yield kinds, np.log1p(np.array([outside, tissue, bright])[kinds] * spread)


def test_no_mixture_of_outside_tissue_and_a_bright_part_loses_tissue():
    """A single split by Otsu's threshold loses tissue in 115 of these 192."""
    results = [(kinds, find_tissue(means)[0]) for kinds, means in mixtures()]
    assert len(results) == 192
    assert max((~tissue[kinds == 1]).mean() for kinds, tissue in results) < 0.05
    assert max(tissue[kinds == 0].mean() for kinds, tissue in results) < 0.05  # and all of them tell the outside


def ball(shape, radius=0.4):
    """True within an ellipsoid in the middle (z, y, x); its half axes are shares of the shape."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    distances: np.ndarray = sum(((a - n / 2) / (radius * n)) ** 2 for a, n in zip(axes, shape, strict=True))
    return distances < 1


SHAPE = (96, 192, 192)
BRAIN = ball(SHAPE)
CORNERS = sum(
    np.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2 for axis, n in enumerate(SHAPE)
)


@pytest.mark.parametrize(
    ("intensities", "most"),
    [
        (np.where(ball(SHAPE, 0.2), 9000, np.where(BRAIN, 300, 110)), 1.4),  # an injection site
        (np.where(BRAIN, 180, 110), 1.4),  # dim tissue
        (np.where(ball(SHAPE, 0.15), 100, np.where(BRAIN, 400, 110)), 1.4),  # a dark ventricle
        (np.where(BRAIN, 400, 110) * (1 - 0.15 * CORNERS), 1.4),  # vignetting
        (np.where(BRAIN, 400, 110) * np.where(np.arange(192) % 16 < 8, 1.3, 1), 1.4),  # stripes
        (np.where(BRAIN, 600, np.linspace(80, 200, 192)), 1.8),  # an outside that gets brighter along x
        (np.where(BRAIN, 300, 0), 1.4),  # an outside of zeros
        (np.where(BRAIN & (np.arange(192) < 96), 300, 110), 1.5),  # half of the volume is empty
    ],
)
def test_all_tissue_is_predicted_and_most_of_the_outside_is_not(intensities, most, rng):
    voxels = (intensities * rng.normal(1, 0.08, SHAPE)).astype(np.float32)
    tissue = BRAIN & (np.arange(192) < 96) if intensities[48, 96, 150] == 110 else BRAIN
    box = grid_box(SHAPE)
    predicted = TissueGrid.from_means(grid_means(voxels[None], 0, SHAPE[0], 1.0, box), box).mask(
        (slice(0, 96), slice(0, 192), slice(0, 192))
    )
    assert predicted[tissue].mean() > 0.999
    assert predicted.mean() < most * tissue.mean()


@pytest.mark.parametrize("width", [(0, 0, 20), (8, 16, 16), (5, 18, 30)])
@pytest.mark.parametrize("outside", [110, 0])
def test_a_frame_of_zeros_hides_no_outside(width, outside, rng):
    """A brain in an outside, padded with zeros, beside which both are bright."""
    tissue = np.pad(ball(SHAPE, 0.3), [(n, n) for n in width])
    voxels = np.pad(np.full(SHAPE, outside), [(n, n) for n in width])
    voxels = np.where(tissue, 300, voxels) * rng.normal(1, 0.08, tissue.shape)
    box = grid_box(tissue.shape)
    predicted = TissueGrid.from_means(grid_means(voxels[None], 0, len(voxels), 1.0, box), box).mask(
        tuple(slice(0, n) for n in tissue.shape)
    )
    assert predicted[tissue].mean() > 0.999
    assert predicted.mean() < 2.2 * tissue.mean()


def test_tissue_that_fills_a_frame_of_zeros_is_predicted_and_the_frame_is_not(rng):
    means = np.zeros((20, 20, 20))
    means[5:15, 5:15, 5:15] = rng.normal(6, 0.05, (10, 10, 10))
    assert np.array_equal(find_tissue(means)[0], means > 0)


@pytest.mark.parametrize("intensity", [0, 110, 3000])
def test_a_volume_of_one_kind_is_predicted_whole(intensity, rng):
    voxels = intensity * rng.normal(1, 0.08, SHAPE)
    assert (
        TissueGrid.from_means(grid_means(voxels[None], 0, SHAPE[0], 1.0, grid_box(SHAPE)), grid_box(SHAPE)).share == 1
    )


def test_small_volumes_have_small_grid_boxes():
    assert grid_box((1500, 5000, 4000)) == GRID_BOX
    assert grid_box((270, 193, 271)) == (4, 4, 4)
    assert grid_box((24, 400, 1100)) == (4, 8, 16)
    assert grid_shape((270, 193, 271)) == (68, 49, 68)


def test_camps_are_those_of_whole_grid_boxes_whatever_the_grid(rng):
    """The mean over 2 × 4 × 4 boxes by scikit-image, in a volume whose noise parts no smaller boxes."""
    means = np.where(ball((40, 40, 40)), 5.0, 4.0) + rng.normal(0, 0.6, (40, 40, 40))
    _, threshold = find_tissue(means, (4, 4, 4))
    assert threshold == pytest.approx(find_tissue(block_reduce(means, (2, 4, 4), np.mean))[1])
    assert 4.3 < threshold < 4.7


def test_tissue_takes_in_what_is_dim_beside_it_and_what_it_encloses():
    means = np.full((9, 9, 9), 1.0)
    means[2:7, 2:7, 2:7] = 5.0
    means[4, 4, 4] = 1.0  # enclosed
    means[4, 4, 7] = 2.5  # more than a quarter of the way from 1 to 5, beside tissue
    means[0, 0, 0] = 2.5  # and far from it
    tissue, _ = find_tissue(means)
    expected = means == 5
    expected[4, 4, 4] = expected[4, 4, 7] = True
    assert np.array_equal(tissue, expected)


def test_grid_boxes_around_tissue_are_predicted_too():
    means = np.full((9, 9, 9), 1.0, np.float32)
    means[4, 3:6, :] = 5.0
    tissue = TissueGrid.from_means(means)
    assert tissue.boxes[2:7, 3:6].all()
    assert not tissue.boxes[1].any()
    assert not tissue.boxes[:, 0].any()
    box = (slice(0, 72), slice(20, 100), slice(3, 5))
    assert np.array_equal(
        tissue.mask(box)[:, :, 0], np.repeat(np.repeat(tissue.boxes[:, :, 0], 8, 0), 16, 1)[:, 20:100]
    )
    assert tissue.touches((slice(0, 17), slice(48, 49), slice(0, 1)))
    assert not tissue.touches((slice(0, 16), slice(0, 144), slice(0, 144)))


def test_a_volume_without_empty_space_is_all_tissue():
    assert TissueGrid.from_means(np.full((2, 3, 4), 5.0, np.float32)).share == 1
    assert TissueGrid.whole((9, 17, 16)).boxes.shape == (3, 5, 4)


@pytest.mark.slow
def test_a_real_brain_is_predicted_and_most_of_its_outside_is_not(real_data):
    """Outlines of brainreg's atlas regions, filled, are the reference; its hemispheres cover nine tenths of the field of view.

    The atlas has paraflocculi, which this brain has lost, so that 0.7 % of the outlines are as dark as the outside and not predicted. Brain are the
    voxels within the outlines that exceed 12 (the median outside of them is 6), whatever is predicted: all of them are, and 1.31 times their
    number, which is 1.28 times the outlines.
    """
    folder = real_data / "brainreg_whole_brain"
    volume = open_volume(folder / "brain_slices")
    voxels = volume.read()
    borders = tifffile.imread(folder / "brainreg_output" / "boundaries.tiff") > 0
    outline = np.stack([binary_fill_holes(binary_closing(np.pad(plane, 2)))[2:-2, 2:-2] for plane in borders])
    outline = outline[::-1, :, ::-1]  # psl to asr
    places = [(2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(voxels.shape, outline.shape, strict=True)]
    outlines = outline[np.ix_(*places)]
    brain = outlines & (voxels > 12)
    box = grid_box(volume.shape)
    tissue = TissueGrid.from_means(grid_means(voxels[None], 0, len(voxels), 1.0, box), box)
    predicted = tissue.mask(tuple(slice(0, n) for n in voxels.shape))
    assert predicted[brain].mean() > 0.9995
    assert predicted.mean() < 1.32 * brain.mean()
    assert predicted[outlines].mean() > 0.99

"""The data of overviews: from the labels, from a table of objects, and from coarse resolutions."""

import numpy as np
import pytest
from scipy import ndimage

from nnunet_selma.demo.phantom import draw
from nnunet_selma.errors import SelmaError
from nnunet_selma.objects import ObjectSettings, measure_objects, reading
from nnunet_selma.objects.table import table_of
from nnunet_selma.objects.table_files import write_table
from nnunet_selma.pictures.overview import overview, projected_labels, projections
from nnunet_selma.pictures.overview.projected_labels import class_bits
from nnunet_selma.pictures.overview.projections import ANY_BIT, HIGHEST, SUM, bin_shape, in_bins
from nnunet_selma.volumes.pyramids import reduced
from nnunet_selma.volumes.segmented import Segmented, segmentation_at
from tests.conftest import write_image
from tests.objects.volumes import measured
from tests.pictures.overview.test_projections import whole
from tests.pictures.overview.volumes import SHAPE, SPACING, ArrayVolume, segmented, spots


@pytest.mark.parametrize(("plane_wise", "block_voxels"), [(True, 8), (False, 8), (False, 100), (True, 2**24)])
def test_an_overview_does_not_depend_on_blocks(rng, monkeypatch, plane_wise, block_voxels):
    monkeypatch.setattr(reading, "BLOCK_VOXELS", block_voxels)
    monkeypatch.setattr(reading, "_CHUNK", (2, 3, 4))
    monkeypatch.setattr(reading, "SLAB_BYTES", 2)
    monkeypatch.setattr(reading, "_LEAST_SLICES", 1)
    monkeypatch.setattr(projections, "IMAGE_PIXELS", 25)
    monkeypatch.setattr(projected_labels, "LABEL_PIXELS", 15)
    labels = (rng.random(SHAPE) < 0.1).astype(np.uint8) * rng.integers(1, 4, SHAPE, dtype=np.uint8)
    raw = rng.integers(0, 60000, SHAPE, dtype=np.uint16)
    data = overview(segmented(labels, raw, plane_wise=plane_wise))
    of_labels, of_image = bin_shape(SHAPE, SPACING, 15), bin_shape(SHAPE, SPACING, 25)
    assert max(of_labels) > max(of_image) > 1
    for axis in range(3):
        np.testing.assert_array_equal(data.labels[axis], whole(class_bits(labels), of_labels, ANY_BIT)[axis])
        voxels = whole(np.ones(SHAPE), of_labels, SUM)[axis]
        np.testing.assert_array_equal(data.shares[axis], whole(labels > 0, of_labels, SUM)[axis] / voxels)
        np.testing.assert_array_equal(data.raw[axis], whole(raw, of_image, HIGHEST)[axis])
    assert data.foreground == np.count_nonzero(labels) / labels.size
    assert data.sizes.sum() == pytest.approx(np.count_nonzero(labels) * np.prod(SPACING))
    assert data.extent_zyx == (54.0, 28.0, 16.5)


def test_each_class_is_a_bit_and_is_named():
    labels = np.zeros((3, 8, 10), np.uint8)
    labels[0, 1, 1], labels[2, 1, 1], labels[1, 5, 5] = 1, 3, 7
    data = overview(segmented(labels, classes={3: "microglia", 2: "not there"}))
    assert data.classes == {0: "label 1", 2: "microglia", 6: "label 7"}
    assert (data.labels[0][1, 1], data.labels[0][5, 5]) == (0b101, 0b1000000)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16, np.float64])
def test_a_mask_of_255_and_numbered_objects_are_one_class(dtype):
    labels = np.zeros((3, 8, 10), dtype)
    labels[0, 1, 1], labels[1, 5, 5] = 1, 100
    data = overview(segmented(labels))
    assert data.classes == {0: "segmentation"}
    np.testing.assert_array_equal(data.labels[0], labels.any(axis=0))
    assert len(data.objects) == 2


def test_the_density_map_holds_every_object_once(rng):
    labels = spots(rng)
    data = overview(segmented(labels))
    assert data.density.unit == "objects per mm³"
    mm3 = np.prod(data.density.square_yx) * data.extent_zyx[0] * 1e-9
    numbered, n = ndimage.label(labels, np.ones((3, 3, 3)))
    _, y, x = np.transpose(ndimage.center_of_mass(labels, numbered, range(1, n + 1)))
    edges = [
        np.arange(count + 1) * edge / s
        for count, edge, s in zip(data.density.values.shape, data.density.square_yx, SPACING[1:], strict=True)
    ]
    expected, *_ = np.histogram2d(y + 0.5, x + 0.5, bins=edges)
    np.testing.assert_allclose(data.density.values * mm3, expected, atol=1e-9)
    assert expected.sum() == n
    # an object in the first corner lies in the first square
    labels[:] = 0
    labels[4, 2, 2] = 1
    assert np.argwhere(overview(segmented(labels)).density.values).tolist() == [[0, 0]]


@pytest.mark.parametrize(("spacing", "network"), [(None, False), (SPACING, True)])
def test_without_voxel_size_or_countable_objects_the_map_is_of_the_foreground(rng, spacing, network):
    labels = spots(rng)
    if network:
        labels[5, ::7] = 1
        labels[5, :, ::9] = 1
    density = overview(segmented(labels, spacing=spacing)).density
    assert density.unit == "foreground, %"
    y, x = (max(1, round(edge / s)) for edge, s in zip(density.square_yx, (spacing or (1, 1, 1))[1:], strict=True))
    voxels = in_bins(np.full((1, *labels.shape[1:]), labels.shape[0]), (0, 0, 0), (1, y, x), SUM)[0]
    foreground = in_bins((labels > 0).sum(axis=0)[None], (0, 0, 0), (1, y, x), SUM)[0]
    np.testing.assert_allclose(density.values, 100 * foreground / voxels)


def test_a_table_gives_what_measuring_gives(rng, tmp_path):
    labels = spots(rng)
    labels[3:5, 40:44, 50:57] = 1
    path = write_image(tmp_path / "labels.nii.gz", labels, [s / 1000 for s in SPACING])
    data = overview(segmentation_at(path))
    assert data.spacing_um_zyx == SPACING
    pytest.importorskip("pyarrow")
    for name in ("table.csv", "table.parquet"):
        measure_objects(ObjectSettings(labels=path, output=tmp_path / name))
        listed = overview(segmentation_at(path), table=tmp_path / name)
        for field in ("classes", "spacing_um_zyx", "foreground"):
            assert getattr(listed, field) == getattr(data, field)
        np.testing.assert_array_equal(listed.sizes, data.sizes)
        np.testing.assert_array_equal(listed.density.values, data.density.values)
        for axis in range(3):
            np.testing.assert_array_equal(listed.labels[axis], data.labels[axis])
            np.testing.assert_array_equal(listed.shares[axis], data.shares[axis])


def pyramid(labels, count):
    """A segmentation at several resolutions, each half as fine, as `predict-volume` makes them."""
    levels = [labels]
    for _ in range(count - 1):
        levels.append(reduced(levels[-1], (2, 2, 2), "mode"))
    return tuple(ArrayVolume(level, (1.0, 1.0, 1.0)) for level in levels)


def from_table(levels, path, monkeypatch, pixels=40):
    """The overview from a table and coarse resolutions, and the one from the finest resolution."""
    monkeypatch.setattr(projected_labels, "LABEL_PIXELS", pixels)
    finest = levels[0]
    write_table(path, table_of(measured(finest.voxels, finest.shape)[0], finest.shape, (1.0, 1.0, 1.0)))
    coarse = overview(Segmented(name="brain", labels=levels), table=path)
    reads = [level.reads for level in levels]
    return coarse, overview(Segmented(name="brain", labels=levels[:1])), [bool(count) for count in reads]


def test_small_objects_are_drawn_from_the_table_and_the_finest_resolution_is_not_read(rng, tmp_path, monkeypatch):
    """Cells of 2³ voxels vanish from a resolution eight times coarser."""
    labels = np.zeros((32, 128, 96), np.uint8)
    corners = [tuple(rng.integers(0, n - 1) for n in labels.shape) for _ in range(40)]
    for number, (z, y, x) in enumerate(corners):
        labels[z : z + 2, y : y + 2, x : x + 2] = 1 + number % 2
    levels = pyramid(labels, 4)
    assert not levels[-1].voxels.any()
    # 160 voxels in 40 pixels: bins of 4 voxels, which the third resolution has
    coarse, fine, read = from_table(levels, tmp_path / "t.csv", monkeypatch)
    assert read == [False, False, True, False]
    assert coarse.classes == fine.classes == {0: "label 1", 1: "label 2"}
    for axis in range(3):
        np.testing.assert_array_equal(coarse.labels[axis], fine.labels[axis])
        assert coarse.shares[axis].mean() == pytest.approx(coarse.foreground)
    assert len(coarse.objects) == len(fine.objects)
    np.testing.assert_array_equal(coarse.density.values, fine.density.values)


def test_a_filtered_table_does_not_dim_what_it_lists(tmp_path, monkeypatch):
    """One large object and cells of 4³ voxels; the table lists the cells alone."""
    labels = np.zeros((32, 128, 96), np.uint8)
    labels[4:28, 8:60, 8:60] = 1
    for y in range(72, 120, 16):
        labels[12:16, y : y + 4, 72:76] = 1
    levels = pyramid(labels, 3)
    monkeypatch.setattr(projected_labels, "LABEL_PIXELS", 40)
    objects = measured(labels, labels.shape)[0]
    cells = objects.select(objects.voxels < 100)
    write_table(tmp_path / "t.csv", table_of(cells, labels.shape, (1.0, 1.0, 1.0)))
    coarse, fine = (
        overview(Segmented(name="brain", labels=labels), table=tmp_path / "t.csv") for labels in (levels, levels[:1])
    )
    for axis in range(3):
        np.testing.assert_allclose(coarse.shares[axis], fine.shares[axis], atol=0.02)


def test_vessels_are_drawn_from_the_coarsest_resolution_that_keeps_them(tmp_path, monkeypatch):
    """Vessels of 2 voxels become one voxel wide at the second resolution, and vanish from the third."""
    labels = np.zeros((32, 128, 96), np.uint8)
    labels[8:10, 10:12], labels[22:24, :, 40:42], labels[:, 80:82, 82:84] = 1, 1, 1
    coarse, fine, read = from_table(pyramid(labels, 4), tmp_path / "t.csv", monkeypatch)
    assert read == [False, True, True, False]
    assert coarse.foreground == fine.foreground == np.count_nonzero(labels) / labels.size
    for axis in range(3):
        np.testing.assert_array_equal(coarse.labels[axis], fine.labels[axis])
        np.testing.assert_allclose(coarse.shares[axis], fine.shares[axis])


@pytest.mark.parametrize("structure", ["blood_vessel", "cfos_neuron"])
def test_a_picture_from_a_coarse_resolution_is_like_that_from_the_finest(structure, rng, tmp_path, monkeypatch):
    labels = draw(structure, (64, 128, 96), rng).label.astype(np.uint8)
    coarse, fine, read = from_table(pyramid(labels, 3), tmp_path / "t.csv", monkeypatch, pixels=48)
    assert read == [False, False, True]
    for axis in range(3):
        a, b = coarse.labels[axis] > 0, fine.labels[axis] > 0
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.random.default_rng(0).integers(100, 9000, (40, 40, 40), dtype=np.uint16), "looks like an image"),
        (np.full(SHAPE, 0.5), "fractions"),
        (np.full(SHAPE, 1j), "complex128"),
    ],
)
def test_what_is_no_segmentation_is_refused(labels, message):
    with pytest.raises(SelmaError, match=message):
        overview(segmented(labels))


def test_a_table_of_another_volume_is_refused(rng, tmp_path):
    labels = spots(rng)
    write_table(tmp_path / "t.csv", table_of(measured(labels, labels.shape)[0], labels.shape, None))
    with pytest.raises(SelmaError, match=r"objects outside of the segmentation, which has 9 × 14 × 11 voxels"):
        overview(segmented(np.zeros(SHAPE, np.uint8)), table=tmp_path / "t.csv")


def test_the_voxel_size_comes_from_the_labels_the_image_or_the_caller():
    labels, raw = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint16)
    brain = Segmented(name="a", labels=(ArrayVolume(labels, None),), channels=((ArrayVolume(raw, SPACING),),))
    assert overview(brain).spacing_um_zyx == SPACING
    assert overview(brain, spacing_um_zyx=(1.0, 2.0, 3.0)).spacing_um_zyx == (1.0, 2.0, 3.0)
    assert overview(segmented(labels, spacing=None)).spacing_um_zyx is None


def test_an_overview_of_real_data(real_data):
    name = "patchvolume_695_0.nii.gz"
    cube = real_data / "delivr" / "cFos"
    brain = segmentation_at(cube / "gt" / name, raw=cube / "raw" / name)
    data = overview(brain, spacing_um_zyx=(6.0, 1.62, 1.62))
    labels, raw = brain.labels[0].read(), brain.channels[0][0].read()
    assert len(data.objects) == ndimage.label(labels, np.ones((3, 3, 3)))[1] == 99
    for axis in range(3):
        np.testing.assert_array_equal(data.labels[axis] > 0, labels.any(axis=axis))
        np.testing.assert_array_equal(data.raw[axis], raw.max(axis=axis))

import csv
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunet_selma.demo.phantom import draw
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.objects import ObjectSettings, measure_objects
from nnunet_selma.pictures import overview as module
from nnunet_selma.pictures.overview import class_bits, overview, projections
from nnunet_selma.pictures.overview.projections import (
    ANY_BIT,
    HIGHEST,
    IMAGE_PIXELS,
    SUM,
    Projections,
    cells_of,
    in_cells,
    pixel,
)
from nnunet_selma.pictures.overview.sheet import CLASS_COLOURS, class_picture, overview_sheet
from nnunet_selma.volumes.base import Volume
from nnunet_selma.volumes.segmented import Segmented, segmentation_at
from tests.conftest import write_image

SHAPE, SPACING = (9, 14, 11), (6.0, 2.0, 1.5)
EDGES = [(9, 14, 11), (1, 14, 11), (4, 5, 3), (2, 3, 4), (1, 1, 1)]


class ArrayVolume(Volume):
    """A volume in memory."""

    def __init__(self, voxels, spacing=SPACING, plane_wise=False, path="volume"):
        self.path, self.voxels, self.spacing_um_zyx, self.plane_wise = path, voxels, spacing, plane_wise
        self.shape, self.dtype = voxels.shape, voxels.dtype

    def _read(self, z, y, x):
        return self.voxels[z, y, x]


def segmented(labels, *images, spacing=SPACING, classes=None, **options):
    """A segmentation, and its image at every resolution."""
    channels = (tuple(ArrayVolume(image, spacing) for image in images),) if images else ()
    return Segmented(
        name="brain", labels=(ArrayVolume(labels, spacing, **options),), channels=channels, classes=classes or {}
    )


def expected(voxels, cell, join):
    """The same pictures, of the whole volume at once."""
    cells = voxels.astype(join.dtype)
    for axis, edge in enumerate(cell):
        bounds = [*range(0, voxels.shape[axis], edge), voxels.shape[axis]]
        parts = [join.function.reduce(cells.take(range(a, b), axis), axis=axis) for a, b in pairwise(bounds)]
        cells = np.stack(parts, axis)
    return [join.function.reduce(cells, axis=axis) for axis in range(3)]


@pytest.mark.parametrize("edge", EDGES, ids=str)
@pytest.mark.parametrize("cell", [(1, 1, 1), (2, 3, 4), (1, 5, 2), (9, 14, 11)], ids=str)
@pytest.mark.parametrize(("join", "dtype"), [(HIGHEST, np.uint16), (ANY_BIT, np.uint8), (SUM, np.bool_)])
def test_projections_by_blocks_are_those_of_the_whole(rng, edge, cell, join, dtype):
    voxels = rng.integers(0, 200, SHAPE).astype(dtype)
    found = Projections(SHAPE, cell, join)
    for block in blocks(SHAPE, edge):
        found.add(block.start, voxels[block.box][block.own])
    for picture, whole in zip(found.along, expected(voxels, cell, join), strict=True):
        np.testing.assert_array_equal(picture, whole)


def test_values_that_are_not_finite_do_not_spread():
    voxels = np.array([[[1.0, np.nan, 3.0]]])
    found = Projections((1, 1, 3), (1, 1, 3), HIGHEST)
    found.add((0, 0, 0), voxels)
    assert found.along[0].tolist() == [[3.0]]


@pytest.mark.parametrize("shape", [(733, 5616, 6656), (20000, 300, 300), (1, 40000, 3), (100, 100, 100), (1, 1, 1)])
@pytest.mark.parametrize("spacing", [(6.0, 1.625, 1.625), (1.0, 1.0, 1.0), (0.1, 100.0, 3.0)])
def test_pictures_are_of_a_bounded_size(shape, spacing):
    z, y, x = cells_of(shape, pixel(shape, spacing, IMAGE_PIXELS))
    assert z + y <= IMAGE_PIXELS + 2
    assert z + x <= IMAGE_PIXELS + 2


@pytest.mark.parametrize("plane_wise", [True, False])
@pytest.mark.parametrize("edge", EDGES[:4], ids=str)
def test_an_overview_does_not_depend_on_blocks(rng, monkeypatch, edge, plane_wise):
    monkeypatch.setattr(module, "block_edge", lambda _: edge)
    monkeypatch.setattr(projections, "block_edge", lambda _: edge)
    monkeypatch.setattr(projections, "IMAGE_PIXELS", 25)
    monkeypatch.setattr(module, "LABEL_PIXELS", 15)
    labels = (rng.random(SHAPE) < 0.1).astype(np.uint8) * rng.integers(1, 4, SHAPE, dtype=np.uint8)
    raw = rng.integers(0, 60000, SHAPE, dtype=np.uint16)
    shown = overview(segmented(labels, raw, plane_wise=plane_wise))
    cell, of_image = pixel(SHAPE, SPACING, 15), pixel(SHAPE, SPACING, 25)
    assert max(cell) > max(of_image) > 1
    lines = [expected(np.ones(SHAPE), cell, SUM)[axis] for axis in range(3)]
    for axis in range(3):
        np.testing.assert_array_equal(shown.labels[axis], expected(class_bits(labels), cell, ANY_BIT)[axis])
        np.testing.assert_array_equal(shown.shares[axis], expected(labels > 0, cell, SUM)[axis] / lines[axis])
        np.testing.assert_array_equal(shown.raw[axis], expected(raw, of_image, HIGHEST)[axis])
    assert shown.foreground == np.count_nonzero(labels) / labels.size
    assert shown.objects.sizes.sum() == pytest.approx(np.count_nonzero(labels) * np.prod(SPACING))
    assert shown.extent_zyx == (54.0, 28.0, 16.5)


def test_each_class_is_a_bit_and_is_named():
    labels = np.zeros((3, 8, 10), np.uint8)
    labels[0, 1, 1], labels[2, 1, 1], labels[1, 5, 5] = 1, 3, 7
    shown = overview(segmented(labels, classes={3: "microglia", 2: "not there"}))
    assert shown.classes == {0: "label 1", 2: "microglia", 6: "label 7"}
    assert (shown.labels[0][1, 1], shown.labels[0][5, 5]) == (0b101, 0b1000000)
    picture = class_picture(shown.labels[0], shown.shares[0], dense=1.0)
    np.testing.assert_allclose(picture[1, 1, :3], np.mean([to_rgb(CLASS_COLOURS[i]) for i in (0, 2)], axis=0))
    np.testing.assert_allclose(picture[5, 5, :3], to_rgb(CLASS_COLOURS[6]))
    assert picture[0, 0, 3] == 0
    assert picture[1, 1, 3] > picture[5, 5, 3] > 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16, np.float64])
def test_a_mask_of_255_and_numbered_objects_are_one_class(dtype):
    labels = np.zeros((3, 8, 10), dtype)
    labels[0, 1, 1], labels[1, 5, 5] = 1, 100
    shown = overview(segmented(labels))
    assert shown.classes == {0: "segmentation"}
    assert sorted(np.unique(shown.labels[0])) == [0, 1]
    assert len(shown.objects.sizes) == 2


def spots(rng, shape=(10, 100, 120), count=60):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(rng.integers(0, n, count) for n in shape)] = 1
    return labels


def test_the_density_map_holds_every_object_once(rng):
    labels = spots(rng)
    shown = overview(segmented(labels))
    density = shown.density
    assert density.unit == "objects per mm³"
    cell_mm3 = np.prod(density.cell_yx) * shown.extent_zyx[0] * 1e-9
    assert (density.values * cell_mm3).sum() == pytest.approx(len(shown.objects.sizes))
    # an object in the first corner lies in the first cell
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
    y, x = (max(1, round(edge / s)) for edge, s in zip(density.cell_yx, (spacing or (1, 1, 1))[1:], strict=True))
    voxels = in_cells(np.full((1, *labels.shape[1:]), labels.shape[0]), (0, 0, 0), (1, y, x), SUM)[0]
    assert (density.values * voxels).sum() == pytest.approx(100 * np.count_nonzero(labels))


def test_a_table_of_objects_gives_what_counting_gives(rng, tmp_path):
    labels = spots(rng)
    labels[3:5, 40:44, 50:57] = 1
    path = write_image(tmp_path / "labels.nii.gz", labels, [s / 1000 for s in SPACING])
    counted = overview(segmentation_at(path))
    assert counted.spacing_um_zyx == SPACING
    pytest.importorskip("pyarrow")
    for name in ("table.csv", "table.parquet"):
        measure_objects(ObjectSettings(labels=path, output=tmp_path / name))
        listed = overview(segmentation_at(path), table=tmp_path / name)
        np.testing.assert_allclose(listed.objects.sizes, counted.objects.sizes)
        np.testing.assert_allclose(listed.objects.places, counted.objects.places)
        np.testing.assert_allclose(listed.density.values, counted.density.values)


def table(path, rows, names=("voxels", "centroid_z", "centroid_y", "centroid_x")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


@pytest.mark.parametrize(
    ("name", "rows", "names", "said"),
    [
        ("t.csv", [(5, 1, 2, 30)], None, "objects outside of the segmentation, which has 9 × 14 × 11 voxels"),
        ("t.csv", [(5, 1, 2, -1)], None, "objects outside"),
        ("t.csv", [(5, 1, "", 1)], None, "no table of numbers"),
        ("t.csv", [(5, 1)], None, "no table of numbers"),
        ("t.csv", [], ("voxels", "centroid_x"), "no column centroid_z, centroid_y"),
        ("t.txt", [], None, "ends in .csv or .parquet"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, name, rows, names, said):
    path = table(tmp_path / name, rows, *([names] if names else []))
    with pytest.raises(SelmaError, match=said):
        overview(segmented(np.zeros(SHAPE, np.uint8)), table=path)


def test_a_table_without_objects_is_one(tmp_path):
    shown = overview(segmented(np.ones(SHAPE, np.uint8)), table=table(tmp_path / "t.csv", []))
    assert len(shown.objects.sizes) == 0


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.random.default_rng(0).integers(100, 9000, (40, 40, 40), dtype=np.uint16), "looks like an image"),
        (np.full(SHAPE, 0.5), "fractions or NaN"),
        (np.full(SHAPE, 1j), "complex128"),
    ],
)
def test_what_is_no_segmentation_is_refused(labels, said):
    with pytest.raises(SelmaError, match=said):
        overview(segmented(labels))


def test_the_image_is_shown_at_the_coarsest_resolution_that_has_a_voxel_for_each_pixel(monkeypatch, rng):
    monkeypatch.setattr(projections, "IMAGE_PIXELS", 40)
    fine = np.zeros((8, 64, 64), np.uint16)
    middle, coarse = np.full((8, 32, 32), 2, np.uint16), np.full((4, 8, 8), 3, np.uint16)
    shown = overview(segmented((fine > 0).astype(np.uint8), fine, middle, coarse, spacing=(1.0, 1.0, 1.0)))
    assert (shown.raw[0] == 2).all()
    assert max(shown.raw[0].shape) <= 40


def test_the_voxel_size_comes_from_the_labels_the_image_or_the_caller():
    labels, raw = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint16)
    one = Segmented(name="a", labels=(ArrayVolume(labels, None),), channels=((ArrayVolume(raw, SPACING),),), classes={})
    assert overview(one).spacing_um_zyx == SPACING
    assert overview(one, spacing_um_zyx=(1.0, 2.0, 3.0)).spacing_um_zyx == (1.0, 2.0, 3.0)
    assert overview(segmented(labels, spacing=None)).spacing_um_zyx is None


def brain(rng):
    phantom = draw("cfos_neuron", (24, 90, 80), rng, outside=0.4, whole=True)
    image = phantom.image.copy()
    image[3, 5, 7] = 65535
    return segmented(phantom.label, image, spacing=phantom.spacing_um_zyx, classes={1: "c-Fos+ cell"})


def empty(rng):
    return segmented(np.zeros(SHAPE, np.uint8))


def one_slice(rng):
    labels = spots(rng, (1, 60, 80), 30)
    return segmented(labels, labels * np.uint16(500))


def voxels_of_unknown_size(rng):
    labels = spots(rng)
    return segmented(labels, labels.astype(np.float32), spacing=None)


def many_classes(rng):
    labels = spots(rng) * rng.integers(1, 8, (10, 100, 120), dtype=np.uint8)
    return segmented(labels, classes={1: "a class with a rather long name", 2: "blood vessel"})


def all_equal(rng):
    return segmented(np.ones(SHAPE, np.uint8), np.full(SHAPE, 7, np.uint16))


def nothing_finite(rng):
    return segmented(np.zeros(SHAPE, np.uint8), np.full(SHAPE, np.nan, np.float32))


def thin(rng):
    return segmented(spots(rng, (3, 300, 4), 20), spots(rng, (3, 300, 4), 20))


CASES = [brain, empty, one_slice, voxels_of_unknown_size, many_classes, all_equal, nothing_finite, thin]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_picture_of(case, rng, tmp_path):
    shown = overview(case(rng))
    overview_sheet(tmp_path / "overview.png", shown)
    picture = imread(tmp_path / "overview.png")
    height, width = picture.shape[:2]
    assert 900 < height < 2000
    assert (2000 if shown.raw else 1200) < width < 3300
    assert picture[..., :3].std() > 0.1
    if len(shown.classes):
        colour = np.abs(picture[..., :3] - to_rgb(CLASS_COLOURS[next(iter(shown.classes))])).max(axis=-1)
        assert (colour < 0.02).sum() > 50  # the legend at least
    assert [file.name for file in tmp_path.iterdir()] == ["overview.png"]


def test_a_picture_of_real_data(real_data, tmp_path):
    name = "patchvolume_695_0.nii.gz"
    cube = real_data / "delivr" / "cFos"
    shown = overview(segmentation_at(cube / "gt" / name, raw=cube / "raw" / name), spacing_um_zyx=(6.0, 1.62, 1.62))
    assert len(shown.objects.sizes) == 99
    overview_sheet(tmp_path / "overview.png", shown)
    assert imread(tmp_path / "overview.png")[..., :3].std() > 0.1

"""The picture of an overview: what its axes show, read back from the figure."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nnunet_selma.demo.phantom import draw
from nnunet_selma.pictures.overview import overview
from nnunet_selma.pictures.overview.sheet import CLASS_COLOURS, class_picture, overview_figure, overview_sheet
from tests.pictures.overview.volumes import SHAPE, SPACING, segmented, spots


def texts(figure):
    """Every text of a figure outside of axes, from top to bottom."""
    return [text.get_text() for text in figure.texts]


def axes_of(figure, title):
    """The axes whose title begins so."""
    return next(axis for axis in figure.axes if axis.get_title("left").startswith(title))


def legend(axis):
    """Name and colour of each entry of a legend."""
    shown = axis.get_legend()
    return {
        text.get_text(): patch.get_facecolor()[:3]
        for text, patch in zip(shown.get_texts(), shown.get_patches(), strict=True)
    }


def brain(rng, spacing=SPACING):
    """Labels of two classes, and an image that grows brighter along each axis."""
    labels = np.maximum(spots(rng), 2 * spots(rng))
    z, y, x = np.indices(labels.shape)
    raw = (100 * z + 10 * y + x).astype(np.uint16)
    return labels, raw, overview(segmented(labels, raw, spacing=spacing, classes={1: "c-Fos+ cell"}))


def test_three_views_show_the_classes_over_the_image(rng):
    labels, raw, data = brain(rng)
    figure = overview_figure(data)
    images, both = (axes_of(figure, title) for title in ("maximum projections", "with the segmentation"))
    assert len(images.images) == 3
    assert len(both.images) == 6
    greys = np.concatenate([view.get_array().ravel() for view in images.images])
    assert (greys.min(), greys.max()) == (0, 1)
    # along z (y, x), along y (z, x), and along x with z to the right
    for axis, turn in enumerate((np.asarray, np.asarray, np.transpose)):
        grey = images.images[axis].get_array()
        brightest = turn(raw.max(axis=axis))
        assert grey.shape == brightest.shape
        order = np.argsort(brightest, axis=None, kind="stable")
        assert (np.diff(grey.ravel()[order]) >= 0).all()  # brighter voxels are brighter pixels
        np.testing.assert_array_equal(both.images[2 * axis].get_array(), grey)
        colours = both.images[2 * axis + 1].get_array()
        for number in (1, 2):
            alone = turn((labels == number).any(axis=axis) & ~(labels == 3 - number).any(axis=axis))
            assert alone.any()
            np.testing.assert_allclose(
                colours[alone][:, :3], np.broadcast_to(to_rgb(CLASS_COLOURS[number - 1]), (alone.sum(), 3))
            )
        np.testing.assert_array_equal(colours[..., 3] > 0, turn(labels.any(axis=axis)))
    assert legend(both) == {"c-Fos+ cell": to_rgb(CLASS_COLOURS[0]), "label 2": to_rgb(CLASS_COLOURS[1])}


def test_the_views_lie_side_by_side_to_one_scale(rng):
    figure = overview_figure(brain(rng)[2])
    left, right, bottom, top = zip(*(image.get_extent() for image in figure.axes[0].images), strict=True)
    depth, height, width = 60, 200, 180
    gap = right[2] - depth - width
    assert 0 < gap < 10
    assert (left, right) == ((0, 0, width + gap), (width, width, width + gap + depth))
    assert (top, bottom) == ((0, height + gap, 0), (height, height + gap + depth, height))


def test_the_density_map_and_the_sizes_are_those_of_the_objects(rng):
    _, _, data = brain(rng)
    figure = overview_figure(data)
    density = axes_of(figure, "objects per mm³, along z, in squares of ")
    np.testing.assert_array_equal(density.images[0].get_array(), data.density.values)
    sizes = axes_of(figure, f"{len(data.objects)} objects, median 18 µm³")
    heights = [bar.get_height() for bar in sizes.patches]
    edges = [bar.get_x() for bar in sizes.patches] + [sizes.patches[-1].get_x() + sizes.patches[-1].get_width()]
    np.testing.assert_array_equal(heights, np.histogram(data.sizes, edges)[0])
    assert sum(heights) == len(data.objects)
    assert sizes.get_xscale() == "log"
    assert sizes.lines[0].get_xdata()[0] == np.median(data.sizes)


def test_the_head_says_what_is_shown(rng):
    labels, _, data = brain(rng)
    name, size, number = texts(overview_figure(data))
    assert name == "brain"
    assert size == "10 × 100 × 120 voxels (z, y, x) of 6 × 2 × 1.5 µm, together 60 × 200 × 180 µm"
    share = 100 * np.count_nonzero(labels) / labels.size
    assert number == f"{len(data.objects)} objects, together {share:.3g} % of the volume"
    _, size, _ = texts(overview_figure(brain(rng, spacing=None)[2]))
    assert size == "10 × 100 × 120 voxels (z, y, x) of unknown size"


def test_an_empty_segmentation_says_so():
    figure = overview_figure(overview(segmented(np.zeros(SHAPE, np.uint8))))
    written = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert {"the segmentation is empty", "no objects", "no foreground"} <= written
    assert texts(figure)[2] == "0 objects, together 0 % of the volume"
    assert len(axes_of(figure, "segmentation").images) == 6


def test_one_slice_is_seen_along_z_only(rng):
    labels = spots(rng, (1, 60, 80), 30)
    figure = overview_figure(overview(segmented(labels, labels * np.uint16(500))))
    assert len(axes_of(figure, "image").images) == 1
    np.testing.assert_array_equal(axes_of(figure, "with").images[1].get_array()[..., 3] > 0, labels[0])


def test_an_image_that_is_uniform_or_not_finite_is_black(rng):
    for image in (np.full(SHAPE, 7, np.uint16), np.full(SHAPE, np.nan, np.float32)):
        figure = overview_figure(overview(segmented(np.ones(SHAPE, np.uint8), image)))
        assert all((view.get_array() == 0).all() for view in figure.axes[0].images)


def test_lines_through_two_classes_have_their_mean_colour():
    bits, shares = np.array([[0b101, 0b1000000, 0]], np.uint8), np.array([[0.5, 0.1, 0.0]])
    picture = class_picture(bits, shares, dense=0.5)
    np.testing.assert_allclose(picture[0, 0, :3], np.mean([to_rgb(CLASS_COLOURS[i]) for i in (0, 2)], axis=0))
    np.testing.assert_allclose(picture[0, 1, :3], to_rgb(CLASS_COLOURS[6]))
    assert picture[0, 0, 3] > picture[0, 1, 3] > 0 == picture[0, 2, 3]


def thin(rng):
    return segmented(spots(rng, (3, 300, 4), 20), spots(rng, (3, 300, 4), 20))


def many_classes(rng):
    labels = spots(rng) * rng.integers(1, 8, (10, 100, 120), dtype=np.uint8)
    return segmented(labels, classes={1: "a class with a rather long name", 2: "blood vessel"})


def hot_pixel(rng):
    phantom = draw("cfos_neuron", (24, 90, 80), rng, outside=0.4, whole=True)
    image = phantom.image.copy()
    image[3, 5, 7] = 65535
    return segmented(phantom.label, image, spacing=phantom.spacing_um_zyx, classes={1: "c-Fos+ cell"})


@pytest.mark.parametrize("case", [thin, many_classes, hot_pixel], ids=lambda case: case.__name__)
def test_a_picture_is_written_in_a_size_for_slides(case, rng, tmp_path):
    data = overview(case(rng))
    overview_sheet(tmp_path / "overview.png", data)
    height, width, _ = imread(tmp_path / "overview.png").shape
    assert 900 < height < 2000
    assert (2000 if data.raw else 1200) < width < 3300
    assert [file.name for file in tmp_path.iterdir()] == ["overview.png"]

from pathlib import Path

import numpy as np
import pytest

from nnunet_selma.conversion.checks import read_label
from nnunet_selma.errors import SelmaError
from nnunet_selma.objects.reading import as_labels
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Volume
from nnunet_selma.volumes.labels import check_labels, label_values, read_mask
from tests.conftest import write_image

REFUSED = [
    (np.array([0.0, 0.5]), r"holds fractions \(0 to 0.5\)"),
    (np.array([0.0, np.nan]), "holds NaN or infinite"),
    (np.array([0, np.inf]), "holds NaN or infinite"),
    (np.array([0, -1], np.int16), "holds the values -1 to 0"),
    (np.array([0, 2.0**32]), "to 4294967295"),
    (np.array([0, 2**32], np.uint64), "to 4294967295"),
]


@pytest.mark.parametrize(("values", "sentence"), [*REFUSED, (np.array([1j]), "holds values of type complex")])
def test_what_is_no_label_is_refused(values, sentence):
    with pytest.raises(SelmaError, match=rf"^labels\.nii\.gz: .*{sentence}"):
        label_values(values, Path("labels.nii.gz"))


@pytest.mark.parametrize("dtype", [bool, np.uint8, ">u2", np.uint64, np.int8, np.int32, np.float32, np.float64])
def test_labels_of_every_type_become_unsigned_integers(dtype):
    for values in (np.array([[0, 1], [1, 1]]).astype(dtype), np.empty((0, 3), dtype)):
        labels = label_values(values, Path("a"))
        np.testing.assert_array_equal(labels, values)
        assert labels.dtype.kind == "u"
        assert labels.dtype.isnative


@pytest.mark.parametrize(("values", "sentence"), REFUSED)
def test_conversion_evaluation_and_objects_refuse_the_same(values, sentence, tmp_path):
    path = write_image(tmp_path / "labels.nii.gz", np.broadcast_to(values, (2, 3, 2)).copy())
    volume = open_volume(path)
    readers = (
        lambda: read_label(volume),
        lambda: read_mask(open_volume(path)),
        lambda: as_labels(volume.read, path)(*map(slice, volume.shape)),
    )
    for read in readers:
        with pytest.raises(SelmaError, match=sentence):
            read()


BALL = np.zeros((6, 8, 10), bool)
BALL[1:4, 2:5, 3:7] = True


def written(values, tmp_path, dtype=np.uint16):
    return open_volume(write_image(tmp_path / "gt.nii.gz", np.asarray(values).astype(dtype)))


CLEAR = [
    (BALL, BALL, []),
    (BALL * 255, BALL, ["label values other than 0 and 1"]),
    (BALL * (1 + np.arange(10)), BALL, ["label values other than 0 and 1"]),
    (BALL * 0, BALL & False, []),
    (BALL & (np.arange(10) == 3), BALL & (np.arange(10) == 3), ["the objects have 9 voxel(s) altogether"]),
    (~BALL * 255, ~BALL, ["the label may be inverted", "label values other than 0 and 1"]),
]


@pytest.mark.parametrize(("values", "mask", "warnings"), CLEAR)
def test_every_value_above_0_is_an_object(values, mask, warnings, tmp_path):
    objects = read_mask(written(values, tmp_path))
    np.testing.assert_array_equal(objects.mask, mask)
    assert sum(objects.values.values()) == BALL.size
    assert len(objects.warnings) == len(warnings)
    for warning, part in zip(objects.warnings, warnings, strict=True):
        assert part in warning


DOUBTFUL = [
    (np.where(BALL, 1, 2), r"no background of 0; the values are 1 \(36 voxels\), 2 \(444 voxels\)", 1),
    (np.where(BALL, 2, 1), r"no background of 0", 2),
    (np.ones_like(BALL), r"no background of 0", 1),
    (np.where(BALL, 1, np.where(np.arange(10) > 8, 255, 0)), r"255 beside 1", 1),
]


@pytest.mark.parametrize(("values", "sentence", "foreground"), DOUBTFUL)
def test_a_ground_truth_that_leaves_a_doubt_is_asked_about(values, sentence, foreground, tmp_path):
    volume = written(values, tmp_path)
    with pytest.raises(SelmaError, match=sentence) as refused:
        read_mask(volume)
    assert "--foreground" in refused.value.for_command({"--foreground"})
    np.testing.assert_array_equal(read_mask(volume, foreground).mask, np.asarray(values) == foreground)
    np.testing.assert_array_equal(read_mask(volume, truth=False).mask, np.asarray(values) > 0)
    with pytest.raises(SelmaError, match="foreground value 7 does not occur"):
        read_mask(volume, 7)


CHANGING = "change from voxel to voxel, as in an image"


def test_an_image_in_place_of_a_label_is_refused(tmp_path, rng):
    values = np.arange(1200).reshape(10, 10, 12)
    image = rng.poisson(400, (20, 30, 40))  # hundreds of values, each in many voxels
    for voxels, count in ((values, 1200), (image, len(np.unique(image)))):
        for truth in (True, False):
            with pytest.raises(SelmaError, match=f"holds {count} values that {CHANGING}"):
                read_mask(written(voxels, tmp_path), truth=truth)


def test_labels_of_many_objects_are_no_image(tmp_path):
    values = np.arange(1200).reshape(10, 10, 12)
    instances = np.repeat(values, 8, axis=0)  # 1199 objects of eight voxels
    assert read_mask(written(instances, tmp_path)).mask.sum() == 8 * 1199
    points = np.zeros((20, 20, 24), int)
    points[::2, ::2, ::2] = values  # objects of one voxel that touch no other
    assert read_mask(written(points, tmp_path)).mask.sum() == 1199


class Voxels(Volume):
    """An array that counts the voxels that are read."""

    path = Path("v.tif")

    def __init__(self, voxels, plane_wise=False):
        self.voxels, self.plane_wise = voxels, plane_wise
        self.shape, self.dtype = voxels.shape, voxels.dtype
        self.count = 0

    def _read(self, z, y, x):
        box = self.voxels[z, y, x]
        self.count += box.size
        return box


SHAPE = (40, 150, 160)


def cubes(rng, dtype=np.uint16):
    """Touching instances of 3 × 4 × 4 voxels, and background."""
    few = [-(-n // edge) for n, edge in zip(SHAPE, (3, 4, 4), strict=True)]
    numbers = rng.permutation(int(np.prod(few))).reshape(few) * (rng.random(few) < 0.8)
    return numbers.repeat(3, 0).repeat(4, 1).repeat(4, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]].astype(dtype)


def smooth(rng, high):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(rng.random(SHAPE), 3) * high


LABELS = {
    "nothing": lambda rng: np.zeros(SHAPE, np.uint8),
    "everything": lambda rng: np.ones(SHAPE, np.uint8),
    "0 and 255": lambda rng: ((smooth(rng, 1) > 0.5) * 255).astype(np.uint8),
    "a boolean mask": lambda rng: smooth(rng, 1) > 0.5,
    "whole numbers as float": lambda rng: (smooth(rng, 1) > 0.5).astype(np.float32),
    "float with NaN outside": lambda rng: np.where(smooth(rng, 1) > 0.5, 1.0, np.nan),
    "touching instances": cubes,
    "touching instances as float": lambda rng: cubes(rng, np.float64),
    "points that touch here and there": lambda rng: np.where(
        rng.random(SHAPE) < 0.05, np.arange(40 * 150 * 160).reshape(SHAPE), 0
    ),
    "regions drawn for each voxel": lambda rng: rng.choice([0, 1, 2, 3, 4, 614454277], SHAPE).astype(np.uint32),
    "touching cells of eight voxels": lambda rng: (
        rng.integers(0, 2**31, (20, 75, 80)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    ),
    "ninety regions": lambda rng: rng.integers(0, 90, (10, 50, 80)).repeat(4, 0).repeat(3, 1).repeat(2, 2),
    "regions without a background": lambda rng: rng.integers(1, 17, SHAPE),
    "large regions": lambda rng: rng.integers(0, 2**31, (4, 15, 16)).repeat(10, 0).repeat(10, 1).repeat(10, 2),
    "regions of both sides": lambda rng: (
        rng.integers(-1000, 1000, (4, 15, 16)).repeat(10, 0).repeat(10, 1).repeat(10, 2)
    ),
}
IMAGES = {
    "bright objects in noise": lambda rng: np.where(smooth(rng, 1) > 0.5, 3000, 120) + rng.integers(0, 20, SHAPE),
    "few grey values": lambda rng: rng.integers(0, 30, SHAPE) * 100 + 50,
    "16 bit": lambda rng: rng.poisson(400, SHAPE).astype(np.uint16),
    "float": lambda rng: rng.poisson(400, SHAPE).astype(np.float32),
    "without its background": lambda rng: np.where(smooth(rng, 1) > 0.5, rng.poisson(900, SHAPE), 0),
    "smooth": lambda rng: smooth(rng, 20000).astype(np.uint16),
    "noise with its background cut off": lambda rng: rng.normal(-150, 300, SHAPE).clip(0).astype(np.uint16),
    "noise between many zeros": lambda rng: (rng.random(SHAPE) < 0.2) * rng.integers(1, 900, SHAPE),
    "few photons": lambda rng: rng.poisson(8, SHAPE).astype(np.uint8),
    "signed": lambda rng: rng.normal(0, 300, SHAPE).astype(np.int16),
}


@pytest.mark.parametrize("plane_wise", [True, False])
class TestLabelsAgainstImages:
    @pytest.mark.parametrize("draw", LABELS.values(), ids=LABELS)
    def test_labels_masks_and_atlases_pass(self, draw, plane_wise, rng):
        check_labels(Voxels(draw(rng), plane_wise))

    @pytest.mark.parametrize("draw", IMAGES.values(), ids=IMAGES)
    def test_images_are_refused(self, draw, plane_wise, rng):
        with pytest.raises(SelmaError, match=rf"^v\.tif: holds \d+ values that {CHANGING}; give labels instead"):
            check_labels(Voxels(draw(rng), plane_wise))

    def test_probabilities_are_refused(self, plane_wise, rng):
        with pytest.raises(SelmaError, match=r"^v\.tif: holds fractions .* threshold it"):
            check_labels(Voxels(smooth(rng, 1), plane_wise))

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 2), (300, 1, 1), (3, 5, 7)])
    def test_every_shape_is_looked_at(self, shape, plane_wise):
        check_labels(Voxels(np.ones(shape, np.uint8), plane_wise))
        if np.prod(shape) > 100 and not (plane_wise and shape[0] > 100):  # of these, six slices of one voxel
            with pytest.raises(SelmaError, match=CHANGING):
                check_labels(Voxels(1000 + np.arange(np.prod(shape)).reshape(shape), plane_wise))

    def test_few_voxels_are_read(self, plane_wise):
        volume = Voxels(np.broadcast_to(np.uint8(1), (4000, 3000, 2000)), plane_wise)
        check_labels(volume)
        assert volume.count <= (6 * 3000 * 2000 if plane_wise else 9 * 16 * 64 * 64)


def test_a_whole_file_is_judged_by_the_same_rule(tmp_path, rng):
    image = IMAGES["bright objects in noise"](rng)[:20, :40, :40]
    with pytest.raises(SelmaError, match=CHANGING):
        read_mask(written(image, tmp_path), truth=False)
    for draw in (cubes, LABELS["points that touch here and there"]):
        read_mask(written(draw(rng), tmp_path, np.uint32), truth=False)

"""The labels in an OME-Zarr, wherever a path points."""

import shutil

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.objects.atlas import open_atlas
from nnunet_selma.objects.reading import open_sources
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.segmented import (
    has_image,
    image_at,
    is_segmentation_only,
    label_image,
    label_levels,
    levels,
    open_labels,
    segmentation_at,
)
from tests.conftest import write_image
from tests.volumes.test_ome_zarr import put, write, zipped

zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")


@pytest.fixture(params=[2, 3])
def version(request):
    return request.param


@pytest.fixture
def mask(rng):
    return (rng.random((6, 7, 8)) < 0.3).astype(np.uint8)


def write_labels(path, mask, version, *, names=("segmentation",), image=True):
    """An OME-Zarr with label images, as `predict-volume` writes it."""
    if image:
        write(path, mask + mask.dtype.type(7), version)
    root = zarr.open_group(str(path), mode="a", zarr_format=version)
    labels = root.create_group("labels")
    put(labels, {"labels": list(names)})
    for name in names:
        write(path / "labels" / name, mask, version)
        group = zarr.open_group(str(path / "labels" / name))
        put(group, {**dict(group.attrs).get("ome", dict(group.attrs)), "image-label": {}})
    return path


@pytest.mark.parametrize("image", [True, False])
def test_labels_are_opened_by_the_path_of_the_zarr_or_their_own(image, version, mask, tmp_path):
    path = write_labels(tmp_path / "v.ome.zarr", mask, version, names=("cells", "segmentation"), image=image)
    for place in (path, path / "labels" / "cells"):
        np.testing.assert_array_equal(open_labels(place).read(), mask)
    assert has_image(path) == image
    assert is_segmentation_only(path) != image
    assert is_segmentation_only(path / "labels" / "cells")


UM = (1.0, 1.0, 1.0)
OPENED = {
    "labels, masks": open_labels,
    "labels of objects": lambda path: open_sources(path, name=None, raw=None, without_raw=True, channel=None).labels,
    "atlas": lambda path: open_atlas(path, sample=open_volume(path), sample_um_zyx=UM, spacing_um_zyx=UM).volume,
    "overview": lambda path: segmentation_at(path).labels[0],
    "view": lambda path: image_at(path, labels=path).labels[0],
}


@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_every_argument_opens_the_labels_and_refuses_an_image(opened, version, rng, mask, tmp_path):
    path = write_labels(tmp_path / "v.ome.zarr", mask, version)
    for place in (path, path / "labels" / "segmentation"):
        np.testing.assert_array_equal(opened(place).read(), mask)
    image = write(tmp_path / "image.ome.zarr", rng.poisson(300, mask.shape).astype(np.uint16), version)
    for place in (image, image / "0"):
        with pytest.raises(SelmaError, match="change from voxel to voxel, as in an image; give labels instead"):
            opened(place)


def test_what_is_marked_as_labels_is_not_doubted(version, rng, tmp_path):
    numbers = rng.permutation(1000).reshape(10, 10, 10).astype(np.uint16)
    path = write_labels(tmp_path / "v.ome.zarr", numbers, version)
    assert [volume.shape for volume in label_levels(path)] == [(10, 10, 10)]


def test_several_labels_are_asked_about(version, mask, tmp_path):
    path = write_labels(tmp_path / "v.ome.zarr", mask, version, names=("cells", "vessels"))
    with pytest.raises(
        SelmaError, match=r"label images cells, vessels; give one of them, as .*v.ome.zarr/labels/cells$"
    ):
        open_labels(path)
    with pytest.raises(SelmaError, match="cells, vessels; give one of them"):
        label_image(path)


def test_other_volumes_are_the_labels(version, mask, tmp_path):
    image = write(tmp_path / "image.ome.zarr", mask, version)
    file = write_image(tmp_path / "labels.nii.gz", mask)
    for path in (image, file):
        np.testing.assert_array_equal(open_labels(path).read(), mask)
        assert not is_segmentation_only(path)


def test_labels_below_a_root_of_bioformats2raw(version, mask, tmp_path):
    root = zarr.open_group(str(tmp_path / "v.zarr"), mode="w", zarr_format=version)
    put(root, {"bioformats2raw.layout": 3})
    write_labels(tmp_path / "v.zarr" / "0", mask, version)
    np.testing.assert_array_equal(open_labels(tmp_path / "v.zarr").read(), mask)
    np.testing.assert_array_equal(levels(tmp_path / "v.zarr")[0].read(), mask + 7)
    assert not is_segmentation_only(tmp_path / "v.zarr")


def write_root(path, mask, version, labelled=()):
    """A root of bioformats2raw with two images, some of them with labels."""
    put(zarr.open_group(str(path), mode="w", zarr_format=version), {"bioformats2raw.layout": 3})
    for number in range(2):
        if number in labelled:
            write_labels(path / str(number), mask + mask.dtype.type(number), version)
        else:
            write(path / str(number), mask + mask.dtype.type(7 + number), version)
    return path


@pytest.mark.parametrize("scene", ["0", "1"])
def test_the_labels_of_a_scene_are_opened(scene, version, mask, tmp_path):
    path = write_root(tmp_path / "v.zarr", mask, version, labelled=(0, 1))
    for opened in (segmentation_at(path, scene=scene), image_at(path, scene=scene)):
        np.testing.assert_array_equal(opened.labels[0].read(), mask + int(scene))
        np.testing.assert_array_equal(opened.channels[0][0].read(), mask + int(scene) + 7)
    with pytest.raises(SelmaError, match="is a file of 2 images"):
        segmentation_at(path)


@pytest.mark.parametrize("folder", ["", "v.zarr"])
def test_a_scene_of_a_zipped_root(folder, version, mask, tmp_path):
    archive = zipped(write_root(tmp_path / "v.zarr", mask, version, labelled=(0,)), folder)
    np.testing.assert_array_equal(image_at(archive, scene="1").channels[0][0].read(), mask + 8)
    np.testing.assert_array_equal(segmentation_at(archive, scene="1").labels[0].read(), mask + 8)
    with pytest.raises(SelmaError, match="holds the label images segmentation, which are not read from a zip file"):
        image_at(archive, scene="0")
    with pytest.raises(SelmaError, match=r"v\.zarr\.zip: is a file of 2 images \(0, 1\), not one"):
        image_at(archive)
    assert not is_segmentation_only(archive)


def test_a_zipped_plate_is_named(version, mask, tmp_path):
    plate = zarr.open_group(str(tmp_path / "p.zarr"), mode="w", zarr_format=version)
    put(plate, {"plate": {"wells": [{"path": "A/1"}, {"path": "A/2"}]}})
    archive = zipped(tmp_path / "p.zarr")
    for scene in (None, "0"):
        with pytest.raises(
            SelmaError, match=r"p\.zarr\.zip: is a plate of 2 images \(A/1/0, A/2/0\), not one; unpack it"
        ):
            image_at(archive, scene=scene)


@pytest.mark.parametrize("packed", [False, True])
def test_a_bare_array_has_no_labels(packed, version, mask, tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=mask, zarr_format=version)
    path = zipped(tmp_path / "a.zarr") if packed else tmp_path / "a.zarr"
    np.testing.assert_array_equal(open_labels(path).read(), mask)
    assert not is_segmentation_only(path)


def test_labels_in_a_zip_file_are_not_passed_over(version, mask, tmp_path):
    archive = zipped(write_labels(tmp_path / "v.ome.zarr", mask, version))
    shutil.rmtree(tmp_path / "v.ome.zarr")
    with pytest.raises(
        SelmaError, match="holds the label images segmentation, which are not read from a zip file; unpack"
    ):
        open_labels(archive)
    plain = zipped(write(tmp_path / "w.ome.zarr", mask, version))
    np.testing.assert_array_equal(open_labels(plain).read(), mask)

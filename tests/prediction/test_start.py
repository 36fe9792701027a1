"""Inputs with which a run begins: boolean images, masks, and inputs that were copied in part."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.prediction.model import Model
from nnunet_selma.volumes import open_volume
from tests.prediction.models import write_model
from tests.volumes.test_lost_chunks import lose
from tests.volumes.test_lost_chunks import write as write_chunks
from tests.volumes.test_segmented import write_labels

SHAPE = (32, 48, 64)
SPACING = (6.0, 1.6, 1.5)  # of the label images in an OME-Zarr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def settings(model, tmp_path):
    def make(source, **more):
        output = tmp_path / f"{Path(source).name}.out.ome.zarr"
        return VolumePrediction(inputs=(source,), output=output, model=model, spacing_um_zyx=SPACING, **more)

    return make


def tiff(path, voxels):
    tifffile.imwrite(path, voxels, photometric="minisblack")
    return path


def bare_zarr(path, voxels):
    zarr.create_array(path, data=voxels, chunks=(16, 16, 16))
    return path


@pytest.mark.parametrize(("write", "name"), [(tiff, "v.tif"), (bare_zarr, "v.zarr")])
def test_a_boolean_image_is_predicted_as_the_same_0_and_1(write, name, settings, rng, tmp_path):
    mask = rng.random(SHAPE) < 0.3
    labels = []
    for dtype in (bool, np.uint8):
        source = write(tmp_path / f"{np.dtype(dtype)}_{name}", mask.astype(dtype))
        run = settings(source, tissue_only=False)
        predict_volume(run, Execution())
        labels.append(open_volume(run.output / "labels" / run.name).read())
        np.testing.assert_array_equal(open_volume(run.output).read(), mask)
    np.testing.assert_array_equal(*labels)


def test_an_open_model_must_be_that_of_the_settings(settings, model, tmp_path):
    run = settings(tiff(tmp_path / "v.tif", np.ones(SHAPE, np.uint8)))
    with pytest.raises(ValueError, match="the settings name another model"):
        predict_volume(run, Execution(), model=Model(replace(model, step_size=1.0), "cpu"))
    assert not list(tmp_path.glob(".*"))


def test_a_mask_is_the_labels_of_an_ome_zarr_and_never_an_image(settings, rng, tmp_path):
    source = tiff(tmp_path / "v.tif", rng.poisson(400, SHAPE).astype(np.uint16))
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :16] = 1
    inside = write_labels(tmp_path / "tissue.ome.zarr", mask, 3)
    alone = tiff(tmp_path / "mask.tif", mask)
    results = []
    for place in (inside, inside / "labels/segmentation", alone):
        run = settings(source, mask=place)
        results.append(predict_volume(run, Execution(overwrite=True)))
    assert len({(result.tissue_share, result.foreground) for result in results}) == 1
    assert results[0].tissue_share < 0.5
    with pytest.raises(SelmaError, match=r"v\.tif: holds \d+ values that change from voxel to voxel, as in an image"):
        predict_volume(settings(source, mask=source), Execution(overwrite=True))


def test_a_mask_of_another_direction_marks_the_same_place(settings, rng, tmp_path):
    """A NIfTI whose x nibabel has reversed, with its header, against a TIFF that lies as the volume does."""
    affine = np.diag([1.5e-3, 1.6e-3, 6e-3, 1])
    nibabel.save(nibabel.Nifti1Image(rng.poisson(400, SHAPE).astype(np.uint16).T, affine), tmp_path / "v.nii")
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :, :16] = 1
    turned = nibabel.Nifti1Image(mask.T, affine).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    nibabel.save(turned, tmp_path / "mask.nii")
    labels = []
    for place in (tmp_path / "mask.nii", tiff(tmp_path / "mask.tif", mask)):
        run = settings(tmp_path / "v.nii", mask=place)
        predict_volume(run, Execution(overwrite=True))
        labels.append(open_volume(run.output / "labels" / run.name).read())
    assert labels[1].any()
    np.testing.assert_array_equal(*labels)


def test_chunks_that_were_lost_in_tissue_are_named_before_they_are_predicted(settings, rng, tmp_path):
    voxels = np.zeros((32, 48, 96), np.uint16)  # the last third was never written
    voxels[:, :, :60] = rng.integers(300, 4000, (32, 48, 60))
    path = write_chunks(tmp_path / "v.ome.zarr", voxels, 3)
    said = []
    predict_volume(settings(path), Execution(), say=said.append)
    assert not [sentence for sentence in said if "have no file" in sentence]
    stored = open_volume(path).stored_files()
    lost = np.zeros(stored.shape, bool)
    lost[1, 1, 1] = True
    lose(path, stored, 0, lost)
    predict_volume(settings(path), Execution(overwrite=True), say=said.append)
    (warning,) = [sentence for sentence in said if "have no file" in sentence]
    assert "chunks in or beside tissue have no file and read as empty" in warning
    assert "the image goes on at 1 of them or more, the first at voxel 16, 16, 16 (z, y, x)" in warning

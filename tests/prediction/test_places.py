"""Images, labels and probabilities lie where the input lies: in new files, in the input, of coarser levels, and as NIfTI."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from nnunet_selma.objects import ObjectSettings, measure_objects
from nnunet_selma.objects.table_files import read_table
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import open_volume, pyramids
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, fill_pyramid, write_box
from tests.prediction.models import texture, write_model

SHAPE = (24, 32, 40)
AFFINE = np.array([[0, 0.002, 0, 1.5], [-0.003, 0, 0, -2.0], [0, 0, -0.004, 0.5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def voxels():
    return texture(np.random.default_rng(1), SHAPE)[0].astype(np.uint16)


def settings_for(path, output, model, **options):
    return VolumePrediction(inputs=(path,), output=output, model=model, block=32, tissue_only=False, **options)


def write_crop(path, voxels, version, spacing=(4.0, 2.0, 2.0)):
    """An OME-Zarr whose first voxel is at (25, 125, 200) voxels, with coarser levels."""
    layout = ImageLayout(
        shape=SHAPE,
        dtype=voxels.dtype,
        spacing_um_zyx=spacing,
        origin_voxels_zyx=(25.0, 125.0, 200.0),
        shard_zyx=SHAPE,
        chunk_zyx=SHAPE,
        reduction="mean",
        name="crop",
        version=version,
    )
    create_image(path, layout)
    write_box(path, (0, 0, 0), voxels)
    fill_pyramid(path)
    return path


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_crop_and_its_levels(version, voxels, model, tmp_path, monkeypatch):
    monkeypatch.setattr(pyramids, "_SMALL", 4)
    crop = write_crop(tmp_path / "crop.ome.zarr", voxels, version)
    new = settings_for(crop, tmp_path / "new.ome.zarr", model, probabilities=True, version=version)
    predict_volume(new, Execution())
    written = (new.output, new.output / "labels" / "segmentation", tmp_path / "new_probabilities.ome.zarr")
    channels = (None, None, 0)
    for path, channel in zip(written, channels, strict=True):
        assert open_volume(path, channel=channel).origin_um_zyx == (100.0, 250.0, 400.0)
    assert read_json(new.record)["place"] == {"origin_um_zyx": [100.0, 250.0, 400.0], "affine": None}
    for level in (0, 1):
        predict_volume(settings_for(crop, crop, model, level=level, name=f"at{level}"), Execution())
        image, labels = open_volume(crop, level=level), open_volume(crop / "labels" / f"at{level}")
        assert image.shape == labels.shape
        assert labels.spacing_um_zyx == image.spacing_um_zyx
        assert labels.origin_um_zyx == image.origin_um_zyx
    assert image.origin_um_zyx != (100.0, 250.0, 400.0)  # half a voxel further, where two were joined
    table, instances = tmp_path / "cells.csv", crop / "labels" / "cells"
    measure_objects(ObjectSettings(labels=crop, label="at1", output=table, instances=instances))
    assert open_volume(instances).origin_um_zyx == image.origin_um_zyx
    columns = read_table(table, [f"centroid_{axis}{um}" for axis in "zyx" for um in ("", "_um")])
    for axis, place, edge in zip("zyx", image.origin_um_zyx, image.spacing_um_zyx, strict=True):
        np.testing.assert_allclose(columns[f"centroid_{axis}_um"], place + edge * columns[f"centroid_{axis}"])


def test_voxels_without_a_unit(voxels, model, tmp_path, monkeypatch):
    """Labels of level 1 are in voxels of level 0, as the image's levels are, and are not taken for µm."""
    monkeypatch.setattr(pyramids, "_SMALL", 4)
    crop = write_crop(tmp_path / "crop.ome.zarr", voxels, "0.5", spacing=None)
    settings = settings_for(crop, crop, model, level=1)
    predict_volume(settings, Execution())
    image, labels = open_volume(crop, level=1), open_volume(crop / "labels" / "segmentation")
    assert image.level_factor_zyx == (2.0, 2.0, 2.0)
    assert labels.spacing_um_zyx is None
    assert labels.origin_voxels_zyx == image.origin_voxels_zyx
    (written,) = read_json(crop / "labels" / "segmentation" / "zarr.json")["attributes"]["ome"]["multiscales"]
    assert written["datasets"][0]["coordinateTransformations"][0]["scale"] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_nifti_through_an_ome_zarr_and_back(version, voxels, model, tmp_path):
    image = nib.Nifti1Image(voxels.T, AFFINE)
    image.header.set_xyzt_units("mm")
    image.set_sform(AFFINE, 4)
    nib.save(image, tmp_path / "in.nii.gz")
    volume = open_volume(tmp_path / "in.nii.gz")
    settings = settings_for(tmp_path / "in.nii.gz", tmp_path / "out.ome.zarr", model, version=version)
    predict_volume(settings, Execution(also=("nifti", "tiff")))
    for path in (settings.output, settings.output / "labels" / "segmentation"):
        np.testing.assert_allclose(open_volume(path).affine, volume.affine)
        assert open_volume(path).origin_um_zyx == pytest.approx(volume.origin_um_zyx)
    labels = nib.load(tmp_path / "out_segmentation.nii.gz")
    np.testing.assert_array_equal(labels.affine, nib.load(tmp_path / "in.nii.gz").affine)
    assert (int(labels.header["qform_code"]), int(labels.header["sform_code"])) == (0, 4)
    expected = open_volume(settings.output / "labels" / "segmentation").read()
    np.testing.assert_array_equal(np.asarray(labels.dataobj).T, expected)
    assert expected.any()
    assert (tmp_path / "out_segmentation").is_dir()
    (tmp_path / "out_segmentation.nii.gz").unlink()
    predict_volume(settings, Execution(also=("nifti",)))  # complete already, but for this
    assert (tmp_path / "out_segmentation.nii.gz").is_file()
    # a run that replaces it leaves none of the old one
    predict_volume(replace(settings, tissue_only=True), Execution(overwrite=True))
    assert not (tmp_path / "out_segmentation.nii.gz").exists()


def test_levels_of_an_image_with_a_direction(voxels, model, tmp_path, monkeypatch):
    """The affine of level 1 takes the same voxels of the world to each of its voxels as that of level 0."""
    monkeypatch.setattr(pyramids, "_SMALL", 4)
    nib.save(nib.Nifti1Image(voxels.T, AFFINE), tmp_path / "in.nii")
    settings = settings_for(tmp_path / "in.nii", tmp_path / "out.ome.zarr", model)
    predict_volume(settings, Execution())
    fine, coarse = (open_volume(settings.output, level=level) for level in (0, 1))
    factor = np.array(coarse.level_factor_zyx[::-1])
    index = np.array([3.0, 2.0, 1.0])
    np.testing.assert_allclose(
        coarse.affine @ [*index, 1], fine.affine @ [*(index * factor + (factor - 1) / 2), 1], atol=1e-9
    )
    assert (factor > 1).any()

"""Blocks give what `nnUNetv2_predict` gives for the whole volume."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image
from tests.plans import plans
from tests.prediction.models import stock, texture, write_model

SHARE = 1e-5
"""Of voxels that may differ: the mean of the volume is added up in float64 here and in float32 by nnU-Net."""


def flat():
    return plans("2d, 256×256", features=2)


def thick_slices():
    content = plans()
    content["configurations"]["3d_fullres"]["spacing"] = [5.0, 1.0, 1.0]
    return content


def turned():
    content = plans()
    content["transpose_forward"], content["transpose_backward"] = [2, 0, 1], [1, 2, 0]
    content["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.5, 1.0]
    content["configurations"]["3d_fullres"]["patch_size"] = [16, 8, 24]
    return content


def scheme(name):
    content = plans()
    content["configurations"]["3d_fullres"]["normalization_schemes"] = [name]
    content["foreground_intensity_properties_per_channel"]["0"] |= {
        "mean": 1500.0,
        "std": 400.0,
        "percentile_00_5": 300.0,
        "percentile_99_5": 3500.0,
    }
    return content


# name: plans, shape, spacing in µm (z, y, x), the model's channels, folds and labels
CASES = {
    "one grid": (plans, (37, 45, 52), None, {}),
    "smaller than the patch along z": (plans, (9, 33, 40), None, {}),
    "smaller than the patch": (plans, (9, 13, 11), None, {}),
    "zeros around it": (plans, (40, 41, 42), None, {"dark_border": 6}),
    "two channels": (plans, (33, 30, 36), None, {"channels": 2}),
    "two folds, three classes": (
        plans,
        (30, 33, 36),
        None,
        {"folds": 2, "labels": {"background": 0, "cell": 1, "fibre": 2}},
    ),
    "regions": (
        plans,
        (30, 33, 36),
        None,
        {"labels": {"background": 0, "cell": [1, 2], "core": [2]}, "regions_order": [1, 2]},
    ),
    "2d": (flat, (3, 270, 300), None, {}),
    "residual encoder": (lambda: plans(residual=True), (30, 33, 36), None, {}),
    "finer voxels than the model's": (lambda: _spaced((2.0, 2.0, 2.0)), (37, 45, 52), (1.3, 1.2, 1.1), {}),
    "coarser voxels, zeros around": (
        lambda: _spaced((2.0, 2.0, 2.0)),
        (25, 26, 27),
        (3.0, 2.6, 2.2),
        {"dark_border": 3},
    ),
    "thick slices": (thick_slices, (14, 45, 52), (7.0, 1.3, 0.8), {}),
    "thick slices, plane size kept": (thick_slices, (14, 45, 52), (7.0, 1.0, 1.0), {}),
    "axes turned": (turned, (33, 40, 28), (1.2, 1.9, 1.5), {}),
    "axes turned, zeros around": (turned, (33, 40, 28), (1.2, 1.9, 1.5), {"dark_border": 4}),
    "mirrored": (plans, (30, 33, 36), None, {"mirroring": True}),
    "larger steps": (plans, (37, 45, 52), None, {"step_size": 0.7}),
    "2d, finer voxels": (flat, (3, 330, 350), (2.0, 0.7, 0.8), {}),
    "CT normalisation": (lambda: scheme("CTNormalization"), (30, 33, 36), None, {}),
    "rescaled to 0 and 1": (lambda: scheme("RescaleTo01Normalization"), (30, 33, 36), None, {"dark_border": 4}),
    "not normalised": (lambda: scheme("NoNormalization"), (30, 33, 36), None, {}),
}


def _spaced(spacing):
    content = plans()
    content["configurations"]["3d_fullres"]["spacing"] = list(spacing)
    return content


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_what_nnunet_gives(case, tmp_path, rng):
    make, shape, spacing, more = CASES[case]
    model_options = {key: more[key] for key in ("channels", "folds", "labels", "regions_order") if key in more}
    content = make() | {"original_median_spacing_after_transp": [1.0] * 3 if spacing is None else [2.0] * 3}
    settings = write_model(tmp_path / "model", content, **model_options)
    settings = replace(settings, **{key: more[key] for key in ("mirroring", "step_size") if key in more})
    image = texture(rng, shape, channels=more.get("channels", 1), dark_border=more.get("dark_border", 0))
    inputs = tuple(write_image(tmp_path / f"brain_{i}.nii.gz", one) for i, one in enumerate(image))
    whole = stock(settings, image, spacing or (1.0, 1.0, 1.0))
    prediction = VolumePrediction(
        inputs=inputs,
        output=tmp_path / "brain.ome.zarr",
        model=settings,
        spacing_um_zyx=spacing,
        tissue_only=False,
        block=32,
    )
    result = predict_volume(prediction, Execution())
    ours = open_volume(tmp_path / "brain.ome.zarr" / "labels" / "segmentation").read()
    assert result.blocks > 1 or max(shape) <= 32
    assert len(np.unique(whole)) > 1
    assert np.mean(ours != whole) <= SHARE


TURNS = {
    "RAS": np.diag([1.0, 1, 1, 1]),
    "LPS, as ITK writes it": np.diag([-1.0, -1, 1, 1]),
    "PIR": np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
    "ALI, voxels of three lengths": np.array([[0, -1.1, 0, 3], [1.9, 0, 0, 0], [0, 0, -1.4, 7], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("make", [plans, turned], ids=["plain", "axes permuted by the plans"])
def test_images_are_turned_where_nnunets_reader_turns_them(turn, make, tmp_path, rng):
    """NibabelIOWithReorient turns an image to RAS+ before nnU-Net sees it, and the segmentation back."""
    content = make() | {"image_reader_writer": "NibabelIOWithReorient"}
    content["original_median_spacing_after_transp"] = [2.0] * 3
    settings = write_model(tmp_path / "model", content)
    image = texture(rng, (33, 40, 28), dark_border=3)[0]
    path = tmp_path / "brain.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image.T, TURNS[turn]), path)
    pixels, properties = NibabelIOWithReorient().read_images([str(path)])
    NibabelIOWithReorient().write_seg(
        stock(settings, pixels, properties["spacing"]).astype(np.uint8), str(tmp_path / "whole.nii.gz"), properties
    )
    z, y, x = nibabel.affines.voxel_sizes(TURNS[turn])[::-1]
    prediction = VolumePrediction(
        inputs=(path,),
        output=tmp_path / "brain.ome.zarr",
        model=settings,
        spacing_um_zyx=(z, y, x),
        tissue_only=False,
        block=16,
    )
    predict_volume(prediction, Execution())
    ours = open_volume(tmp_path / "brain.ome.zarr" / "labels" / "segmentation").read()
    whole = np.asarray(nibabel.load(tmp_path / "whole.nii.gz").dataobj).T
    assert len(np.unique(whole)) > 1
    assert np.mean(ours != whole) <= SHARE


def test_probabilities_are_the_mean_of_the_folds_as_nnunet_has_it(tmp_path, rng):
    labels = {"background": 0, "fibre": 2, "cell": 1}
    settings = write_model(tmp_path / "model", plans(), folds=2, labels=labels)
    image = texture(rng, (20, 33, 36))
    _, whole = stock(settings, image, (1.0, 1.0, 1.0), probabilities=True)
    prediction = VolumePrediction(
        inputs=(write_image(tmp_path / "brain.nii.gz", image[0]),),
        output=tmp_path / "brain.ome.zarr",
        model=settings,
        tissue_only=False,
        block=32,
        probabilities=True,
    )
    predict_volume(prediction, Execution())
    metadata = read_json(tmp_path / "brain_probabilities.ome.zarr" / "zarr.json")["attributes"]["ome"]
    assert [channel["label"] for channel in metadata["omero"]["channels"]] == ["cell", "fibre"]
    for channel in range(2):
        ours = open_volume(tmp_path / "brain_probabilities.ome.zarr", channel=channel).read()
        np.testing.assert_allclose(ours / 255, whole[channel + 1], atol=0.6 / 255)

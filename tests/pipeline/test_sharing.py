"""The demo's model handed on: containers of both editions, and a folder for a hub with which others predict."""

import tarfile

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.sharing.cases import find_case
from nnunet_selma.sharing.editions import EDITIONS
from nnunet_selma.sharing.segmenting import Segmenter
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image
from tests.prediction.models import stock, texture
from tests.sharing.environments import predict, without_this_package

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workspace")]

MODEL = "nnUNet_results/Dataset510_*/SelmaFinetuneTrainer__nnUNetSmallPlans__3d_fullres"
SPACING = (1.0, 1.0, 1.0)
"""Voxel size that nnU-Net reads as voxels; the demo's model was trained in voxels."""


@pytest.fixture(scope="module")
def model(workspace) -> ModelSettings:
    return ModelSettings(folder=workspace.path(MODEL), folds=("0",))


@pytest.fixture(scope="module")
def hub(workspace, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "demo"
    evaluation = workspace.report.parent / "evaluation_2024"
    options = ["--license", "cc-by-nc-4.0", "--evaluation", str(evaluation), "--method", "with pretraining"]
    done = workspace.run("nnunet-selma", "publish", str(model.folder), "-o", str(folder), "-f", "0", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete; it loads" in done.stdout
    return folder


@pytest.mark.parametrize("year", [2024, 2026])
def test_it_becomes_a_container(year, workspace, model, tmp_path):
    edition, folder = EDITIONS[year], tmp_path / "box"
    options = ["-f", "0", "--edition", str(year), "--spacing", "1,1,1"]
    done = workspace.run("nnunet-selma", "container", str(model.folder), "-o", str(folder), *options)
    assert done.returncode == 0, done.stderr
    packed = folder / "resources"
    if edition.apart:
        packed = tmp_path / "unpacked"
        with tarfile.open(folder / "model.tar.gz") as archive:
            archive.extractall(packed, filter="data")
    segmenter = Segmenter(packed, device="cpu", max_memory=None, scratch=tmp_path)
    case = find_case(folder / "fake" / "input", edition)
    segmenter.segment(case, tmp_path / edition.output, edition.dtype)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / edition.output)))
    assert np.array_equal(mask, stock(model, open_volume(case.path).read()[None], SPACING) > 0)


def test_others_predict_with_it_from_a_hub(workspace, model, hub, tmp_path, rng):
    """nnU-Net's command where this package is not installed, and predict-volume, to the labels of the results folder."""
    voxels = texture(rng, (20, 30, 34))
    image = write_image(tmp_path / "in" / "case_0000.nii.gz", voxels[0], SPACING)
    expected = stock(model, voxels, SPACING)
    assert len(np.unique(expected)) > 1
    predict(without_this_package(tmp_path / "plain"), tmp_path, hub, ["0"])
    assert np.array_equal(open_volume(tmp_path / "out" / "case.nii.gz").read(), expected)
    volume = tmp_path / "case.ome.zarr"
    options = ["--spacing", "1,1,1", "--everything", "--device", "cpu"]
    done = workspace.run("nnunet-selma", "predict-volume", str(image), "-o", str(volume), "-m", str(hub), *options)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(open_volume(volume / "labels" / "segmentation").read(), expected)

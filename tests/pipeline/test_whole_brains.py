"""Whole volumes with a model that the real commands trained."""

import json
import re

import cc3d
import numpy as np
import pytest
import tifffile

from nnunet_selma.conversion.raw_dataset import write_nifti
from nnunet_selma.demo.phantom.download import octant_slices
from nnunet_selma.volumes import open_volume

pytestmark = pytest.mark.xdist_group("workspace")

MODEL = ("-d", "510", "-tr", "SelmaFinetuneTrainer", "-p", "nnUNetSmallPlans", "-f", "0")


def test_the_demo_ends_with_a_whole_brain(workspace):
    folder = workspace.report.parent / "brain"
    assert (folder / "overview.png").stat().st_size > 10_000
    page = workspace.report.read_text()
    found = json.loads((folder / "cells.json").read_text())["objects"]
    labels = open_volume(folder / "brain.ome.zarr" / "labels" / "segmentation").read()
    assert found == cc3d.connected_components(labels, connectivity=26, return_N=True)[1]
    assert f"{found} objects" in page
    assert (folder / "cells.csv").read_text().count("\n") == found + 1


def test_the_labels_are_those_of_nnunetv2_predict(workspace, tmp_path):
    slices = _brain(workspace)
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "brain_0000.nii.gz", open_volume(slices).read(), (1.0, 1.0, 1.0))
    stock = workspace.run(
        "nnUNetv2_predict",
        *MODEL,
        "-i",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
        "-c",
        "3d_fullres",
        "-device",
        "cpu",
        "-npp",
        "0",
        "-nps",
        "0",
    )
    assert stock.returncode == 0, stock.stderr
    ours = workspace.run(
        "nnunet-selma",
        "predict-volume",
        str(slices),
        "-o",
        str(tmp_path / "brain.ome.zarr"),
        *MODEL,
        "--tta",
        "--everything",
        "--block",
        "32",
    )
    assert ours.returncode == 0, ours.stderr
    expected = open_volume(tmp_path / "out" / "brain.nii.gz").read()
    labels = open_volume(tmp_path / "brain.ome.zarr" / "labels" / "segmentation").read()
    assert np.mean(labels != expected) <= 1e-5


def _brain(workspace):
    """The slices that the demo predicted."""
    command = next(
        line for line in re.findall(r"<code>(.*?)</code>", workspace.report.read_text()) if "predict-volume" in line
    )
    return command.split()[2]


@pytest.mark.slow
def test_a_real_cube_goes_from_slices_to_a_table_of_cells(workspace, real_data, tmp_path):
    """A c-Fos cube of DELiVR, put together from its octants; the true labels go the same way as those of the model."""
    cube = {name: np.zeros((200, 200, 200), np.uint16) for name in ("raw", "gt")}
    for name, voxels in cube.items():
        for octant in range(8):
            part = open_volume(real_data / "delivr" / "cFos" / name / f"patchvolume_1147_{octant}.nii.gz").read()
            voxels[octant_slices((200, 200, 200), octant)] = part
        (tmp_path / name).mkdir()
        for z, plane in enumerate(voxels):
            tifffile.imwrite(tmp_path / name / f"{name}_{z:04d}.tif", plane, compression="zlib")
    brain = tmp_path / "brain.ome.zarr"
    done = workspace.run(
        "nnunet-selma",
        "predict-volume",
        str(tmp_path / "raw"),
        "-o",
        str(brain),
        *MODEL,
        "--spacing",
        "6,1.62,1.62",
        "-step_size",
        "1",
    )
    assert done.returncode == 0, done.stderr
    counts = {}
    for name, labels in (("gt", tmp_path / "gt"), ("predicted", brain)):
        table = tmp_path / f"{name}.csv"
        done = workspace.run("nnunet-selma", "objects", str(labels), "-o", str(table), "--spacing", "6,1.62,1.62")
        assert done.returncode == 0, done.stderr
        counts[name] = json.loads(table.with_suffix(".json").read_text())["objects"]
    assert counts["gt"] == cc3d.connected_components(cube["gt"] > 0, connectivity=26, return_N=True)[1]
    predicted = open_volume(brain / "labels" / "segmentation").read()
    assert counts["predicted"] == cc3d.connected_components(predicted, connectivity=26, return_N=True)[1]
    assert np.array_equal(open_volume(brain).read(), cube["raw"])

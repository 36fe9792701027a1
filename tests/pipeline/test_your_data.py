"""The README's five steps on data of a laboratory, with the real commands: cubes of any names, and a dataset that nnU-Net has already."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch

from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume

pytestmark = pytest.mark.slow

RUN_LINES = """if True:
    import json, shlex, sys
    from pathlib import Path
    from nnunet_selma.nnunet.commands import run_forked
    from nnunet_selma.nnunet.pipeline import cpu_environment
    environment = {**cpu_environment(Path(sys.argv[1]), "cpu"), "nnUNet_n_proc_DA": "0"}
    for line in json.load(sys.stdin):
        # nnU-Net's planner takes its thread count from this variable and fails at 0
        planning = {"nnUNet_n_proc_DA": "1"} if line.startswith("nnUNetv2_plan") else {}
        run_forked(shlex.split(line), {**environment, **planning})
"""
EDGE = 40
SHORT = "{0}.epochs=1 {0}.iterations_per_epoch=2 {0}.validation_iterations=1"


def run_lines(workspace: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run command lines one after another; nnU-Net is imported once for all of them."""
    return subprocess.run(
        [sys.executable, "-c", RUN_LINES, str(workspace)],
        input=json.dumps(lines),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def from_training_to_objects(dataset: int, brain: Path, output: Path, spacing: str = "") -> tuple[str, ...]:
    """The lines of the steps 4 and 5, after tiles of dataset 500 lie in the store."""
    store = f"nnUNetSmallPlans_from{dataset:03d}_store"
    model = f"-d {dataset} -tr SelmaFinetuneTrainer -p nnUNetSmallPlans -f 0"
    return (
        f"nnunet-selma settings -d 500 -p {store} {SHORT.format('pretraining')}",
        f"nnUNetv2_train 500 3d_fullres all -tr SelmaSSLTrainer -p {store} -device cpu",
        f"nnunet-selma settings -d {dataset} -p nnUNetSmallPlans {SHORT.format('finetuning')}",
        f"nnUNetv2_train {dataset} 3d_fullres 0 -tr SelmaFinetuneTrainer -p nnUNetSmallPlans -device cpu",
        f"nnunet-selma predict-volume {brain} -o {output}/brain.ome.zarr {model} {spacing} --device cpu",
        f"nnunet-selma objects {output}/brain.ome.zarr -o {output}/cells.csv",
    )


def small_plans(dataset: int) -> tuple[str, str]:
    return (
        f"nnUNetv2_plan_and_preprocess -d {dataset} -c 3d_fullres --verify_dataset_integrity -np 1 -npfp 1",
        f"nnunet-selma plan-small -d {dataset} --patch 16 --batch 2 --features 4 8 8",
    )


def ancestor_of(workspace: Path, dataset: str) -> dict[str, object]:
    """The record of the weights that a fine-tuning began with."""
    (checkpoint,) = (workspace / "nnUNet_results").glob(f"{dataset}/SelmaFinetune*/fold_0/checkpoint_final.pth")
    record: dict[str, object] = torch.load(checkpoint, weights_only=False, map_location="cpu")["selma_ancestor"]
    return record


def test_renamed_cubes_and_a_tumour(real_data, tmp_path):
    """DELiVR's cubes under other names, as TIFF without a voxel size, and slices of a tumour as unlabelled volumes."""
    cubes, workspace = tmp_path / "cubes", tmp_path / "workspace"
    cubes.mkdir()
    for number, cube in ((7, 695), (8, 1147)):
        for side, octant in (("left", 0), ("right", 3), ("top", 5)):
            for folder, suffix in (("raw", ""), ("gt", "_mask")):
                voxels = open_volume(real_data / f"delivr/cFos/{folder}/patchvolume_{cube}_{octant}.nii.gz").read()
                name = f"mouse{number:02d}_{side}{suffix}.tif"
                tifffile.imwrite(
                    cubes / name, voxels[-EDGE:, -EDGE:, -EDGE:].astype(np.uint16), photometric="minisblack"
                )
    tumour, brain = real_data / "merck_tumor_lightsheet", real_data / "brainreg_whole_brain" / "brain_slices"
    corner = tmp_path / "tumour"  # whole slices would take minutes to predict
    corner.mkdir()
    for path in (tumour / "C01").glob("*.tif"):
        tifffile.imwrite(corner / path.name, tifffile.imread(path)[300:348, 200:248])
    tiles = "--to preprocessed --plans-from 510 -p nnUNetSmallPlans --tile 32 --tiles-per-volume 2 --workers 1"
    done = run_lines(
        workspace,
        f"nnunet-selma inspect {cubes} --structure cFos --spacing 6,1.62,1.62",
        f"nnunet-selma convert annotated {cubes} -d 510 --structure cFos --spacing 6,1.62,1.62 --group 'mouse[0-9]+' --folds 2",
        *small_plans(510),
        f"nnunet-selma convert unannotated {tumour} -d 500 --spacing 10,4,4 {tiles}",
        *from_training_to_objects(510, corner, tmp_path, "--spacing 10,4,4"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "would convert annotated: 6 cases of c-Fos+ cell" in done.stdout
    assert "2 files passed by" in done.stdout  # the licence and the README of the tumour
    splits = read_json(workspace / "nnUNet_preprocessed" / "Dataset510_SELMA3D" / "splits_final.json")
    assert [{case.split("_")[2] for case in split["val"]} for split in splits] in (
        [{"mouse07"}, {"mouse08"}],
        [{"mouse08"}, {"mouse07"}],
    )
    labels = open_volume(tmp_path / "brain.ome.zarr" / "labels" / "segmentation")
    assert labels.shape == (15, 48, 48)
    assert labels.spacing_um_zyx == (10, 4, 4)
    assert (tmp_path / "cells.csv").is_file()
    record = ancestor_of(workspace, "Dataset510_SELMA3D")
    assert "Dataset500_SELMA3Dunlabelled" in str(record)
    refused = run_lines(workspace, f"nnunet-selma convert unannotated {brain} -d 501 --spacing 50,40,40 {tiles}")
    assert "has a voxel size of 50 × 40 × 40, and the plans nnUNetSmallPlans" in refused.stderr
    assert (
        run_lines(workspace, f"nnunet-selma convert unannotated {brain} -d 501 --spacing 50,40,40 --tile 64").returncode
        == 0
    )


def test_a_dataset_in_mm_that_nnunet_has_already(tmp_path, rng):
    """Nothing converts its cases; brains with headers in mm, and slices without one, are measured in its unit."""
    workspace = tmp_path / "workspace"
    raw = workspace / "nnUNet_raw" / "Dataset007_Mine"
    affine = np.diag([-0.0016, -0.0016, 0.005, 1])
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for animal in ("m1", "m2"):
        for side in ("left", "right"):
            image, label = drawing(rng)
            nibabel.save(nibabel.Nifti1Image(image.T, affine), raw / "imagesTr" / f"{animal}_{side}_0000.nii.gz")
            nibabel.save(nibabel.Nifti1Image(label.T, affine), raw / "labelsTr" / f"{animal}_{side}.nii.gz")
    description = {
        "channel_names": {"0": "TH"},
        "labels": {"background": 0, "TH": 1},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", description)
    brains, slices = tmp_path / "brains", tmp_path / "slices" / "brain2"
    brains.mkdir()
    slices.mkdir(parents=True)
    image, _ = drawing(rng)
    header = nibabel.Nifti1Image(image.T, affine)
    header.header.set_xyzt_units("mm")
    nibabel.save(header, brains / "brain1.nii.gz")
    for z, plane in enumerate(image):
        tifffile.imwrite(slices / f"z{z:03d}.tif", plane)
    tiles = "--to preprocessed --plans-from 7 -p nnUNetSmallPlans --tile 32 --tiles-per-volume 2 --workers 1"
    done = run_lines(
        workspace,
        *small_plans(7),
        "nnunet-selma splits -d 7 --group 'm[0-9]+' --folds 2",
        f"nnunet-selma convert unannotated {brains} -d 500 {tiles}",
        f"nnunet-selma convert unannotated {slices} -d 501 --spacing 0.005,0.0016,0.0016 {tiles}",
        *from_training_to_objects(7, brains / "brain1.nii.gz", tmp_path),
        f"nnUNetv2_predict -d 7 -i {raw}/imagesTr -o {tmp_path}/out -f 0 -tr SelmaFinetuneTrainer -c 3d_fullres -p nnUNetSmallPlans "
        "-device cpu -npp 1 -nps 1 --disable_tta",
        f"nnunet-selma evaluate --reference {raw}/labelsTr --prediction {tmp_path}/out --edition 2024 --structure TH --kind spot --workers 1",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("voxel size: 0.005 × 0.0016 × 0.0016 mm (z, y, x), from") == 2
    assert "TH" in done.stdout.rsplit("## SELMA3D 2024", 1)[1]
    assert open_volume(tmp_path / "brain.ome.zarr").spacing_um_zyx == pytest.approx((5, 1.6, 1.6), rel=1e-3)
    assert "Dataset500_SELMA3Dunlabelled" in str(ancestor_of(workspace, "Dataset007_Mine"))


def drawing(rng):
    """An image with bright cells in tissue, and its label."""
    image = rng.normal(100, 5, (EDGE, EDGE, EDGE))
    image[4:-4, 4:-4, 4:-4] += 400
    label = np.zeros(image.shape, np.uint8)
    for z, y, x in rng.integers(6, EDGE - 10, (30, 3)):
        label[z : z + 3, y : y + 4, x : x + 4] = 1
    return (image + 900.0 * label).astype(np.uint16), label

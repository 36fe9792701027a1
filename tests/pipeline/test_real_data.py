"""The path on real light-sheet volumes, where they are."""

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_selma import cli
from nnunet_selma.conversion.annotated_sources import find_patches
from nnunet_selma.conversion.inspection import inspect
from nnunet_selma.volumes import open_volume

pytestmark = pytest.mark.slow

EDGE = 48
DEMO = """if True:
    from pathlib import Path
    from nnunet_selma.demo.demo import Demo, DemoSize
    from nnunet_selma.nnunet.commands import run_forked
    from nnunet_selma.nnunet.folders import Folders
    from nnunet_selma.nnunet.pipeline import Pipeline, cpu_environment
    output = Path({output!r})
    environment = cpu_environment(output / "workspace", "cpu")
    # the commands that a user types, but nnU-Net is imported once for all of them
    pipeline = Pipeline(folders=Folders.from_environment(environment), environment=environment, run_command=run_forked)
    size = DemoSize(
        tile={edge}, tiles_per_volume=1, network_patch=32, features=(4, 8, 8), pretraining=(2, 3), finetuning=(2, 3)
    )
    Demo(output=output, pipeline=pipeline, size=size, seed=0).run(Path({data!r}))
"""


def test_selma3d_crops_in_the_real_tree(real_data, folders):
    assert cli.main(["convert", "annotated", str(real_data / "selma3d_crops")]) == 0
    dataset = folders.raw / "Dataset510_SELMA3D"
    cases = {p.name.removesuffix(".nii.gz") for p in (dataset / "labelsTr").iterdir()}
    assert cases == {
        "AD_plaques_000",
        "AD_plaques_016",
        "blood_vessel_006_eb",
        "blood_vessel_013_wga",
        "cell_nuclei_007",
    }
    source = open_volume(
        real_data / "selma3d_crops/SELMA3D_training_annotated/shannel_cells/raw/patchvolume_007_0000.nii.gz"
    ).read()
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "imagesTr/cell_nuclei_007_0000.nii.gz"))), source
    )


def test_delivr_octants_stay_together_and_unlabelled_ones_are_left_out_on_request(real_data, folders, capsys):
    assert cli.main(["convert", "annotated", str(real_data / "delivr")]) == 2
    assert "patchvolume_1230_0.nii.gz: no ground truth" in capsys.readouterr().err
    assert (
        cli.main(["convert", "annotated", str(real_data / "delivr"), "--structures", "cFos", "--leave-out-unpaired"])
        == 0
    )
    manifest = json.loads((folders.raw / "Dataset510_SELMA3D" / "selma_manifest.json").read_text())
    assert len(manifest["cases"]) == 18
    assert next(iter(manifest["cases"].values()))["spacing_zyx"] == [6.0, 1.625, 1.625]
    for split in json.loads((folders.preprocessed / "Dataset510_SELMA3D" / "splits_final.json").read_text()):
        cubes = [{case.rsplit("_", 1)[0] for case in split[part]} for part in ("train", "val")]
        assert not cubes[0] & cubes[1]
    image = sitk.GetArrayFromImage(
        sitk.ReadImage(str(folders.raw / "Dataset510_SELMA3D/imagesTr/cfos_neuron_695_5_0000.nii.gz"))
    )
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, open_volume(real_data / "delivr/cFos/raw/patchvolume_695_5.nii.gz").read())


def test_neighbours_are_found_without_their_names(real_data, tmp_path):
    """DELiVR's octants under numbers that do not tell which cube they come from: the images do."""
    true_cube = {}
    for number, patch in enumerate(find_patches(real_data / "delivr", structures=("cfos_neuron", "microglia")).patches):
        folder = tmp_path / (patch.structure.annotated_folder or patch.structure.prefix)
        for name, path in (("raw", next(iter(patch.images.values()))), ("gt", patch.label)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"patchvolume_{number:03d}{'_0000' if name == 'raw' else ''}.nii.gz").symlink_to(path)
        true_cube[f"{patch.structure.prefix}_{number:03d}"] = patch.group
    found = inspect(tmp_path)
    assert found.problems == []
    assert all(true_cube[r.first] == true_cube[r.second] for r in found.relations)
    assert len(found.relations) >= 69  # of 73 pairs of octants that touch


def test_unlabelled_volumes_as_nifti_and_as_slices_give_the_same_tiles(real_data, tmp_path, folders):
    for path in sorted((real_data / "wu_unlabelled").glob("*.nii.gz"))[:3]:
        stack = tmp_path / "slices" / path.name.split(".")[0]
        stack.mkdir(parents=True)
        for z, plane in enumerate(open_volume(path).read()):
            tifffile.imwrite(stack / f"z{z}.tif", plane)
        (tmp_path / "nifti").mkdir(exist_ok=True)
        (tmp_path / "nifti" / path.name).symlink_to(path)
    for source, number in (("slices", "501"), ("nifti", "502")):
        assert (
            cli.main(
                [
                    "convert",
                    "unannotated",
                    str(tmp_path / source),
                    "-d",
                    number,
                    "--tile",
                    "48",
                    "--tiles-per-volume",
                    "3",
                    "--spacing",
                    "voxel",
                ]
            )
            == 0
        )
    first, second = (
        json.loads((folders.raw / f"Dataset{n}_SELMA3Dunlabelled" / "selma_manifest.json").read_text())["cases"]
        for n in (501, 502)
    )
    assert list(first) == list(second)
    for case in first:
        one, two = (
            sitk.GetArrayFromImage(
                sitk.ReadImage(str(folders.raw / f"Dataset{n}_SELMA3Dunlabelled/imagesTr/{case}_0000.nii.gz"))
            )
            for n in (501, 502)
        )
        np.testing.assert_array_equal(one, two)


def test_the_whole_path_on_a_real_download(real_data, tmp_path):
    """Real voxels in the real tree; corners of the crops, because what takes long is the same for each voxel."""
    download = real_data / "selma3d_crops"
    for path in download.rglob("*.nii.gz"):
        corner = tmp_path / "download" / path.relative_to(download)
        corner.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.load(path).slicer[:EDGE, :EDGE, :EDGE], corner)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet")}
    done = subprocess.run(
        [sys.executable, "-c", DEMO.format(output=str(tmp_path / "demo"), data=str(tmp_path / "download"), edge=EDGE)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "demo" / "report" / "report.html").read_text()
    assert "a real download" in page
    assert "reconstruction.png" in page

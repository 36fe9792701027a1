import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_selma.conversion.raw_dataset import RawDataset, check_free_id, dataset_folder_name, write_nifti
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.volumes import open_volume

DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from nnunet_selma.conversion.raw_dataset import write_nifti
from nnunet_selma.errors import SelmaError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
voxels = np.random.default_rng(0).integers(0, 65535, (40, 40, 40), dtype=np.uint16)
try:
    write_nifti(Path(sys.argv[1]) / "a.nii.gz", voxels, (1.0, 1.0, 1.0))
except SelmaError as error:
    sys.exit(0 if "a.nii.gz: could not be written whole" in str(error) else 1)
sys.exit(3)
"""


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_written_file_is_read_back(dtype, tmp_path, rng):
    voxels = rng.integers(0, 200, (5, 6, 7)).astype(dtype)
    write_nifti(tmp_path / "a.nii.gz", voxels, (3.0, 2.0, 1.0))
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), voxels)
    assert image.GetSpacing() == (1.0, 2.0, 3.0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_file_that_the_disk_cuts_short_is_an_error_and_is_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", DISK_FULL, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "name"), [(0, "A"), (1000, "A"), (5, "a b"), (5, "")])
def test_names_nnunet_would_not_take(number, name):
    with pytest.raises(SelmaError):
        dataset_folder_name(number, name)


def test_an_id_of_another_dataset_is_taken_wherever_it_lies(tmp_path):
    folders = Folders(raw=tmp_path / "raw", preprocessed=tmp_path / "preprocessed", results=tmp_path / "none")
    check_free_id(5, "Dataset005_A", folders)
    (tmp_path / "preprocessed" / "Dataset005_B").mkdir(parents=True)
    with pytest.raises(SelmaError, match=r"id 5 is taken by .*Dataset005_B"):
        check_free_id(5, "Dataset005_A", folders)


def test_other_settings_start_the_staging_folder_anew(tmp_path):
    first = RawDataset(tmp_path, "Dataset005_A", {"spacing": "voxel"})
    first.write("a", [np.zeros((2, 2, 2), np.uint16)], np.zeros((2, 2, 2), np.uint8), (1.0, 1.0, 1.0), {})
    assert RawDataset(tmp_path, "Dataset005_A", {"spacing": "voxel"}).staged.has("a")
    assert not RawDataset(tmp_path, "Dataset005_A", {"spacing": "physical"}).staged.has("a")


def test_killed_while_finishing_leaves_no_case_of_another_run(tmp_path, monkeypatch):
    def case(dataset, name):
        dataset.write(name, [np.zeros((2, 2, 2), np.uint16)], np.zeros((2, 2, 2), np.uint8), (1.0, 1.0, 1.0), {})

    def killed(*_):
        raise KeyboardInterrupt

    finish = {"channels": ["x"], "foreground": "tissue", "description": "", "facts": {}}
    first = RawDataset(tmp_path, "Dataset005_A", {"tile": 1})
    case(first, "old")
    with monkeypatch.context() as patched:
        patched.setattr("nnunet_selma.conversion.staging.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            first.finish(**finish)
    (tmp_path / ".Dataset005_A.partial" / "settings.json").unlink()
    second = RawDataset(tmp_path, "Dataset005_A", {"tile": 2})
    case(second, "new")
    assert list(second.finish(**finish)["cases"]) == ["new"]
    assert {p.name for p in (tmp_path / "Dataset005_A" / "labelsTr").iterdir()} == {"new.nii.gz"}
    assert {p.name for p in (tmp_path / "Dataset005_A").iterdir()} == {
        "imagesTr",
        "labelsTr",
        "dataset.json",
        "selma_manifest.json",
    }


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (4.0, 1.8, 1.8), (1.0, 1.0, 1.0)])
def test_a_voxel_size_is_read_back_unchanged_by_us_and_by_itk(spacing, tmp_path):
    """ITK, with which nnU-Net reads NIfTI, counts in mm and would divide numbers in µm by 1000."""
    write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.uint16), spacing, in_um=spacing != (1.0, 1.0, 1.0))
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetSpacing()[::-1] == pytest.approx(spacing)
    volume = open_volume(tmp_path / "a.nii.gz")
    assert volume.spacing_um_zyx == (None if spacing == (1.0, 1.0, 1.0) else pytest.approx(spacing))
    assert volume.spacing_guess is None

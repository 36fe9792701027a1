import numpy as np
import pytest

from nnunet_selma.conversion.annotated_sources import find_patches
from nnunet_selma.errors import SelmaError
from tests.conftest import write_image, write_patch


def names(found):
    return [patch.name for patch in found.patches]


def test_bioimage_archive(tmp_path, rng):
    write_patch(tmp_path / "SELMA3D_training_annotated", "VessAP_vessel", 5, rng, channels=2)
    write_patch(tmp_path / "SELMA3D_training_annotated", "cFos-Active_Neurons", 12, rng)
    found = find_patches(tmp_path)
    assert (found.layout, names(found), found.problems) == (
        "bioimage_archive",
        ["blood_vessel_005", "cfos_neuron_012"],
        [],
    )
    assert sorted(found.patches[0].images) == [0, 1]


@pytest.mark.parametrize("inner", ["", "SELMA3D_training_annotated", "SELMA3D_training_annotated/shannel_cells"])
def test_any_folder_of_the_download_will_do(inner, tmp_path, rng):
    write_patch(tmp_path / "SELMA3D_training_annotated", "shannel_cells", 1, rng)
    assert names(find_patches(tmp_path / inner)) == ["cell_nuclei_001"]


def test_challenge_zips_with_different_and_doubled_tops(tmp_path, rng):
    tops = ("brain_vessels_patches/brain_vessels_patches", "annotation_brain_vessels")
    write_patch(tmp_path, "VessAP_vessel", 3, rng, channels=2, tops=tops)
    write_patch(
        tmp_path, "AD_plaques", 3, rng, tops=("brain_amyloid_plaque_patches", "annotation_brain_amyloid_plaque")
    )
    found = find_patches(tmp_path)
    assert (found.layout, names(found), found.unpaired) == ("challenge_zip", ["AD_plaques_003", "blood_vessel_003"], [])


def test_delivr_octants_share_a_group(tmp_path, rng):
    for octant in range(8):
        for folder in ("raw", "gt"):
            write_image(
                tmp_path / "cFos" / folder / f"patchvolume_695_{octant}.nii.gz",
                rng.integers(0, 2, (4, 4, 4), dtype=np.uint8),
            )
    found = find_patches(tmp_path)
    assert found.layout == "delivr"
    assert names(found) == [f"cfos_neuron_695_{octant}" for octant in range(8)]
    assert {patch.group for patch in found.patches} == {"cfos_neuron_695"}


def test_numbers_need_no_padding(tmp_path, rng):
    write_image(tmp_path / "microglia" / "raw" / "patchvolume_7_0000.nii.gz", np.zeros((4, 4, 4), np.uint16))
    write_image(tmp_path / "microglia" / "gt" / "patchvolume_007.nii.gz", np.zeros((4, 4, 4), np.uint8))
    assert names(find_patches(tmp_path)) == ["microglia_007"]


def test_a_layout_can_be_forced(tmp_path, rng):
    write_patch(tmp_path, "shannel_cells", 1, rng)
    assert find_patches(tmp_path, layout="challenge_zip").layout == "challenge_zip"
    assert find_patches(tmp_path, layout="delivr").problems


def test_what_has_no_partner_is_named(tmp_path, rng):
    write_patch(tmp_path, "AD_plaques", 1, rng)
    (tmp_path / "AD_plaques/raw/patchvolume_001_0000.nii.gz").rename(
        tmp_path / "AD_plaques/raw/patchvolume_002_0000.nii.gz"
    )
    found = find_patches(tmp_path)
    assert any("patchvolume_002_0000.nii.gz: no ground truth" in s for s in found.unpaired)
    assert any("gt/patchvolume_001.nii.gz: no raw image" in s for s in found.unpaired)


def test_a_file_named_otherwise_and_a_copy_are_problems(tmp_path, rng):
    write_patch(tmp_path, "AD_plaques", 1, rng)
    write_image(tmp_path / "AD_plaques/raw/notes.nii.gz", np.zeros((4, 4, 4), np.uint16))
    write_image(tmp_path / "AD_plaques/raw/patchvolume_1_0000.nii.gz", np.zeros((4, 4, 4), np.uint16))
    problems = " ".join(find_patches(tmp_path, layout="bioimage_archive").problems)
    assert "notes.nii.gz: is not named" in problems
    assert "one patch and channel" in problems


def test_hidden_files_are_skipped(tmp_path, rng):
    write_patch(tmp_path, "AD_plaques", 1, rng)
    (tmp_path / "AD_plaques" / "raw" / "._patchvolume_001_0000.nii.gz").write_bytes(b"x")
    assert not find_patches(tmp_path).problems


def test_structures_can_be_chosen(tmp_path, rng):
    write_patch(tmp_path, "AD_plaques", 1, rng)
    write_patch(tmp_path, "shannel_cells", 1, rng)
    assert names(find_patches(tmp_path, structures=("cell_nuclei",))) == ["cell_nuclei_001"]
    with pytest.raises(SelmaError, match="no patches of microglia"):
        find_patches(tmp_path, structures=("microglia",))

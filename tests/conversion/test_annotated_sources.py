import numpy as np
import pytest
import tifffile

from nnunet_selma.conversion.annotated_sources import find_patches, patches_of_folders
from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import chosen_structure, named
from tests.conftest import write_image, write_patch

IMAGE = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)
LABEL = (IMAGE > 100).astype(np.uint8)


def write_tiff(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, voxels, photometric="minisblack")


def pairs(found_patches):
    return {p.name: ([f.name for f in p.images.values()], p.label.name) for p in found_patches.patches}


@pytest.mark.parametrize(
    ("image", "label", "name"),
    [
        ("raw/mouse1.tif", "gt/mouse1.tif", "mouse1"),
        ("images/mouse1.tif", "masks/mouse1.tif", "mouse1"),
        ("Images/mouse1.tif", "labels/mouse1_mask.tif", "mouse1"),
        ("Dataset700_TH/imagesTr/TH_1_0000.nii.gz", "Dataset700_TH/labelsTr/TH_1.nii.gz", "TH_1"),
        ("m1/images/left.tif", "m1/masks/left.tif", "m1-left"),
        ("cFos-Active_Neurons/raw/mouse1.tif", "cFos-Active_Neurons/gt/mouse1.tif", "cfos_neuron_mouse1"),
        ("kidney/raw/patchvolume_001_0000.tif", "kidney/gt/patchvolume_001.tif", "kidney-patchvolume_001"),
        ("cubes/m1_left.tif", "cubes/m1_left_mask.tif", "cubes-m1_left"),
        ("m1_left.tif", "m1_left_seg.tif", "m1_left"),
    ],
)
def test_layouts_of_laboratories(image, label, name, tmp_path):
    for path, voxels in ((image, IMAGE), (label, LABEL)):
        write = write_image if path.endswith(".nii.gz") else write_tiff
        write(tmp_path / path, voxels)
    found_patches = find_patches(tmp_path)
    assert pairs(found_patches) == {name: ([image.rsplit("/", 1)[-1]], label.rsplit("/", 1)[-1])}
    assert (found_patches.problems, found_patches.unpaired, found_patches.passed_by) == ([], [], [])
    (patch,) = found_patches.patches
    assert not patch.in_layout


def test_patches_of_selma3d_and_of_a_laboratory_in_a_folder(tmp_path, rng):
    write_patch(tmp_path, "AD_plaques", 1, rng)
    write_tiff(tmp_path / "mine" / "images" / "a.tif", IMAGE)
    write_tiff(tmp_path / "mine" / "masks" / "a.tif", LABEL)
    write_tiff(tmp_path / "brain.tif", IMAGE)
    found_patches = find_patches(tmp_path)
    assert {patch.name: patch.in_layout for patch in found_patches.patches} == {"AD_plaques_001": True, "mine-a": False}
    (group,) = found_patches.passed_by
    assert "brain.tif): volumes without a label" in str(group)
    assert [p.name for p in find_patches(tmp_path, structures=("AD_plaques",)).patches] == ["AD_plaques_001"]


def test_a_structure_of_the_user_wins_over_folders(tmp_path, rng):
    write_patch(tmp_path, "AD_plaques", 1, rng)
    (patch,) = find_patches(tmp_path, structure=named("microglia")).patches
    assert (patch.name, patch.in_layout) == ("microglia_patchvolume_001", False)
    (patch,) = find_patches(tmp_path, structure=chosen_structure("TH", "tree")).patches
    assert patch.name == "TH_patchvolume_001"
    (patch,) = find_patches(tmp_path, structure=named("AD_plaques")).patches
    assert (patch.name, patch.in_layout) == ("AD_plaques_001", True)


def test_two_patches_of_a_name_and_no_patches(tmp_path):
    with pytest.raises(SelmaError, match="holds no annotated patches that are recognised"):
        find_patches(tmp_path)
    for folder in ("a b", "a-b"):
        write_tiff(tmp_path / folder / "images" / "x.tif", IMAGE)
        write_tiff(tmp_path / folder / "masks" / "x.tif", LABEL)
    (problem,) = find_patches(tmp_path).problems
    assert "a second patch named a-b-x" in problem


@pytest.mark.parametrize("folders", [("scans", "drawn"), ("both", "both"), ("all", "all/drawn")])
def test_folders_that_the_user_names(folders, tmp_path):
    images, labels = (tmp_path / folder for folder in folders)
    for name in ("mouse07_left", "mouse07_right"):
        write_tiff(images / f"{name}.tif", IMAGE)
        write_image(labels / f"{name}_mask.nii.gz", LABEL)
    found_patches = patches_of_folders(images, labels, structure=chosen_structure("TH", "spot"))
    assert pairs(found_patches) == {
        f"TH_{name}": ([f"{name}.tif"], f"{name}_mask.nii.gz") for name in ("mouse07_left", "mouse07_right")
    }
    assert found_patches.unpaired == []


def test_a_stack_and_a_file_are_a_pair_whatever_their_names(tmp_path):
    for z, plane in enumerate(IMAGE):
        write_tiff(tmp_path / "scan" / f"z{z}.tif", plane)
    write_image(tmp_path / "truth.nii.gz", LABEL)
    assert pairs(patches_of_folders(tmp_path / "scan", tmp_path / "truth.nii.gz")) == {
        "scan": (["scan"], "truth.nii.gz")
    }


def test_folders_without_pairs(tmp_path):
    write_tiff(tmp_path / "a" / "x.tif", IMAGE)
    write_tiff(tmp_path / "b" / "y.tif", LABEL)
    with pytest.raises(SelmaError, match="holds no image that has the name of a label"):
        patches_of_folders(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("images", "labels"), [("raw", "gt"), ("images", "masks")])
def test_folders_that_are_stacks_themselves(images, labels, tmp_path):
    for folder, voxels in ((images, IMAGE), (labels, LABEL)):
        for z, plane in enumerate(voxels):
            write_tiff(tmp_path / "mouse1" / folder / f"Z{z:03d}.tif", plane)
    assert pairs(find_patches(tmp_path)) == {"mouse1": ([images], labels)}


def test_what_is_passed_by_in_the_folders_that_the_user_names(tmp_path):
    write_tiff(tmp_path / "a" / "x.tif", IMAGE)
    write_tiff(tmp_path / "b" / "x.tif", LABEL)
    (tmp_path / "a" / "y.klb").write_bytes(b"x")
    (group,) = patches_of_folders(tmp_path / "a", tmp_path / "b").passed_by
    assert "y.klb): KLB" in str(group)


def test_channels_and_labels_in_the_same_folder(tmp_path):
    for name, voxels in (("x_0000", IMAGE), ("x_0001", IMAGE), ("x_mask", LABEL)):
        write_tiff(tmp_path / f"{name}.tif", voxels)
    assert pairs(patches_of_folders(tmp_path, tmp_path)) == {"x": (["x_0000.tif", "x_0001.tif"], "x_mask.tif")}

"""Voxel sizes of plans and datasets: their unit, what nnU-Net's readers say, and what is refused."""

import json
import math

import nibabel
import numpy as np
import pytest
import tifffile
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.voxel_sizes import (
    check_voxel_sizes,
    dataset_unit,
    in_unit,
    largest_factor,
    median_spacing,
    planned_spacing,
    preprocessed_spacings,
    raw_spacings,
    unit_of,
)
from nnunet_selma.running.json_files import write_json
from tests.conftest import write_image
from tests.plans import plans

MM, UM = (0.005, 0.0016, 0.0016), (5.0, 1.6, 1.6)


@pytest.mark.parametrize(
    ("spacing", "unit"),
    [
        ((1.0, 1.0, 1.0), "voxel"),
        ((1, 1), "voxel"),
        ((0.0, 1.6, 1.6), "voxel"),
        (MM, "mm"),
        (UM, "um"),
        ((1.0, 1.0, 2.0), "um"),
        ((999.0, 1.0, 1.0), "um"),
    ],
)
def test_numbers_say_their_unit(spacing, unit):
    assert unit_of(spacing) == unit


def test_a_voxel_size_in_the_unit_of_a_dataset():
    assert in_unit(UM, "mm") == pytest.approx(MM)
    assert in_unit(UM, "um") == UM
    assert in_unit(UM, "voxel") == (1.0, 1.0, 1.0)


def test_the_largest_factor_is_the_same_both_ways():
    assert largest_factor((4, 1, 1), (1, 2, 1)) == largest_factor((1, 2, 1), (4, 1, 1)) == 4
    assert largest_factor(UM, UM) == 1
    assert largest_factor(UM, (0.0, 1.0, 1.0)) == math.inf


def planned(spacing, **changes):
    content = plans()
    content["original_median_spacing_after_transp"] = list(spacing)
    content["configurations"]["3d_fullres"] |= {"spacing": list(spacing), **changes}
    return content, content["configurations"]["3d_fullres"]


@pytest.mark.parametrize(
    ("spacing", "tile"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        (MM, MM),
        (MM, (0.02, 0.006, 0.006)),
        (UM, (40.0, 0.2, 1.6)),  # a factor of 8 on two axes
        (UM, (2.0, 2.0, 2.0)),
    ],
)
def test_voxel_sizes_of_the_same_kind_agree(spacing, tile):
    check_voxel_sizes(*planned(spacing), {"a": tile})


ANEW = "nnunet-selma convert unannotated --spacing"


@pytest.mark.parametrize(
    ("spacing", "tile", "sentences"),
    [
        (MM, UM, ["a has a voxel size of 5 × 1.6 × 1.6", "for 0.005 × 0.0016 × 0.0016", f"{ANEW} 0.005,0.0016,0.0016"]),
        (UM, MM, [f"{ANEW} 5,1.6,1.6: their voxel size in µm"]),
        ((1.0, 1.0, 1.0), UM, ["for 1 × 1 × 1", f"{ANEW} voxel"]),
        (UM, (1.0, 1.0, 1.0), [f"{ANEW} Z,Y,X: their voxel size in µm"]),
        (MM, (1.0, 1.0, 1.0), [f"{ANEW} Z,Y,X: their voxel size in mm"]),
        (UM, (5.0, 1.6, 12.9), ["both are in µm: check them", "or a level of them"]),
        (UM, (25.0, 25.0, 25.0), ["a has a voxel size of 25 × 25 × 25"]),
    ],
)
def test_what_contradicts_is_refused_with_both_numbers_and_what_to_type(spacing, tile, sentences):
    with pytest.raises(SelmaError) as refused:
        check_voxel_sizes(*planned(spacing), {"good": spacing, "a": tile})
    assert [sentence for sentence in sentences if sentence not in str(refused.value)] == []


def test_axes_that_nnunet_permutes_are_compared_with_their_own():
    content, configuration = planned((40.0, 1.0, 1.0))  # the network's first axis is x
    content["transpose_forward"] = [2, 0, 1]
    assert planned_spacing(content, configuration) == [1.0, 1.0, 40.0]
    check_voxel_sizes(content, configuration, {"a": (1.0, 1.0, 40.0)})
    with pytest.raises(SelmaError, match="for 1 × 1 × 40"):
        check_voxel_sizes(content, configuration, {"a": (40.0, 1.0, 1.0)})


def test_a_2d_configuration_does_not_care_for_the_distance_of_slices():
    content, configuration = planned(UM)
    configuration["spacing"] = [1.6, 1.6]
    check_voxel_sizes(content, configuration, {"a": (50.0, 1.6, 1.6)})
    with pytest.raises(SelmaError, match=r"for 5 × 1.6 × 1.6"):
        check_voxel_sizes(content, configuration, {"a": (5.0, 16.0, 16.0)})


def test_the_first_stage_of_a_cascade_is_coarser_on_purpose():
    content, configuration = planned(UM)
    configuration |= {"spacing": [45.0, 16.0, 16.0]}
    with pytest.raises(SelmaError, match="for 45 × 16 × 16"):
        check_voxel_sizes(content, configuration, {"a": UM})
    check_voxel_sizes(content, {**configuration, "next_stage": "3d_cascade_fullres"}, {"a": UM})


def raw_dataset(folders, ending, spacing, unit=None, name="Dataset007_Lab"):
    """A dataset that was made by hand: one case, no manifest."""
    images = folders.raw / name / "imagesTr"
    images.mkdir(parents=True)
    voxels, file = np.zeros((8, 5, 6), np.uint16), images / f"a_0000{ending}"
    if ending == ".tif":
        tifffile.imwrite(file, voxels)
        (images / "a.json").write_text(json.dumps({"spacing": spacing}))
    elif ending == ".nii.gz":
        image = nibabel.Nifti1Image(voxels.T, np.diag([*spacing[::-1], 1]))
        if unit:
            image.header.set_xyzt_units(unit)
        nibabel.save(image, file)
    else:
        write_image(file, voxels, spacing)
    write_json(
        folders.raw / name / "dataset.json",
        {"channel_names": {"0": "TH"}, "labels": {"background": 0}, "numTraining": 1, "file_ending": ending},
    )
    return folders.raw / name


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".tif"])
@pytest.mark.parametrize(("spacing", "unit"), [(MM, "mm"), (UM, "um"), ((1.0, 1.0, 1.0), "voxel")])
def test_a_dataset_made_by_hand_says_its_unit(ending, spacing, unit, folders):
    raw = raw_dataset(folders, ending, spacing)
    description = json.loads((raw / "dataset.json").read_text())
    file = str(raw / "imagesTr" / f"a_0000{ending}")
    reader = determine_reader_writer_from_dataset_json(description, file, verbose=False)()
    _, properties = reader.read_images([file])
    assert raw_spacings(raw) == {"a": pytest.approx([float(size) for size in properties["spacing"]])}
    assert raw_spacings(raw) == {"a": pytest.approx(list(spacing))}
    assert dataset_unit(raw.name, folders) == unit


def test_itk_divides_numbers_in_micron_by_1000(folders):
    raw = raw_dataset(folders, ".nii.gz", UM, unit="micron")
    assert raw_spacings(raw) == {"a": pytest.approx(list(MM))}
    assert dataset_unit(raw.name, folders) == "mm"


def test_plans_go_before_headers_and_a_manifest_before_files(folders):
    raw = raw_dataset(folders, ".nii.gz", MM)
    write_json(raw / "selma_manifest.json", {"cases": {"b": {"spacing_zyx": list(UM)}}})
    assert raw_spacings(raw) == {"b": list(UM)}
    assert dataset_unit(raw.name, folders) == "um"
    (folders.preprocessed / raw.name).mkdir()
    write_json(folders.preprocessed / raw.name / "nnUNetPlans.json", plans())
    assert dataset_unit(raw.name, folders) == "voxel"


def test_images_that_a_description_lists_are_read_where_they_lie(folders):
    raw = raw_dataset(folders, ".nrrd", MM)
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "imagesTr" / "a_0000.nrrd").rename(raw / "elsewhere.nrrd")
    write_json(raw / "dataset.json", {**description, "dataset": {"mouse": {"images": ["elsewhere.nrrd"]}}})
    assert raw_spacings(raw) == {"mouse": pytest.approx(list(MM))}


def test_an_image_that_cannot_be_read_is_named(folders):
    raw = raw_dataset(folders, ".nrrd", MM)
    (raw / "imagesTr" / "a_0000.nrrd").write_bytes(b"no image")
    with pytest.raises(SelmaError, match=r"a_0000.nrrd: nnU-Net cannot read the image"):
        raw_spacings(raw)


def test_preprocessed_cases_keep_the_voxel_size_that_they_had(tmp_path):
    for number in range(150):
        write_pickle({"spacing": np.array([number + 1.0, 2.0, 3.0])}, str(tmp_path / f"case_{number:03d}.pkl"))
    write_pickle({}, str(tmp_path / "without.pkl"))
    sizes = preprocessed_spacings(tmp_path)
    assert 40 < len(sizes) <= 64
    assert all(size == [int(case[-3:]) + 1.0, 2.0, 3.0] for case, size in sizes.items())
    assert median_spacing({"a": [1, 2, 3], "b": [3, 2, 3], "c": [2, 9, 3]}) == [2.0, 2.0, 3.0]

import numpy as np
import pytest
import tifffile
import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.plans import (
    fitting_patch,
    plan_pretraining,
    small_plans,
    total_strides,
)
from nnunet_selma.running.json_files import read_json, write_json
from tests.conftest import write_image
from tests.plans import ARCHITECTURES, network, plans


@pytest.mark.parametrize(
    ("edges", "strides", "expected"),
    [
        ((64,) * 3, (16,) * 3, [64] * 3),
        ((64,) * 3, (8, 64, 64), [64] * 3),
        ((60, 60), (8, 32), [64, 64]),
        ((32, 32), (32, 32), [64, 64]),
    ],
)
def test_a_patch_fits_the_strides_and_leaves_more_than_one_voxel(edges, strides, expected):
    assert fitting_patch(edges, strides) == expected


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if "2d" not in n])
def test_small_plans_of_every_network_work(name, residual):
    content = small_plans(
        plans(name, residual=residual),
        "small",
        configuration="3d_fullres",
        patch_edge=32,
        batch_size=2,
        features=(4, 8, 8),
    )
    own = content["configurations"]["3d_fullres"]
    assert own["architecture"]["arch_kwargs"]["n_stages"] == 3
    assert all(
        edge <= 32 and edge % stride == 0 for edge, stride in zip(own["patch_size"], total_strides(own), strict=True)
    )
    assert network(content)(torch.zeros(1, 1, *own["patch_size"])).shape[2:] == tuple(own["patch_size"])


def test_a_network_of_ours_is_made_smaller_by_another_command():
    content = plans()
    del content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_stages"]
    with pytest.raises(SelmaError, match="plan-network"):
        small_plans(content, "small", configuration="3d_fullres", patch_edge=16, batch_size=1, features=(4, 8, 8))


def prepare(folders, dataset, *, channels=1, spacing=(1.0, 1.0, 1.0), planned=True):
    content = {
        "channel_names": {str(i): "x" for i in range(channels)},
        "labels": {"background": 0, "tissue": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    for root in (folders.raw, folders.preprocessed):
        (root / dataset / "imagesTr").mkdir(parents=True)
    write_image(folders.raw / dataset / "imagesTr" / "a_0000.nii.gz", np.zeros((4, 4, 4), np.uint16))
    write_image(folders.raw / dataset / "labelsTr" / "a.nii.gz", np.zeros((4, 4, 4), np.uint8))
    write_json(folders.raw / dataset / "dataset.json", content)
    write_json(folders.raw / dataset / "selma_manifest.json", {"cases": {"a": {"spacing_zyx": list(spacing)}}})
    if planned:
        write_json(folders.preprocessed / dataset / "nnUNetPlans.json", plans())


def move(folders, **options):
    """In a fresh process: nnU-Net reads its folders from the environment."""
    return plan_pretraining(510, 500, folders, plans_name="nnUNetPlans", **options)


def test_plans_move_to_the_unlabelled_dataset(folders):
    prepare(folders, "Dataset510_A")
    prepare(folders, "Dataset500_B", planned=False)
    assert move(folders) == "nnUNetPlans_from510"
    moved = read_json(folders.preprocessed / "Dataset500_B" / "nnUNetPlans_from510.json")
    own = moved["configurations"]["3d_fullres"]
    assert (moved["dataset_name"], moved["plans_name"]) == ("Dataset500_B", "nnUNetPlans_from510")
    assert own["data_identifier"] == "nnUNetPlans_from510_3d_fullres"
    assert own["architecture"] == plans()["configurations"]["3d_fullres"]["architecture"]
    assert (folders.preprocessed / "Dataset500_B" / "dataset.json").is_file()
    with pytest.raises(SelmaError, match="no configuration"):
        move(folders, configuration="3d_lowres")


def test_moved_plans_read_the_format_of_the_unlabelled_dataset(folders):
    """nnU-Net's preprocessing takes the reader that the plans name, and ITK reads no voxel size beside a TIFF."""
    prepare(folders, "Dataset510_A")
    raw = folders.raw / "Dataset500_B"
    (raw / "imagesTr").mkdir(parents=True)
    tifffile.imwrite(raw / "imagesTr" / "a_0000.tif", np.zeros((8, 8, 8), np.uint16))
    write_json(raw / "imagesTr" / "a.json", {"spacing": [1, 1, 1]})
    write_json(raw / "dataset.json", {"channel_names": {"0": "x"}, "labels": {"background": 0}, "file_ending": ".tif"})
    assert move(folders) == "nnUNetPlans_from510"
    moved = read_json(folders.preprocessed / "Dataset500_B" / "nnUNetPlans_from510.json")
    assert moved["image_reader_writer"] == "Tiff3DIO"


def test_the_second_stage_of_a_cascade_is_refused_before_anything_is_written(folders):
    prepare(folders, "Dataset510_A")
    prepare(folders, "Dataset500_B", planned=False)
    path = folders.preprocessed / "Dataset510_A" / "nnUNetPlans.json"
    content = read_json(path)
    content["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    write_json(path, content)
    with pytest.raises(SelmaError, match="3d_cascade_fullres is the second stage of a cascade"):
        move(folders, configuration="3d_cascade_fullres")
    assert not list((folders.preprocessed / "Dataset500_B").glob("*.json"))


@pytest.mark.parametrize(
    ("difference", "match"),
    [({"channels": 2}, "has 2 input .* are for 1"), ({"spacing": (3.0, 1.6, 1.6)}, "--spacing voxel")],
)
def test_datasets_that_differ_are_refused(difference, match, folders):
    prepare(folders, "Dataset510_A")
    prepare(folders, "Dataset500_B", planned=False, **difference)
    with pytest.raises(SelmaError, match=match):
        move(folders)


def test_missing_plans_and_datasets_say_what_to_run(folders):
    with pytest.raises(SelmaError, match="dataset 510: there is none"):
        move(folders)
    prepare(folders, "Dataset510_A", planned=False)
    prepare(folders, "Dataset500_B", planned=False)
    with pytest.raises(SelmaError, match="nnUNetv2_plan_and_preprocess -d 510"):
        move(folders)


@pytest.mark.parametrize("choice", [{"patch_edge": 0}, {"batch_size": 0}, {"features": (4, 0, 8)}])
def test_numbers_below_one_are_refused(choice):
    with pytest.raises(SelmaError, match="at least 1"):
        small_plans(
            plans(),
            "small",
            **{"configuration": "3d_fullres", "patch_edge": 32, "batch_size": 2, "features": (4, 8, 8), **choice},
        )


def test_too_few_stages_are_refused():
    with pytest.raises(SelmaError, match="at least 3"):
        small_plans(
            plans("128×128×112"), "small", configuration="3d_fullres", patch_edge=32, batch_size=2, features=(4, 8)
        )

import os
from hashlib import sha256

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import (
    ChosenPretraining,
    check_pretraining,
    choice_of_other_folds,
    find_pretrained,
    network_identity,
)
from nnunet_selma.running.json_files import write_json
from tests.plans import plans

NETWORK = network_identity(plans()["configurations"]["3d_fullres"])
OTHER = network_identity(plans("128×128×112")["configurations"]["3d_fullres"])


def run(results, dataset, network, age):
    fold = results / dataset / "SelmaSSLTrainer__p__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    write_json(fold / "ssl_summary.json", {"network": network})
    (fold / "checkpoint_final.pth").touch()
    os.utime(fold / "ssl_summary.json", (1e9 - age, 1e9 - age))
    return fold / "checkpoint_final.pth"


def test_the_newest_run_of_the_same_network_comes_first_and_others_are_tried_too(tmp_path):
    oldest = run(tmp_path, "Dataset500_old", NETWORK, age=50)
    newest = run(tmp_path, "Dataset501_new", NETWORK, age=10)
    others = [run(tmp_path, f"Dataset50{age}_other", OTHER, age=age) for age in (2, 3)]
    assert find_pretrained("newest", tmp_path, NETWORK) == [newest, oldest, *others]


def test_a_run_without_its_checkpoint_is_not_finished(tmp_path):
    run(tmp_path, "Dataset500_a", NETWORK, age=0).unlink()
    with pytest.raises(SelmaError, match="no finished pretraining"):
        find_pretrained("newest", tmp_path, NETWORK)


def test_paths_and_none(tmp_path):
    assert find_pretrained("none", tmp_path, NETWORK) == []
    path = run(tmp_path, "Dataset500_a", OTHER, age=0)
    assert find_pretrained(str(path), tmp_path, NETWORK) == [path]
    with pytest.raises(SelmaError, match="no such checkpoint"):
        find_pretrained(str(tmp_path / "x.pth"), tmp_path, NETWORK)
    assert find_pretrained("newest", tmp_path, NETWORK) == [path]


def test_a_choice_is_that_of_the_other_folds_as_long_as_there_are_any(tmp_path):
    checkpoint, folds = tmp_path / "checkpoint_final.pth", tmp_path / "SelmaFinetuneTrainer__p__3d_fullres"
    checkpoint.write_bytes(b"weights")
    choice = ChosenPretraining.from_file(checkpoint)
    assert choice.sha256 == sha256(b"weights").hexdigest()
    choice.write(folds)
    (folds / "fold_0").mkdir()
    (folds / "fold_0" / "checkpoint_final.pth").touch()
    assert choice_of_other_folds(folds / "fold_0") is None
    assert choice_of_other_folds(folds / "fold_1") == choice
    checkpoint.write_bytes(b"others")
    with pytest.raises(SelmaError, match="was trained again since; give its path with"):
        choice_of_other_folds(folds / "fold_1")
    checkpoint.unlink()
    with pytest.raises(SelmaError, match="is gone"):
        choice_of_other_folds(folds / "fold_1")
    (folds / "pretrained.json").unlink()
    assert choice_of_other_folds(folds / "fold_1") is None


COMING = {
    "spacing": [5.0, 1.6, 1.6],
    "original_spacing": [5.0, 1.6, 1.6],
    "normalisation": ["ZScoreNormalization"],
    "transposition": [0, 1, 2],
    "input_channels": 1,
}


def pretraining(folder, **changes):
    """A checkpoint with the summary of a pretraining beside it."""
    write_json(folder / "ssl_summary.json", {**COMING, **changes})
    return folder / "checkpoint_final.pth"


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({}, []),
        ({"spacing": [5.0, 2.3, 2.3]}, []),
        (
            {"spacing": [5.0, 3.2, 3.2]},
            ["pretraining had the voxel size 5 × 3.2 × 3.2, this training has 5 × 1.6 × 1.6"],
        ),
        (
            {"normalisation": ["NoNormalization"], "input_channels": 2},
            [
                "pretraining had the normalisation ['NoNormalization'], this training has ['ZScoreNormalization']",
                "pretraining had the number of channels 2, this training has 1",
            ],
        ),
        ({"spacing": [1.6, 1.6]}, []),
    ],
)
def test_what_differs_is_a_warning(changes, warnings, tmp_path):
    assert check_pretraining(pretraining(tmp_path, **changes), COMING) == warnings


VOXELS = [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"spacing": VOXELS, "original_spacing": VOXELS}, "1 × 1 × 1"),
        ({"spacing": [0.005, 0.0016, 0.0016], "original_spacing": [0.005, 0.0016, 0.0016]}, "0.005 × 0.0016 × 0.0016"),
        ({"spacing": [5.0, 1.6, 12.9]}, "5 × 1.6 × 12.9"),
    ],
)
def test_a_pretraining_in_another_unit_is_refused_with_both_numbers(changes, numbers, tmp_path):
    path = pretraining(tmp_path, **changes)
    with pytest.raises(SelmaError) as refused:
        check_pretraining(path, COMING)
    assert f"{path}: pretraining had the voxel size {numbers}, this training has 5 × 1.6 × 1.6" in str(refused.value)


def test_a_coarser_configuration_of_data_in_voxels_is_in_voxels_too(tmp_path):
    path = pretraining(tmp_path, spacing=VOXELS, original_spacing=VOXELS)
    coming = {**COMING, "spacing": [2.2, 2.2, 2.2], "original_spacing": VOXELS}
    assert check_pretraining(path, coming) == [
        "pretraining had the voxel size 1 × 1 × 1, this training has 2.2 × 2.2 × 2.2"
    ]


def test_summaries_of_earlier_versions_are_compared_as_far_as_they_go(tmp_path):
    write_json(tmp_path / "ssl_summary.json", {"spacing": VOXELS, "network": {}})
    with pytest.raises(SelmaError, match="another unit"):
        check_pretraining(tmp_path / "checkpoint_final.pth", COMING)
    write_json(tmp_path / "ssl_summary.json", {"network": {}})
    assert check_pretraining(tmp_path / "checkpoint_final.pth", COMING) == []


def test_weights_without_a_summary_cannot_be_compared_and_that_is_said(tmp_path):
    (sentence,) = check_pretraining(tmp_path / "weights.pth", COMING)
    assert "could not be compared" in sentence
    assert str(tmp_path / "weights.pth") in sentence

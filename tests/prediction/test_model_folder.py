"""Whoever gives something that is no model is told what to give instead."""

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.model_folder import check_model_folder, trained_folds

FINAL = "checkpoint_final.pth"


def advice(folder, folds, checkpoint):
    """The message of a command that has all options; None for a complete model."""
    try:
        check_model_folder(folder, folds, checkpoint)
    except SelmaError as error:
        return error.for_command({"-f", "-chk"})
    return None


def model(folder, *checkpoints):
    folder.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_text("{}")
    for checkpoint in checkpoints:
        (folder / checkpoint).parent.mkdir(exist_ok=True)
        (folder / checkpoint).write_bytes(b"")
    return folder


@pytest.fixture
def results(tmp_path):
    """nnUNet_results with two models of one dataset."""
    for name in ("a__p__3d_fullres", "b__p__2d"):
        model(tmp_path / "nnUNet_results" / "Dataset001_A" / name, f"fold_0/{FINAL}")
    return tmp_path / "nnUNet_results"


def test_a_complete_model_needs_no_advice(tmp_path):
    folder = model(tmp_path / "m", f"fold_0/{FINAL}", f"fold_all/{FINAL}", "fold_0/checkpoint_best.pth")
    assert advice(folder, ["0", "all"], FINAL) is None
    assert advice(folder, ["0"], "checkpoint_best.pth") is None


@pytest.mark.parametrize(
    ("trained", "folds"),
    [((0, 10, 2), ("0", "2", "10")), ((1, "all"), ("1",)), (("all",), ("all",)), ((), ("0",))],
)
def test_the_folds_that_are_trained(trained, folds, tmp_path):
    folder = model(tmp_path / "m", "fold_7/checkpoint_best.pth", *(f"fold_{fold}/{FINAL}" for fold in trained))
    assert trained_folds(folder, FINAL) == folds


def test_folders_above_models_name_the_models(results):
    for folder in (results, results.parent, results / "Dataset001_A"):
        words = advice(folder, ["0"], FINAL)
        for name in ("a__p__3d_fullres", "b__p__2d"):
            assert str(results / "Dataset001_A" / name) in words


def test_a_fold_and_its_checkpoint_lead_to_the_model(results):
    folder = results / "Dataset001_A" / "b__p__2d"
    assert f"{folder}, and -f 0" in advice(folder / "fold_0", ["0"], FINAL)
    assert f"give {folder}, and -f 0" in advice(folder / "fold_0" / FINAL, ["0"], FINAL)


def test_files_and_nothing(tmp_path):
    for name, said in (
        ("a.zip", "nnUNetv2_install_pretrained_model_from_zip"),
        ("a.pth", "plans.json and dataset.json"),
        ("a", "is a file"),
    ):
        (tmp_path / name).write_bytes(b"")
        assert said in advice(tmp_path / name, ["0"], FINAL)
    assert "no such folder" in advice(tmp_path / "none", ["0"], FINAL)
    (tmp_path / "empty").mkdir()
    assert "plans.json, dataset.json is missing" in advice(tmp_path / "empty", ["0"], FINAL)


def test_other_checkpoints_and_other_folds_are_named(tmp_path):
    best = model(tmp_path / "best", "fold_0/checkpoint_best.pth", "fold_0/checkpoint_latest.pth")
    assert "give -chk checkpoint_best.pth" in advice(best, ["0"], FINAL)
    third = model(tmp_path / "third", f"fold_3/{FINAL}")
    assert "trained are the folds 3" in advice(third, ["0"], FINAL)
    elsewhere = model(tmp_path / "elsewhere", "fold_2/checkpoint_best.pth")
    assert "-f 2 -chk checkpoint_best.pth" in advice(elsewhere, ["0"], FINAL)
    assert "give a model that is trained" in advice(model(tmp_path / "untrained"), ["0"], FINAL)

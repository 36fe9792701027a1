import os
from hashlib import sha256

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import (
    ChosenPretraining,
    choice_of_other_folds,
    differences,
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


def test_the_newest_run_of_the_same_network(tmp_path):
    oldest = run(tmp_path, "Dataset500_old", NETWORK, age=50)
    newest = run(tmp_path, "Dataset501_new", NETWORK, age=10)
    run(tmp_path, "Dataset502_other", OTHER, age=0)
    assert find_pretrained("newest", tmp_path, NETWORK) == [newest, oldest]


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
    with pytest.raises(SelmaError, match=r"1 pretraining\(s\) there have another network"):
        find_pretrained("newest", tmp_path, NETWORK)


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


def test_what_differs_is_said_and_what_is_not_known_is_not_compared():
    coming = {
        "spacing": [4.0, 1.0, 1.0],
        "normalisation": ["ZScoreNormalization"],
        "transposition": [0, 1, 2],
        "input_channels": 1,
    }
    summary = {**coming, "spacing": [1.0, 1.0, 1.0], "input_channels": 2}
    assert differences(summary, coming) == [
        "pretraining had the voxel size [1.0, 1.0, 1.0], this training has [4.0, 1.0, 1.0]",
        "pretraining had the number of channels 2, this training has 1",
    ]
    assert differences({}, coming) == []
    assert differences(coming, coming) == []

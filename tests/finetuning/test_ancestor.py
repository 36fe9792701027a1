import json

import pytest
import torch

from nnunet_selma.finetuning.ancestor import GIVEN, RANDOM, UNKNOWN, ancestor_of, in_words
from nnunet_selma.finetuning.pretrained import ChosenPretraining
from nnunet_selma.nnunet.checkpoints import ANCESTOR, read_checkpoint
from nnunet_selma.running.json_files import write_json

NNUNETS = {
    "trainer_name": "nnUNetTrainer",
    "current_epoch": 3,
    "init_args": {"plans": {"dataset_name": "Dataset510_A", "plans_name": "p"}, "configuration": "3d_fullres"},
}
SUMMARY = {"trainer": "SelmaSSLTrainer_BYOL", "pretext": "BYOL", "dataset": "Dataset500_B", "epochs": 7, "steps": 28}


def recorded(folder, *, summary=None, **entries):
    path = folder / "checkpoint_final.pth"
    torch.save({"network_weights": {"a": torch.ones(2)}, **entries}, path)
    if summary:
        write_json(folder / "ssl_summary.json", summary)
    return ancestor_of(ChosenPretraining.from_file(path), read_checkpoint(path))


@pytest.mark.parametrize(
    ("summary", "entries", "expected"),
    [
        (SUMMARY, NNUNETS, {**SUMMARY, "plans": "p", "configuration": "3d_fullres"}),
        (None, NNUNETS, {"trainer": "nnUNetTrainer", "dataset": "Dataset510_A", "epochs": 3, "pretext": None}),
        (None, {}, {"trainer": None, "pretext": None, "dataset": None, "epochs": None, "steps": None}),
        (None, {"init_args": 3, "current_epoch": 2}, {"dataset": None, "epochs": 2}),
    ],
)
def test_a_record_names_what_is_known(summary, entries, expected, tmp_path):
    record = recorded(tmp_path, summary=summary, **entries)
    path = tmp_path / "checkpoint_final.pth"
    assert record["weights"] == "pretrained"
    assert record["path"] == str(path)
    assert record["sha256"] == ChosenPretraining.from_file(path).sha256
    assert {key: record[key] for key in expected} == expected
    assert json.loads(json.dumps(record)) == record


def test_the_ancestor_of_an_ancestor_is_kept(tmp_path):
    first = recorded(tmp_path, summary=SUMMARY)
    (tmp_path / "second").mkdir()
    second = recorded(tmp_path / "second", **NNUNETS, **{ANCESTOR: first})
    assert second["ancestor"] == first


def test_a_record_in_words(tmp_path):
    record = recorded(tmp_path, summary=SUMMARY)
    assert in_words(record) == (
        f"Ancestor: {tmp_path}/checkpoint_final.pth, by BYOL on Dataset500_B, 7 epoch(s), SHA-256 {record['sha256']}"
    )
    assert "random weights" in in_words(RANDOM)
    assert "-pretrained_weights" in in_words(GIVEN)
    assert "not known" in in_words(UNKNOWN)

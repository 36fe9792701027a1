"""Texts and checkpoints without the folders of the machine that wrote them."""

import pytest
import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.sharing.light import check_model, light_checkpoint, public_plans, without_folders

BELOW = "Dataset1_A/SelmaSSLTrainer__p__2d/fold_0/checkpoint_final.pth"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/alice/weights.pth", "weights.pth"),
        ("/weights.pth", "weights.pth"),
        ("/home/alice smith/my data/x.pth", "x.pth"),
        (f"/home/alice/nnUNet_results/{BELOW}", BELOW),
        ("~/x.pth", "x.pth"),
        ("~alice/x.pth", "x.pth"),
        ("C:\\Users\\alice\\x.pth", "x.pth"),
        ("D:/Users/alice smith/x.pth", "x.pth"),
        ("\\\\server\\alice\\x.pth", "x.pth"),
        ("file:///home/alice/x.pth", "x.pth"),
        ("/home/alice/x.pth: is cut short; copy it again", "x.pth: is cut short; copy it again"),
        ("/home/alice smith/x.pth: is cut short", "x.pth: is cut short"),
        (f"weights of /home/alice/nnUNet_results/{BELOW} are lacking.", f"weights of {BELOW} are lacking."),
        ("3 cases in /home/alice smith/data, and ~/more", "3 cases in data, and more"),
        ("'C:\\Users\\alice smith\\x.pth' and \"/home/alice smith\"", "'x.pth' and \"alice smith\""),
        ("/home/alice/x is not below /home/alice/y.", "x is not below y."),
        ("path=/home/alice/x (as of /home/alice/y)", "path=x (as of y)"),
    ],
)
def test_paths_lose_their_folders(text, public):
    assert without_folders({"a": [(text, 1)]}) == {"a": [[public, 1]]}


@pytest.mark.parametrize(
    "text",
    [
        "https://doi.org/10.1038/s41592-020-01008-z",
        "see https://doi.org/10.1/2, 5 µm/voxel, 1/2, and/or a / b",
        "nnunet_selma.pretraining.byol.Byol",
        "imagesTr/cell_0000.nii.gz",
        "microscope: light-sheet",
        "~ 5 µm",
        "/",
        "",
    ],
)
def test_other_texts_stay(text):
    assert without_folders(text) == text


def test_plans_are_copied():
    plans = {"selma": {"finetuning": {"pretrained": "/home/alice/x.pth"}}, "spacing": [1.0, 2.0]}
    assert public_plans(plans) == {"selma": {"finetuning": {"pretrained": "x.pth"}}, "spacing": [1.0, 2.0]}
    assert plans["selma"]["finetuning"]["pretrained"] == "/home/alice/x.pth"


def test_a_checkpoint_keeps_only_weights_and_their_origin():
    content = {
        "network_weights": {"a": torch.ones(2)},
        "trainer_name": "SelmaSSLTrainer",
        "init_args": {"configuration": "2d", "plans": {"p": "/home/alice/x"}, "device": torch.device("cpu")},
        "optimizer_state": {"a": torch.ones(4)},
        "pretext_state": {"a": torch.ones(9)},
        "nnssl_adaptation_plan": {"citations": ["/home/alice/y"], "stem": ("a", "b")},
        "selma_trained": ("encoder",),
    }
    light = light_checkpoint(content)
    assert light.pop("network_weights") is content["network_weights"]
    assert light == {
        "trainer_name": "SelmaSSLTrainer",
        "init_args": {"configuration": "2d", "plans": {"p": "x"}},
        "inference_allowed_mirroring_axes": None,
        "pretext_state": True,
        "nnssl_adaptation_plan": {"citations": ["y"], "stem": ["a", "b"]},
        "selma_trained": ["encoder"],
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(2), "without network_weights, trainer_name, init_args"),
        ({"network_weights": {}, "init_args": {}}, "without trainer_name"),
        ({"network_weights": torch.ones(2), "trainer_name": "a", "init_args": {}}, "its network_weights is no dict"),
        ({"network_weights": {}, "trainer_name": "a", "init_args": None}, "its init_args is no dictionary"),
    ],
)
def test_a_file_that_is_no_model(content, words, tmp_path):
    with pytest.raises(SelmaError, match=f"x.pth: is no checkpoint of nnU-Net, .*{words}"):
        check_model(content, tmp_path / "x.pth")

import json
import subprocess
import sys

import pytest
import torch

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.designs import NETWORKS, network_plans
from nnunet_selma.nnunet.plans import total_strides
from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.running.json_files import read_json, write_json
from tests.plans import ARCHITECTURES, network, plans

SMALL = {"swin_unetr": 12, "vit_adapter": 48, "attention_unet": 4}
CASES = [(name, kind) for name in ARCHITECTURES for kind in NETWORKS if ("2d" in name) == (kind == "attention_unet")]


def only(content):
    """The one configuration of plans."""
    (own,) = content["configurations"].values()
    return own


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nnunet_builds_the_network_and_it_takes_the_patch(name, kind):
    source = plans(name)
    content = network_plans(source, "new", network=kind, patch_edge=32, batch_size=2, features=SMALL[kind])
    assert content == json.loads(json.dumps(content))
    assert source == plans(name)
    own, before = only(content), only(source)
    assert own["patch_size"] == [32] * len(before["patch_size"])
    assert (own["batch_size"], content["plans_name"]) == (2, "new")
    assert all(own[key] == before[key] for key in before if key not in ("architecture", "patch_size", "batch_size"))
    model = network(content, pretraining=False).train()
    image = torch.randn(1, 1, *own["patch_size"])
    outputs = model(image)
    assert [o.shape[1] for o in outputs] == [2] * (len(own["architecture"]["arch_kwargs"]["strides"]) - 1)
    assert network(content, input_channels=3)(image.repeat(1, 3, *[1] * (image.ndim - 2))).shape[1] == 3


@pytest.mark.parametrize(
    ("name", "kind", "patch", "strides"),
    [
        ("112³, strides 16, (1,3,3) stem", "swin_unetr", [96, 96, 96], 32),
        ("32×256×256, strides 8,64,64", "swin_unetr", [32, 256, 256], 32),
        ("128×128×112", "swin_unetr", [128, 128, 96], 32),
        ("small", "swin_unetr", [16, 16, 16], 8),
        ("112³, strides 16, (1,3,3) stem", "vit_adapter", [112, 112, 112], 8),
        ("64×160×160, strides 8,32,32", "vit_adapter", [64, 160, 160], 8),
        ("small", "vit_adapter", [16, 16, 16], 8),
        ("2d, 256×256", "attention_unet", [256, 256], 16),
    ],
)
def test_the_patch_is_the_largest_within_the_plans_that_can_be_halved(name, kind, patch, strides):
    own = only(network_plans(plans(name), "new", network=kind))
    assert own["patch_size"] == patch
    assert total_strides(own) == [strides] * len(patch)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("edge", [1, 5, 8, 13, 31, 32, 50, 64, 100, 256])
def test_any_patch_leaves_three_stages_and_more_than_one_voxel(kind, edge):
    source = plans("2d, 256×256" if kind == "attention_unet" else "64×160×160, strides 8,32,32")
    own = only(network_plans(source, "new", network=kind, patch_edge=edge))
    strides = total_strides(own)
    stages = len(own["architecture"]["arch_kwargs"]["strides"])
    assert 3 <= stages <= NETWORKS[kind].halvings + 1
    bottleneck = [length // stride for length, stride in zip(own["patch_size"], strides, strict=True)]
    assert [b * stride for b, stride in zip(bottleneck, strides, strict=True)] == own["patch_size"]
    assert max(bottleneck) > 1
    if edge >= 8:
        assert all(
            length <= min(edge, most)
            for length, most in zip(own["patch_size"], only(source)["patch_size"], strict=True)
        )


def test_without_numbers_the_network_is_the_papers_and_the_batch_the_plans():
    swin = only(network_plans(plans("128×128×112", batch=3), "new", network="swin_unetr"))
    assert swin["batch_size"] == 3
    assert swin["architecture"] == {
        "network_class_name": "nnunet_selma.networks.swin_unetr.SwinUNETR",
        "arch_kwargs": {
            "strides": [[1] * 3, *[[2] * 3] * 5],
            "feature_size": 48,
            "depths": [2] * 4,
            "num_heads": [3, 6, 12, 24],
            "window_size": 7,
        },
        "_kw_requires_import": [],
    }
    vit = only(network_plans(plans("128×128×112"), "new", network="vit_adapter"))["architecture"]["arch_kwargs"]
    assert (vit["embed_dim"], vit["depth"], vit["features_per_stage"]) == (384, 12, [32, 64, 128, 256])
    unet = only(network_plans(plans("2d, 256×256"), "new", network="attention_unet"))["architecture"]["arch_kwargs"]
    assert unet["features_per_stage"] == [32, 64, 128, 256, 512]


def test_transformers_bring_their_optimiser_and_other_settings_stay():
    source = {**plans(), "selma": {"pretraining": {"epochs": 7}, "finetuning": {"optimizer": "sgd"}}}
    settings = read_settings(network_plans(source, "new", network="vit_adapter"))
    assert (settings.pretraining.optimizer, settings.finetuning.optimizer) == ("adamw", "adamw")
    assert settings.pretraining.epochs == 7
    flat = read_settings(network_plans(plans("2d, 256×256"), "new", network="attention_unet"))
    assert (flat.pretraining.optimizer, flat.finetuning.optimizer) == ("adamw", "sgd")  # as without a plan's choice


def cascade():
    content = plans()
    content["configurations"] |= {
        "2d": only(plans("2d, 256×256")),
        "3d_lowres": {**only(plans()), "next_stage": "3d_cascade_fullres", "data_identifier": "low"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "3d_own": {"inherits_from": "3d_lowres", "batch_size": 5},
    }
    return content


def test_a_configuration_stands_alone_in_the_new_plans():
    low = network_plans(cascade(), "new", network="vit_adapter", configuration="3d_lowres")
    assert list(low["configurations"]) == ["3d_lowres"]
    assert "next_stage" not in only(low)
    heir = only(network_plans(cascade(), "new", network="vit_adapter", configuration="3d_own"))
    assert (heir["batch_size"], heir["data_identifier"]) == (5, "low")
    assert "inherits_from" not in heir
    assert list(network_plans(cascade(), "new", network="attention_unet")["configurations"]) == ["2d"]


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"network": "unet"}, "unknown network 'unet': choose one of swin_unetr, vit_adapter, attention_unet"),
        ({"network": "attention_unet", "configuration": "3d_fullres"}, "needs a 2D configuration .* choose 2d with -c"),
        (
            {"network": "swin_unetr", "configuration": "2d"},
            "needs a 3D .* choose 3d_fullres or 3d_lowres or 3d_own with",
        ),
        ({"network": "vit_adapter", "configuration": "3d_cascade_fullres"}, "no second stage of a cascade"),
        ({"network": "vit_adapter", "configuration": "4d"}, "'4d' of plans nnUNetPlans is not"),
        ({"network": "swin_unetr", "features": 20}, "20 features do not fit swin_unetr: give a multiple of 12"),
        ({"network": "vit_adapter", "features": 36}, "give a multiple of 48"),
        ({"network": "vit_adapter", "features": 0}, "at least 1"),
        ({"network": "vit_adapter", "patch_edge": 0}, "at least 1"),
        ({"network": "vit_adapter", "batch_size": 0}, "at least 1"),
        ({"network": "vit_adapter", "name": "nnUNetPlans"}, "save under another name"),
    ],
)
def test_what_cannot_be_planned(choice, match):
    with pytest.raises(SelmaError, match=match):
        network_plans(cascade(), **{"name": "new", **choice})


def test_plans_without_a_flat_configuration():
    with pytest.raises(SelmaError, match="these have none, take others with -p"):
        network_plans(plans(), "new", network="attention_unet")


def test_without_monai_only_its_networks_are_refused(monkeypatch):
    monkeypatch.setattr("nnunet_selma.networks.designs.find_spec", lambda name: None)
    with pytest.raises(SelmaError, match=r"swin_unetr: .*pip install 'nnunet-selma\[networks\]'"):
        network_plans(plans(), "new", network="swin_unetr")
    assert network_plans(plans(), "new", network="vit_adapter")


@pytest.fixture
def planned(folders):
    folder = folders.preprocessed / "Dataset510_A"
    folder.mkdir()
    write_json(folder / "nnUNetPlans.json", cascade())
    return folder


def test_the_command_writes_plans_beside_the_others(planned, capsys):
    assert cli.main(["plan-network", "-d", "510", "--network", "attention_unet"]) == 0
    said = capsys.readouterr().out
    assert "nnUNetPlans_attention_unet.json: attention_unet for 2d, patch [256, 256], batch 1" in said
    assert "plan-pretraining -s 510 -t UNLABELLED -p nnUNetPlans_attention_unet -c 2d" in said
    assert "nnUNetv2_train 510 2d FOLD -tr SelmaFinetuneTrainer -p nnUNetPlans_attention_unet" in said
    assert read_json(planned / "nnUNetPlans.json") == cascade()
    numbers = ["-c", "3d_lowres", "--save-as", "tiny", "--patch", "8", "--batch", "6", "--features", "48"]
    assert cli.main(["plan-network", "-d", "510", "--network", "vit_adapter", *numbers]) == 0
    tiny = read_json(planned / "tiny.json")
    assert (tiny["plans_name"], only(tiny)["patch_size"], only(tiny)["batch_size"]) == ("tiny", [8, 8, 8], 6)
    assert only(tiny)["architecture"]["arch_kwargs"]["embed_dim"] == 48


def test_the_command_says_what_is_wrong_in_one_sentence(planned, capsys):
    wrong = ["plan-network", "-d", "510", "--network", "swin_unetr", "--features", "7"]
    assert cli.main(wrong) == 2
    assert capsys.readouterr().err == "nnunet-selma: 7 features do not fit swin_unetr: give a multiple of 12\n"
    assert [path.name for path in planned.iterdir()] == ["nnUNetPlans.json"]


def test_planning_loads_no_torch():
    program = "import sys, nnunet_selma.networks.designs; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

"""MONAI's own networks, with the same weights, say the same."""

import importlib
import re
import sys

import pytest
import torch
from monai.networks import nets

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.transfer import carry_over
from nnunet_selma.networks.attention_unet import AttentionUNet
from nnunet_selma.networks.swin_unetr import SwinUNETR
from nnunet_selma.nnunet.checkpoints import read_checkpoint

WRAPPED = {
    "plain": lambda w: w,
    "bundle": lambda w: {"state_dict": w, "epoch": 10},
    "VoCo's student": lambda w: {
        "student": {f"module.backbone.{key}": value for key, value in w.items()},
        "teacher": {},
    },
    "net": lambda w: {"net": {f"swinUNETR.{key}": value for key, value in w.items()}},
    "Lightning": lambda w: {
        "state_dict": {f"model.{key}": value for key, value in w.items()},
        "pytorch-lightning_version": "2.1",
    },
}
TRANSFORMER = {
    "model_swinvit": lambda w: {f"module.{key.replace('.mlp.linear', '.mlp.fc')}": value for key, value in w.items()},
    "swinViT": lambda w: {f"swinViT.{key}": value for key, value in w.items()},
    "disruptive autoencoder": lambda w: {
        "encoder." + re.sub(r"^(layers.\.0\.)", r"\g<1>0.", key): value for key, value in w.items()
    },
    "teacher beside its student": lambda w: {
        **{f"teacher.backbone.{key}": value for key, value in w.items()},
        **{f"student.backbone.{key}": torch.zeros_like(value) for key, value in w.items()},
    },
}


def swin_pair():
    torch.manual_seed(1)
    theirs = nets.SwinUNETR(2, 3, feature_size=12, window_size=3)
    return theirs, SwinUNETR(2, 3, [[1] * 3, *[[2] * 3] * 5], feature_size=12, window_size=3)


@pytest.mark.parametrize("wrap", WRAPPED)
def test_swin_unetr_is_monais_and_takes_its_checkpoints(wrap, tmp_path):
    theirs, ours = swin_pair()
    torch.save(WRAPPED[wrap](theirs.state_dict()), tmp_path / "c.pt")
    report = carry_over(read_checkpoint(tmp_path / "c.pt"), ours, keep_head=True)
    assert report.share == 1.0
    assert "as MONAI names them" in report.table()
    image = torch.randn(1, 2, 64, 32, 32)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrap", TRANSFORMER)
def test_swin_unetr_takes_transformers_alone(wrap, tmp_path):
    theirs, ours = swin_pair()
    torch.save({"state_dict": TRANSFORMER[wrap](theirs.swinViT.state_dict())}, tmp_path / "c.pt")
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    report = carry_over(read_checkpoint(tmp_path / "c.pt"), ours)
    assert report.named
    image = torch.randn(1, 2, 64, 32, 32)
    for here, there in zip(ours.encoder.swin(image), theirs.swinViT(image), strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-5)
    assert all(
        torch.equal(value, before[key])
        for key, value in ours.state_dict().items()
        if not key.startswith("encoder.swin.")
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_attention_unet_is_monais(dimensions):
    torch.manual_seed(1)
    channels, strides = [4, 6, 8, 10], [2, 2, 2]
    theirs = nets.AttentionUnet(dimensions, 2, 3, channels, strides)
    ours = AttentionUNet(2, 3, dimensions, [[stride] * dimensions for stride in (1, *strides)], channels)
    head, layer, last = theirs.model
    copied = [(head, ours.encoder.stages[0]), (last.conv, ours.decoder.seg_layers[-1])]
    for stage, step in zip(list(ours.encoder.stages)[1:], reversed(ours.decoder.steps), strict=True):
        copied += [(layer.upconv, step.up), (layer.attention, step.attention), (layer.merge, step.merge)]
        # the layer of the bottom holds a block, the others a block and the next layer
        block, layer = layer.submodule if isinstance(layer.submodule, torch.nn.Sequential) else (layer.submodule, None)
        copied.append((block, stage))
    for source, target in copied:
        target.load_state_dict(source.state_dict())
    assert sum(p.numel() for p in theirs.parameters()) == sum(
        p.numel()
        for name, p in ours.named_parameters()
        if not name.startswith(("decoder.seg_layers.0", "decoder.seg_layers.1"))
    )
    image = torch.randn(2, 2, *[16] * dimensions)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(image), theirs.train(mode)(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", ["swin_unetr", "attention_unet"])
def test_without_monai_the_remedy_is_said(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.blocks", None)
    monkeypatch.delitem(sys.modules, f"nnunet_selma.networks.{module}")
    with pytest.raises(SelmaError, match=r"pip install 'nnunet-selma\[networks\]'"):
        importlib.import_module(f"nnunet_selma.networks.{module}")

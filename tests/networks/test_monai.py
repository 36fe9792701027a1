"""MONAI's own networks, with the same weights, say the same."""

import importlib
import sys

import pytest
import torch
from monai.networks import nets

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.attention_unet import AttentionUNet
from nnunet_selma.networks.swin_unetr import SwinUNETR

MONAI = {
    "swinViT": "encoder.swin", "encoder1": "encoder.blocks.0", "encoder2": "encoder.blocks.1", "encoder3": "encoder.blocks.2",
    "encoder4": "encoder.blocks.3", "encoder10": "encoder.blocks.5", "decoder5": "decoder.steps.0", "decoder4": "decoder.steps.1",
    "decoder3": "decoder.steps.2", "decoder2": "decoder.steps.3", "decoder1": "decoder.steps.4", "out": "decoder.seg_layers.4",
}  # fmt: skip


def test_swin_unetr_is_monais():
    torch.manual_seed(1)
    theirs = nets.SwinUNETR(2, 3, feature_size=12, window_size=3)
    ours = SwinUNETR(2, 3, [[1] * 3, *[[2] * 3] * 5], feature_size=12, window_size=3)
    weights = {}
    for key, tensor in theirs.state_dict().items():
        part, rest = key.split(".", 1)
        weights[f"{MONAI[part]}.{rest.removeprefix('conv.conv.') if part == 'out' else rest}"] = tensor
    lacking = ours.load_state_dict(weights, strict=False)
    assert not lacking.unexpected_keys
    assert all(key.startswith("decoder.seg_layers.") for key in lacking.missing_keys)
    image = torch.randn(1, 2, 64, 32, 32)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-5)


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
        p.numel() for name, p in ours.named_parameters() if not name.startswith(("decoder.seg_layers.0", "decoder.seg_layers.1"))
    )  # fmt: skip
    image = torch.randn(2, 2, *[16] * dimensions)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(image), theirs.train(mode)(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", ["swin_unetr", "attention_unet"])
def test_without_monai_the_remedy_is_said(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.blocks", None)
    monkeypatch.delitem(sys.modules, f"nnunet_selma.networks.{module}")
    with pytest.raises(SelmaError, match=r"pip install 'nnunet-selma\[networks\]'"):
        importlib.import_module(f"nnunet_selma.networks.{module}")

"""What pretexts, transfer and nnU-Net's trainer ask of a network."""

import copy
import io

import numpy as np
import pytest
import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.attention_unet import AttentionUNet
from nnunet_selma.networks.swin_unetr import SwinUNETR
from nnunet_selma.networks.vit_adapter import ViTAdapter
from nnunet_selma.trainers.fast_layers import Trials, accelerate

HALVED = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
FLAT = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
SWIN = {"feature_size": 12, "depths": [2, 2], "num_heads": [3, 6], "window_size": 2}
VIT = {"embed_dim": 48, "depth": 3, "num_heads": 8, "features_per_stage": [4, 6, 8, 10]}
CASES = {
    "swin_unetr": (SwinUNETR, {"strides": HALVED, **SWIN}, (16, 16, 8)),
    "swin_unetr, flat tokens": (SwinUNETR, {"strides": FLAT, **SWIN}, (8, 16, 16)),
    "vit_adapter": (ViTAdapter, {"strides": HALVED, **VIT}, (16, 16, 8)),
    "vit_adapter, flat tokens": (ViTAdapter, {"strides": FLAT, **VIT}, (4, 16, 16)),
    "attention_unet": (
        AttentionUNet,
        {"spatial_dims": 2, "strides": [[1, 1], [2, 2], [1, 2]], "features_per_stage": [4, 6, 8]},
        (8, 12),
    ),
    "attention_unet, 3D": (
        AttentionUNet,
        {"spatial_dims": 3, "strides": FLAT[:3], "features_per_stage": [4, 6, 8]},
        (4, 8, 8),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    """Class, arguments and a patch; weights are the same each time."""
    torch.manual_seed(3)
    return CASES[request.param]


def build(case, *, channels=2, classes=3, deep_supervision=True):
    cls, kwargs, patch = case
    network = cls(input_channels=channels, num_classes=classes, deep_supervision=deep_supervision, **kwargs)
    return network, torch.randn(2, channels, *patch)


def step(network, image):
    """Logits of all scales, and the gradients they leave."""
    network.zero_grad()
    outputs = network(image)
    sum(output.square().mean() for output in outputs).backward()
    return outputs, {name: parameter.grad for name, parameter in network.named_parameters()}


def test_deep_supervision_has_the_resolutions_that_nnunet_scales_its_targets_to(case):
    network, image = build(case)
    strides = case[1]["strides"]
    # nnUNetTrainer._get_deep_supervision_scales
    scales = (1 / np.cumprod(np.vstack(strides), axis=0))[:-1]
    outputs = network(image)
    expected = [(2, 3, *(round(edge * s) for edge, s in zip(case[2], scale, strict=True))) for scale in scales]
    assert [tuple(output.shape) for output in outputs] == expected


def test_deep_supervision_can_be_switched_at_any_time(case):
    network, image = build(case, deep_supervision=False)
    network.eval()
    alone = network(image)
    assert alone.shape == (2, 3, *case[2])
    network.decoder.deep_supervision = True
    together = network(image)
    assert len(together) == len(case[1]["strides"]) - 1
    assert torch.equal(together[0], alone)
    with torch.no_grad():
        network.decoder.seg_layers[-1].bias += 1
    assert torch.allclose(network(image)[0], alone + 1, atol=1e-5)


def test_maps_go_from_fine_to_coarse_with_the_channels_they_say(case):
    network, image = build(case)
    maps = network.encoder(image)
    strides = np.cumprod(case[1]["strides"], axis=0)
    assert [one.shape[1] for one in maps] == network.encoder.output_channels
    assert [list(one.shape[2:]) for one in maps] == [list(np.array(case[2]) // stride) for stride in strides]
    for one, other in zip(network.decoder(maps), network(image), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_gradients_reach_every_parameter(case):
    network, image = build(case)
    gradients = step(network, image)[1]
    assert not [name for name, gradient in gradients.items() if gradient is None]
    # norms undo the biases before them; everything else must have something to learn from
    assert not [name for name, gradient in gradients.items() if name.endswith("weight") and not gradient.any()]
    network.decoder.deep_supervision = False
    network.zero_grad()
    network(image).square().mean().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert all(name.startswith("decoder.seg_layers.") for name in unused)
    assert len(unused) == 2 * (len(network.decoder.seg_layers) - 1)


def test_the_pretrained_part_gives_maps_and_can_be_frozen(case):
    network, image = build(case)
    part = network.get_submodule(network.pretrained_part)
    maps = part(image)
    coarsest = maps if isinstance(maps, torch.Tensor) else maps[-1]
    assert list(coarsest.shape[2:]) == list(np.array(case[2]) // np.prod(case[1]["strides"], axis=0))
    part.requires_grad_(False)
    gradients = step(network, image)[1]
    left = {name for name, gradient in gradients.items() if gradient is not None}
    assert left == {name for name in gradients if not name.startswith(f"{network.pretrained_part}.")}
    assert any(name.startswith("decoder.") for name in left)
    if isinstance(network, ViTAdapter):
        assert {"encoder.stem.0.0.weight", "encoder.projections.0.weight"} <= left


def test_the_layers_that_read_the_image_are_named(case):
    for channels in (1, 5):
        network, image = build(case, channels=channels, classes=1)
        assert network(image)[0].shape == (2, 1, *case[2])
        network.get_submodule(network.key_to_stem)
        assert network.key_to_encoder == "encoder"
        assert network.key_to_lpe is None
        shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        other = dict(build(case, channels=7, classes=1)[0].named_parameters())
        differ = {name for name, shape in shapes.items() if shape != other[name].shape}
        assert differ == {f"{key}.weight" for key in network.keys_to_in_proj}


def test_a_network_with_as_many_channels_as_features():
    network = SwinUNETR(12, 1, **CASES["swin_unetr"][1])
    assert all(hasattr(network.get_submodule(key), "weight") for key in network.keys_to_in_proj)


def test_fast_layers_give_the_same(case):
    network, image = build(case)
    fast = copy.deepcopy(network)
    exchanged = accelerate(fast, Trials())
    assert (exchanged > 0) == (len(case[2]) == 3)
    # no deeper than float32 allows
    for model in (network, fast):
        model.double()
    image = image.double()
    (outputs, gradients), (others, of_others) = step(network, image), step(fast, image)
    for output, other in zip(outputs, others, strict=True):
        torch.testing.assert_close(output, other, rtol=1e-8, atol=1e-8)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, of_others[name], rtol=1e-6, atol=1e-8)


def test_weights_can_be_copied_stored_and_loaded(case):
    network, image = build(case)
    stored = io.BytesIO()
    torch.save(network.state_dict(), stored)
    stored.seek(0)
    other, _ = build(case)
    assert not torch.equal(network.eval()(image)[0], other.eval()(image)[0])
    other.load_state_dict(torch.load(stored, weights_only=True))
    for same in (other, copy.deepcopy(network)):
        assert torch.equal(network(image)[0], same(image)[0])
    assert len({tensor.data_ptr() for tensor in network.state_dict().values()}) == len(network.state_dict())


def test_mixed_precision(case):
    network, image = build(case, deep_supervision=False)
    network.eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(image)
    assert output.dtype == torch.bfloat16
    assert (output - network(image)).std() < 0.1 * network(image).std()


def test_an_image_that_the_strides_do_not_divide(case):
    network, image = build(case)
    with pytest.raises(SelmaError, match="edges must be multiples of"):
        network(image[..., :-1])


@pytest.mark.parametrize(
    ("cls", "kwargs", "match"),
    [
        (SwinUNETR, {"strides": HALVED[:3], **SWIN}, "do not fit 2 stage"),
        (SwinUNETR, {**SWIN, "strides": [*HALVED[:3], [1, 2, 2]]}, "do not fit 2 stage"),
        (
            SwinUNETR,
            {"strides": [*HALVED, *HALVED[1:]], **SWIN, "depths": [1] * 5, "num_heads": [3] * 5},
            "do not fit 5 stage",
        ),
        (ViTAdapter, {**VIT, "strides": HALVED[:3]}, "3 strides and 4 features_per_stage"),
        (ViTAdapter, {**VIT, "strides": HALVED, "embed_dim": 40}, "give a multiple of 48"),
        (AttentionUNet, {"spatial_dims": 2, "strides": HALVED, "features_per_stage": [4, 6, 8, 10]}, "in 2D"),
        (AttentionUNet, {"spatial_dims": 3, "strides": HALVED, "features_per_stage": [4, 6, 8]}, "do not fit 3 stages"),
    ],
)
def test_arguments_that_do_not_fit_each_other(cls, kwargs, match):
    with pytest.raises(SelmaError, match=match):
        cls(1, 2, **kwargs)

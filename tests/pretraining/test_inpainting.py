import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.plans import fitting_patch
from nnunet_selma.nnunet.settings import InpaintingSettings
from nnunet_selma.pretraining.inpainting import MaskedInpainting, local_mean, masked_error, standardised
from nnunet_selma.pretraining.multitask import MultiTask
from nnunet_selma.pretraining.structure import StructureInpainting
from nnunet_selma.pretraining.views import gaussian_blur
from nnunet_selma.trainers.pretext_step import freeze_untrained
from tests.plans import ARCHITECTURES, network, plans
from tests.pretraining.tasks import task, unknown


def pretext(spacing=(1.0, 1.0, 1.0), **settings):
    return MaskedInpainting(task(nn.Identity(), patch=(16,) * len(spacing), spacing=spacing, inpainting=settings))


def loss_of(one, net, patches):
    return one(net, patches, unknown(patches))["inpainting"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_trains_the_network_of_every_plan(name):
    content = plans(name)
    _, spacing, strides, *_ = ARCHITECTURES[name]
    least = [math.prod(axis) for axis in zip(*strides, strict=True)]
    patch = fitting_patch(least, least)  # the smallest that the network takes
    net = network(content)
    one = pretext(spacing)
    freeze_untrained(net, one)
    loss = loss_of(one, net, torch.randn(1, 1, *patch))
    loss.backward()
    assert torch.isfinite(loss)
    trained = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {
        n for n, p in net.named_parameters() if p.requires_grad and not n.endswith("conv.bias")
    }  # instance norm takes the bias out
    assert wanted <= trained


def test_residual_encoders_train_too():
    net = network(plans("128×128×112", residual=True))
    loss_of(pretext(), net, torch.randn(1, 1, 32, 32, 32)).backward()
    assert next(net.encoder.parameters()).grad.abs().sum() > 0


def test_only_masked_voxels_count():
    target, prediction = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0, :] = True
    prediction[..., 1, :] = 100.0  # visible: free
    assert masked_error(prediction, target, mask) == 0
    prediction[..., 0, :2] = 2.0  # two of four masked voxels are off by 2
    assert masked_error(prediction, target, mask) == 2.0


def test_two_channels_are_averaged():
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    prediction = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])[None]
    assert masked_error(prediction, torch.zeros(1, 2, 2, 2), mask) == 0.5


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x, self.value)


def test_the_trivial_error_is_that_of_the_local_mean():
    ramp = torch.linspace(0, 1, 32).expand(2, 1, 32, 32, 32).clone()
    found = pretext(standardise=False).diagnostics(Constant(0.5), ramp)
    assert found["reconstruction_error"] == pytest.approx(1 / 12, rel=0.15)  # the variance of a uniform number
    assert found["trivial_error"] < found["reconstruction_error"] / 2  # the ramp is seen nearby
    noise = pretext().diagnostics(Constant(0.0), torch.randn(2, 1, 32, 32, 32))
    assert noise["trivial_error"] == pytest.approx(1.0, abs=0.05)


def test_the_local_mean_is_that_of_visible_voxels_nearby():
    patches = torch.zeros(1, 1, 40, 40)
    patches[..., 20:] = 10.0
    visible = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    visible[..., 5:8], visible[..., 30:33] = False, False
    mean = local_mean(patches, visible, reach=2.0)
    assert mean[0, 0, 20, 6] == pytest.approx(0.0, abs=1e-3)
    assert mean[0, 0, 20, 31] == pytest.approx(10.0, abs=1e-3)
    nothing = local_mean(patches, torch.zeros_like(visible), reach=2.0)
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("fill", ["zeros", "noise", "mean"])
def test_what_the_network_sees_in_masked_voxels_is_a_setting(fill):
    patches = torch.randn(2, 1, 16, 16, 16)
    visible, target, mask = pretext(fill=fill, standardise=True).draw_task(patches)
    hidden = visible[mask.expand_as(visible)]
    assert torch.equal(visible[~mask.expand_as(visible)], target[~mask.expand_as(visible)])
    assert (hidden.abs().max() < 1e-5) == (fill != "noise")  # standardised patches have the mean 0


def test_errors_of_residual_and_gradient():
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    target = torch.zeros(1, 1, 32, 32)
    offset, ramp = torch.ones(1, 1, 32, 32), 0.5 * torch.arange(32.0).expand(1, 1, 32, 32)
    for kind in ("residual", "gradient"):
        assert masked_error(offset, target, mask, kind=kind, spacing=(1.0, 1.0)) == pytest.approx(0.0, abs=1e-9)
    # a slope of 0.5 along one axis; the last column has no neighbour
    assert masked_error(ramp, target, mask, kind="gradient") == pytest.approx(0.25 * 31 / 32)
    noise = torch.randn(1, 1, 32, 32)
    sharp = noise - gaussian_blur(noise, torch.tensor([4.0]), (1.0, 1.0), 4.0)
    assert masked_error(noise, target, mask, kind="residual", spacing=(1.0, 1.0)) == pytest.approx(
        float(sharp.square().mean()), rel=1e-5
    )


def test_weights_are_shares_of_the_error():
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    prediction = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]])
    weight = torch.tensor([[[[3.0, 1.0], [1.0, 1.0]]]])
    assert masked_error(prediction, torch.zeros(1, 1, 2, 2), mask, weight=weight) == pytest.approx(4 * 3 / 6)


def test_standardised_patches_have_the_visible_mean_and_deviation():
    patches, visible = 7 + 3 * torch.randn(2, 2, 16, 16, 16), torch.rand(2, 1, 16, 16, 16) < 0.4
    result = standardised(patches, visible)
    for sample in range(2):
        for channel in range(2):
            seen = result[sample, channel][visible[sample, 0]]
            assert abs(float(seen.mean())) < 1e-5
            assert float(seen.std(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_brightness_and_contrast_of_a_patch_do_not_matter_when_standardised():
    patches, net = torch.randn(2, 1, 16, 16, 16), network(plans())
    first, second = (loss_of(pretext(standardise=True), net, one).item() for one in (patches, patches * 40 - 3))
    assert first == pytest.approx(second, rel=1e-4)
    first, second = (loss_of(pretext(standardise=False), net, one).item() for one in (patches, patches * 40 - 3))
    assert second > 100 * first


def test_camera_noise_is_not_magnified():
    assert standardised(1e-4 * torch.randn(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8, dtype=torch.bool)).std() < 0.01


def test_the_seed_decides_the_masks():
    task, patches = pretext(), torch.zeros(2, 1, 16, 16, 16)
    first, second = task.draw_mask(patches), task.draw_mask(patches)
    assert not torch.equal(first, second)
    task.reseed(0)
    assert torch.equal(task.draw_mask(patches), first)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"mask_ratio": 0}, "mask_ratio"), ({"mask_ratio": 1.0}, "mask_ratio"), ({"block_edges": ()}, "block_edges")],
)
def test_settings_that_mask_nothing_or_all_are_refused(settings, match):
    with pytest.raises(SelmaError, match=match):
        InpaintingSettings(**settings)


# --- ways to ask


def test_without_skips_everything_passes_through_the_coarsest_map():
    net = network(plans())
    one = MaskedInpainting(task(net, inpainting={"skips": False}))
    patches = torch.randn(1, 1, 16, 16, 16)
    mask = one.draw_mask(patches)
    maps = one.encode(net, patches, mask)
    assert [bool(features.any()) for features in maps] == [False, False, True]
    loss_of(one, net, patches).backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in net.encoder.named_parameters() if "weight" in name)
    # the maps, not the network, are changed
    assert torch.equal(net(patches), net.decoder(net.encoder(patches)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0)])
@pytest.mark.parametrize("edge", [4, 8, 16])
def test_aligned_blocks_are_whole_voxels_of_the_coarsest_map(spacing, edge):
    net = network(plans())
    one = MaskedInpainting(
        task(net, spacing=spacing, inpainting={"aligned": True, "block_edges": [edge], "mask_ratio": 0.5})
    )
    assert one.stride == [4, 4, 4]
    masks = one.draw_mask(torch.randn(8, 1, 16, 16, 16))
    coarse = functional.avg_pool3d(masks.float(), 4)
    assert ((coarse == 0) | (coarse == 1)).all()
    assert masks.float().mean(dim=(1, 2, 3, 4)).sub(0.5).abs().max() <= 0.25


def test_the_masked_share_rises_over_the_first_half_of_the_run():
    one = pretext(first_ratio=0.2, mask_ratio=0.6)
    shares = []
    for step in (0, 25, 50, 100):
        one.steps_done = step
        shares.append(one.ratio)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.6])
    one.steps_done = 0
    one.eval()
    assert one.ratio == 0.6


def test_visible_voxels_count_when_they_are_asked_for():
    target, prediction = torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
    mask = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    mask[..., 0] = True
    prediction[..., 0] = 3.0
    assert pretext(counted="masked").error(prediction, target, mask) == 9.0
    assert pretext().error(prediction, target, mask) == 3.0


def test_every_step_of_the_decoder_is_asked_and_taught():
    net = network(plans())
    one = MaskedInpainting(task(net, inpainting={"deep_supervision": True}))
    freeze_untrained(net, one)
    loss_of(one, net, torch.randn(1, 1, 16, 16, 16)).backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in net.decoder.seg_layers)
    assert net.decoder.deep_supervision is False
    plain = MaskedInpainting(task(net))
    freeze_untrained(net, plain)
    assert [head.weight.requires_grad for head in net.decoder.seg_layers] == [False, True]


@pytest.mark.parametrize("settings", [{"sparse": True}, {"skips": False}])
def test_networks_without_encoder_and_decoder_are_refused_with_a_sentence(settings):
    with pytest.raises(SelmaError, match="need a network of an encoder and a decoder, which Identity is not"):
        pretext(**settings)


def test_settings_that_make_no_sense_are_refused():
    for settings, sentence in (({"counted": "some"}, "counted"), ({"first_ratio": 1.5}, "first_ratio is 1.5")):
        with pytest.raises(SelmaError, match=sentence):
            InpaintingSettings(**settings)


@pytest.mark.parametrize("kind", [StructureInpainting, MultiTask])
def test_pretexts_whose_error_has_one_resolution_refuse_deep_supervision(kind):
    with pytest.raises(SelmaError, match=f"deep_supervision is not for {kind.__name__}"):
        kind(task(inpainting={"deep_supervision": True}))


def test_closed_skips_leave_no_parameter_without_a_gradient():
    net = network(plans())
    one = MaskedInpainting(task(net, inpainting={"skips": False, "sparse": True}))
    freeze_untrained(net, one)
    loss_of(one, net, torch.randn(1, 1, 16, 16, 16)).backward()
    trained = [*net.named_parameters(), *one.named_parameters()]
    assert [name for name, parameter in trained if parameter.requires_grad and parameter.grad is None] == []

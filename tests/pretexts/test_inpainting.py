import pytest
import torch
from torch import nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.pretexts.inpainting import MaskedInpainting, masked_error, standardised
from nnunet_selma.settings import InpaintingSettings
from tests.plans import ARCHITECTURES, network, plans


def pretext(spacing=(1.0, 1.0, 1.0), **settings):
    task = MaskedInpainting(InpaintingSettings(**settings), spacing, torch.device("cpu"))
    task.reseed(0)
    return task


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_trains_the_network_of_every_plan(name):
    content = plans(name)
    patch, spacing, *_ = ARCHITECTURES[name]
    net = network(content)
    loss = pretext(spacing)(net, torch.randn(1, 1, *patch))["inpainting"]
    loss.backward()
    assert torch.isfinite(loss)
    trained = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {
        n for n, p in net.named_parameters() if p.requires_grad and not n.endswith("conv.bias")
    }  # instance norm takes the bias out
    assert wanted <= trained


def test_residual_encoders_train_too():
    net = network(plans("128×128×112", residual=True))
    pretext()(net, torch.randn(1, 1, 32, 32, 32))["inpainting"].backward()
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


def test_the_trivial_error_is_that_of_the_visible_mean():
    constant = torch.full((2, 1, 16, 16, 16), 5.0)
    assert pretext(standardise=False).diagnostics(Constant(5.0), constant) == {
        "reconstruction_error": 0.0,
        "trivial_error": 0.0,
    }
    for task in (pretext(), pretext(standardise=False)):
        assert task.diagnostics(Constant(0.0), torch.randn(2, 1, 32, 32, 32))["trivial_error"] == pytest.approx(
            1.0, abs=0.05
        )


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
    first, second = (pretext()(net, one)["inpainting"].item() for one in (patches, patches * 40 - 3))
    assert first == pytest.approx(second, rel=1e-4)
    first, second = (pretext(standardise=False)(net, one)["inpainting"].item() for one in (patches, patches * 40 - 3))
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

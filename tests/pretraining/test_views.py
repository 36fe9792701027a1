import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_selma.nnunet.pretext_settings import ViewsSettings
from nnunet_selma.pretraining.views import change_contrast, crop_views, gaussian_blur, view


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.5)])
def test_the_blur_is_scipys(spacing, rng):
    patches = rng.normal(size=(2, 1, 14, 20, 18))
    deviation = [1.2, 0.5]
    found = gaussian_blur(torch.tensor(patches), torch.tensor(deviation), spacing, 1.2)
    for number, sigma in enumerate(deviation):
        along = [sigma / size for size in spacing]
        radius = [max(1, round(3 * 1.2 / size)) for size in spacing]
        expected = ndimage.gaussian_filter(patches[number, 0], along, mode="nearest", radius=radius)
        np.testing.assert_allclose(found[number, 0].numpy(), expected, atol=1e-6)


def test_the_blur_is_precise_in_mixed_precision_too(rng):
    patches = 1000 * torch.tensor(rng.normal(size=(2, 1, 14, 20, 18)), dtype=torch.float32)
    expected = gaussian_blur(patches, torch.tensor([1.2, 0.5]), (1.0, 1.0, 1.0), 1.2)
    with torch.autocast("cpu", dtype=torch.float16):
        found = gaussian_blur(patches, torch.tensor([1.2, 0.5]), (1.0, 1.0, 1.0), 1.2)
    assert torch.equal(found, expected)


def test_no_blur_changes_nothing(rng):
    patches = torch.tensor(rng.normal(size=(1, 1, 8, 9)))
    torch.testing.assert_close(gaussian_blur(patches, torch.zeros(1), (1.0, 1.0), 1.0), patches)


def test_contrast_and_gamma():
    patches = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1)
    bent = change_contrast(patches, torch.tensor([0.5]), torch.tensor([1.0]))
    torch.testing.assert_close(bent.flatten(), torch.tensor([0.0, 2.0, 4.0]))  # 4 × √(1 / 4)
    flat = change_contrast(patches, torch.tensor([1.0]), torch.tensor([0.0]))
    torch.testing.assert_close(flat.flatten(), torch.full((3,), 5 / 3))


@pytest.mark.parametrize("shape", [(12, 16, 20), (16, 20)])
def test_a_whole_crop_is_the_patch_or_its_mirror_image(shape, rng):
    patches = torch.tensor(rng.normal(size=(2, 1, *shape)), dtype=torch.float32)
    same = crop_views(patches, (1.0, 1.0), shape, generator(), mirror=False)
    torch.testing.assert_close(same, patches, atol=1e-4, rtol=1e-4)
    mirrored = crop_views(patches, (1.0, 1.0), shape, generator(), mirror=True)
    for one, other in zip(mirrored, patches, strict=True):
        torch.testing.assert_close(one.sort().values.sum(), other.sum(), atol=1e-2, rtol=1e-3)
        flips = [
            axes for n in range(2 ** len(shape)) if (axes := [a for a in range(len(shape)) if n >> a & 1]) or not n
        ]
        assert any(torch.allclose(one, torch.flip(other, [a + 1 for a in axes]), atol=1e-3) for axes in flips)


def test_a_crop_shows_a_part_at_the_size_asked_for():
    ramp = torch.linspace(0, 1, 40).expand(8, 1, 40, 40)
    crops = crop_views(ramp, (0.5, 0.5), (10, 10), generator(), mirror=False)
    assert crops.shape == (8, 1, 10, 10)
    spans = crops[:, 0, 0].amax(1) - crops[:, 0, 0].amin(1)
    torch.testing.assert_close(spans, torch.full((8,), 0.5 * 0.9), atol=0.06, rtol=0)
    assert crops[:, 0, 0, 0].std() > 0.05  # not always the same part
    assert float(crops.min()) >= 0
    assert float(crops.max()) <= 1


def test_every_setting_and_the_seed_change_a_view(rng):
    patches = torch.tensor(rng.normal(size=(2, 1, 12, 12, 12)), dtype=torch.float32)
    still = {
        "crop": (1.0, 1.0),
        "gamma": (1.0, 1.0),
        "contrast": (1.0, 1.0),
        "blur": (0.0, 0.0),
        "noise": 0.0,
        "mirror": False,
    }
    base = view(patches, ViewsSettings(**still), (1.0, 1.0, 1.0), generator())
    torch.testing.assert_close(base, patches, atol=1e-4, rtol=1e-4)
    for change in (
        {"crop": (0.5, 0.6)},
        {"gamma": (2.0, 2.0)},
        {"contrast": (2.0, 2.0)},
        {"blur": (1.0, 1.0)},
        {"noise": 0.5},
        {"mirror": True},
    ):
        assert not torch.allclose(
            view(patches, ViewsSettings(**{**still, **change}), (1.0, 1.0, 1.0), generator(3)), base, atol=1e-2
        ), change
    assert not torch.equal(*(view(patches, ViewsSettings(), (1.0, 1.0, 1.0), generator(seed)) for seed in (0, 1)))
    assert torch.equal(*(view(patches, ViewsSettings(), (1.0, 1.0, 1.0), generator(1)) for _ in range(2)))

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.pretraining.masking import block_shape, block_sums, draw_block_masks, fill_mask, moments
from tests.plans import ARCHITECTURES


def masks(patch=(32, 32, 32), *, ratio=0.6, edges=(4, 8), spacing=(1.0, 1.0, 1.0), seed=0, count=4, **more):
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    blocks = [block_shape(int(edge), patch, spacing) for edge in rng.choice(edges, size=count)]
    return draw_block_masks(patch, blocks, ratio=ratio, rng=rng, generator=generator, **more)


@pytest.mark.parametrize(
    ("edge", "patch", "spacing", "expected"),
    [
        (8, (64, 64, 64), (1, 1, 1), [8, 8, 8]),
        (8, (64, 64, 64), (4, 1, 1), [2, 8, 8]),
        (16, (32, 256, 256), (5.0, 0.54, 0.54), [2, 16, 16]),
        (16, (32, 32, 32), (1, 1, 1), [8, 8, 8]),  # never above a quarter of the patch
        (4, (8, 8), (9, 1), [1, 2]),
    ],
)
def test_block_shape(edge, patch, spacing, expected):
    assert block_shape(edge, patch, spacing) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masks_fit_every_plan_and_hide_about_the_ratio(name):
    patch, spacing, *_ = ARCHITECTURES[name]
    mask = masks(patch, spacing=spacing, edges=(4, 8, 16), count=3)
    assert mask.shape == (3, 1, *patch)
    assert mask.dtype == torch.bool
    assert all(0.4 < one.float().mean() < 0.8 for one in mask)


@given(st.floats(0.1, 0.9), st.integers(0, 1000))
def test_the_ratio_is_met_on_average(ratio, seed):
    share = masks((32, 32, 32), ratio=ratio, edges=(2,), seed=seed, count=8).float().mean()
    assert abs(share - ratio) < 0.05


def test_every_parameter_and_the_seed_change_the_masks():
    base = masks()
    assert torch.equal(base, masks())
    for change in ({"ratio": 0.3}, {"edges": (2, 3)}, {"spacing": (3.0, 1.0, 1.0)}, {"seed": 1}):
        assert not torch.equal(base, masks(**change)), change


def test_samples_of_a_batch_differ():
    one, two, *_ = masks()
    assert not torch.equal(one, two)


def test_blocks_are_blocks():
    """Along an axis the mask changes only at multiples of the edge, counted from the grid's offset."""
    mask = masks((32, 32, 32), edges=(4,), count=1)[0, 0]
    for axis in range(3):
        changes = torch.nonzero(mask.diff(dim=axis))[:, axis]
        assert len({int(c + 1) % 4 for c in changes}) == 1


@pytest.mark.parametrize("fill", ["zeros", "mean", "noise"])
def test_masked_voxels_are_filled_and_the_others_untouched(fill):
    patches, mask = 3 + 2 * torch.randn(4, 2, 32, 32, 32), masks()
    masked = fill_mask(patches, mask, fill, torch.Generator().manual_seed(0))
    hidden = mask.expand_as(patches)
    assert torch.equal(masked[~hidden], patches[~hidden])
    mean, deviation = {"zeros": (0, 0), "mean": (3, 0), "noise": (3, 2)}[fill]
    assert float(masked[hidden].mean()) == pytest.approx(mean, abs=0.05)
    assert float(masked[hidden].std()) == pytest.approx(deviation, abs=0.05)
    one = masked[0, 0][mask[0, 0]]
    assert (one.unique().numel() == 1) == (fill != "noise")


def test_moments_are_those_of_the_visible_voxels(rng):
    patches, visible = torch.tensor(rng.normal(size=(2, 3, 4, 5))), torch.tensor(rng.random((2, 1, 4, 5)) < 0.5)
    mean, deviation = moments(patches, visible)
    seen = patches[1, 2][visible[1, 0]].numpy()
    assert float(mean[1, 2]) == pytest.approx(seen.mean())
    assert float(deviation[1, 2]) == pytest.approx(seen.std())


def test_block_sums_are_over_what_lies_in_the_patch():
    values = torch.arange(30.0).reshape(5, 6)
    sums = block_sums(values, (2, 4), (3, 2), (1, 2))  # the first block hangs over by one row and two columns
    assert sums.shape == (3, 2)
    assert sums[0, 0] == values[:1, :2].sum()
    assert sums[1, 1] == values[1:3, 2:6].sum()
    assert sums[2, 0] == values[3:5, :2].sum()
    assert sums.sum() == values.sum()


@pytest.mark.parametrize(("preference", "share"), [(0.0, 1 / 2), (1.0, 4 / 5), (3.0, 64 / 65)])
def test_a_block_is_drawn_as_readily_as_its_response_says(preference, share):
    response = torch.ones(1500, 16, 16)
    response[:, :, :8] = 4.0
    drawn = {"rng": np.random.default_rng(0), "generator": torch.Generator().manual_seed(0)}
    # one block each, whole or, with an offset, cut by the border between the halves or of the patch
    mask = draw_block_masks((16, 16), [(2, 2)] * 1500, ratio=1e-4, response=response, preference=preference, **drawn)
    left = mask[..., 2:6].sum() / (mask[..., 2:6].sum() + mask[..., 10:14].sum())
    assert float(left) == pytest.approx(share, abs=0.04)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.masking import apply_mask, block_shape, draw_block_masks
from tests.plans import ARCHITECTURES


def masks(patch=(32, 32, 32), *, ratio=0.6, edges=(4, 8), spacing=(1.0, 1.0, 1.0), seed=0, count=4):
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    return draw_block_masks(count, patch, ratio=ratio, edges=edges, spacing=spacing, rng=rng, generator=generator)


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


def test_masked_voxels_are_zero_and_the_others_untouched():
    patches, mask = torch.randn(4, 2, 32, 32, 32), masks()
    masked = apply_mask(patches, mask)
    assert (masked[mask.expand_as(patches)] == 0).all()
    assert torch.equal(masked[~mask.expand_as(patches)], patches[~mask.expand_as(patches)])

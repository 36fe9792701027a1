"""Intensities of slabs that are joined are those of the whole array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.intensities import Intensities, configured_normalisation, join_parts

PROPERTIES = {"mean": 7.0, "std": 3.0, "percentile_00_5": 2.0, "percentile_99_5": 14.0}
volumes = arrays(
    np.uint16, st.tuples(st.integers(1, 2), *[st.integers(1, 6)] * 3), elements=st.sampled_from([0, 0, 0, 1, 5, 9, 300])
)


def in_parts(voxels, z, y):
    """Cut along z, and each slab along y."""
    slabs = [part for part in np.split(voxels, [z], axis=1) if part.shape[1]]
    rows = [[strip for strip in np.split(slab, [y], axis=2) if strip.shape[2]] for slab in slabs]
    return join_parts((join_parts(map(Intensities.measure, strips), axis=1) for strips in rows), axis=0)


def assert_moments(intensities, cropped):
    for moments, channel in zip(intensities.moments_within(intensities.box), cropped, strict=True):
        assert moments.count == channel.size
        assert moments.mean == pytest.approx(channel.mean(dtype=float), rel=1e-12)
        assert moments.standard_deviation == pytest.approx(channel.std(dtype=float), rel=1e-9)


@given(voxels=volumes, z=st.integers(0, 6), y=st.integers(0, 6))
def test_joined_parts_have_the_intensities_of_the_whole(voxels, z, y):
    joined = in_parts(voxels, z, y)
    if not voxels.any():
        assert joined.box is None
        return
    cropped, _, box = crop_to_nonzero(voxels)
    assert [[b.start, b.stop] for b in joined.box] == [list(map(int, bounds)) for bounds in box]
    assert_moments(joined, cropped)
    for axis in range(3):
        low, high = joined.limits(joined.box, axis)
        others = tuple(a + 1 for a in range(3) if a != axis)
        assert np.array_equal(low, cropped.min(axis=others))
        assert np.array_equal(high, cropped.max(axis=others))


@given(voxels=volumes, z=st.integers(0, 6))
def test_a_slab_is_read_from_its_file(voxels, z):
    joined = in_parts(voxels, z, 3)
    if joined.box is None:
        return
    cropped, _, _ = crop_to_nonzero(voxels)
    assert_moments(Intensities.from_arrays(joined.as_arrays()), cropped)


@pytest.mark.parametrize(
    "name",
    ["ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"],
)
@given(voxels=volumes.filter(lambda v: v.any() and v.max() < 256), z=st.integers(0, 6))
def test_normalised_as_nnunet_does(name, voxels, z):
    joined = in_parts(voxels, z, 3)
    channels = len(voxels)
    normalisation = configured_normalisation(
        {"normalization_schemes": [name] * channels, "use_mask_for_norm": [False] * channels},
        {str(i): PROPERTIES for i in range(channels)},
        joined,
    )
    cropped, _, _ = crop_to_nonzero(voxels.astype(np.float32))
    scheme = getattr(schemes, name)(use_mask_for_norm=False, intensityproperties=PROPERTIES)
    expected = np.stack([scheme.run(channel.copy()) for channel in cropped])
    np.testing.assert_allclose(normalisation.apply(voxels[(slice(None), *joined.box)]), expected, rtol=2e-5, atol=2e-5)


def test_what_one_pass_cannot_say_is_refused():
    voxels = np.ones((1, 4, 4, 4), np.uint16)
    settings = {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]}
    assert configured_normalisation(settings, {"0": PROPERTIES}, Intensities.measure(voxels)).offset == 1
    voxels[0, 1, 1, 1] = 0
    with pytest.raises(SelmaError, match="use_mask_for_norm"):
        configured_normalisation(settings, {"0": PROPERTIES}, Intensities.measure(voxels))
    with pytest.raises(SelmaError, match="OwnScheme"):
        configured_normalisation(
            {**settings, "normalization_schemes": ["OwnScheme"]}, {"0": PROPERTIES}, Intensities.measure(voxels)
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_an_error(bad):
    voxels = np.ones((1, 2, 2, 2), np.float32)
    voxels[0, 1, 1, 1] = bad
    with pytest.raises(ValueError, match="NaN"):
        Intensities.measure(voxels)

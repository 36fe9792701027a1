"""A box of a resampled volume is that box of nnU-Net's resampled volume, bit by bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.resampling import Limits, configured_resampling

OPTIONS = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def configuration(order, function="resample_data_or_seg_to_shape"):
    return {"resampling_fn_data": function, "resampling_fn_data_kwargs": {**OPTIONS, "order": order}}


lengths = st.tuples(*[st.integers(3, 40)] * 3)
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 6.0])] * 3)


@settings(max_examples=40)
@given(before=lengths, after=lengths, spacing=spacings, target=spacings, order=st.sampled_from([1, 3]), data=st.data())
def test_a_box_is_that_box_of_the_whole(before, after, spacing, target, order, data):
    rng = np.random.default_rng(0)
    voxels = rng.normal(size=(2, *before)).astype(np.float16 if order == 1 else np.float32)
    whole = resample_data_or_seg_to_shape(voxels, after, spacing, target, **{**OPTIONS, "order": order})
    own = configured_resampling(configuration(order), "data", before, after, spacing, target)
    box = []
    for length in after:
        start = data.draw(st.integers(0, length - 1))
        box.append(slice(start, data.draw(st.integers(start + 1, length))))
    axes = (1, 2, 3) if own.across is None else tuple(axis + 1 for axis in range(3) if axis != own.across)
    shape = (2, -1)
    limits = Limits(voxels.min(axes).reshape(shape).astype(float), voxels.max(axes).reshape(shape).astype(float))
    found = own.apply(voxels[(slice(None), *own.needed(tuple(box)))], tuple(box), limits)
    assert found.dtype == whole.dtype
    shared = own.apply(voxels[(slice(None), *own.needed(tuple(box)))], tuple(box), limits, threads=3)
    np.testing.assert_array_equal(found, shared)
    np.testing.assert_allclose(found, whole[(slice(None), *box)], rtol=0, atol=0 if order == 1 else 1e-6)


@pytest.mark.parametrize("factor", [6 / 5, 4 / 3, 3 / 2, 2, 3])
@pytest.mark.parametrize("spacing", [1.0, 6.0])
def test_half_precision_ties_are_rounded_as_scipy_does(factor, spacing):
    """Neighbours that differ by one unit in the last place, at weights of sixths and quarters: every other value is a tie."""
    before = (12, 40, 42)
    after = tuple(round(n * factor) for n in before)
    steps = np.random.default_rng(1).integers(0, 4, (1, *before))
    voxels = (np.float16(1.0) + steps * np.finfo(np.float16).eps).astype(np.float16)
    spacings = (spacing, 1.0, 1.0), (spacing / factor, 1 / factor, 1 / factor)
    whole = resample_data_or_seg_to_shape(voxels, after, *spacings, **{**OPTIONS, "order": 1})
    box = (slice(1, after[0] - 1), slice(5, after[1]), slice(0, after[2] - 3))
    resampling = configured_resampling(configuration(1), "data", before, after, *spacings)
    resampled = resampling.apply(voxels[(slice(None), *resampling.needed(box))], box)
    np.testing.assert_array_equal(resampled, whole[(slice(None), *box)])


@given(before=lengths, after=lengths, spacing=spacings, target=spacings, data=st.data())
def test_what_is_reached_depends_on_the_box(before, after, spacing, target, data):
    own = configured_resampling(configuration(1), "data", before, after, spacing, target)
    place = tuple(data.draw(st.integers(0, length - 1)) for length in before)
    reached = own.reached(tuple(slice(i, i + 1) for i in place))
    voxels = np.zeros((1, *before))
    voxels[(0, *place)] = 1.0
    changed = np.argwhere(own.apply(voxels, tuple(slice(0, n) for n in after))[0])
    for corner in changed:
        assert all(bounds.start <= i < bounds.stop for bounds, i in zip(reached, corner, strict=True))


def test_a_function_that_is_not_known_is_refused_where_it_would_do_something():
    with pytest.raises(SelmaError, match="resample_torch_simple"):
        configured_resampling(
            configuration(1, "resample_torch_simple"), "data", (4, 4, 4), (5, 5, 5), (1, 1, 1), (1, 1, 1)
        )
    same = configured_resampling(
        configuration(1, "resample_torch_simple"), "data", (4, 4, 4), (4, 4, 4), (1, 1, 1), (1, 1, 1)
    )
    assert not same.changes

"""Masks for property tests."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def masks(draw, longest=7, copies=1):
    """One or several random masks of one small shape, from empty to full; rows may be longer than a 64-bit word."""
    shape = draw(st.tuples(*[st.integers(1, longest)] * 2, st.one_of(st.integers(1, longest), st.integers(60, 70))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = st.sampled_from([0.0, 0.03, 0.15, 0.3, 0.5, 0.7, 0.9, 1.0])
    drawn = tuple(rng.random(shape) < draw(density) for _ in range(copies))
    return drawn if copies > 1 else drawn[0]


@st.composite
def similar_masks(draw, longest=12):
    """A mask of blobs, and a copy of it with some voxels turned over: what a prediction and its truth look like."""
    shape = draw(st.tuples(*[st.integers(2, longest)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.random(shape) < draw(st.sampled_from([0.05, 0.2, 0.4]))
    if draw(st.booleans()):
        truth = np.repeat(np.repeat(np.repeat(truth, 2, 0), 2, 1), 2, 2)[: shape[0], : shape[1], : shape[2]]
    return truth ^ (rng.random(truth.shape) < draw(st.sampled_from([0.0, 0.02, 0.1, 0.3]))), truth


edges = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 5, 8, 33, 80]))
"""Edges of blocks."""

"""Slabs aligned to chunks, and copies of what is ill-chunked: decodings are counted voxel by voxel."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.slabs import choose_slab, copy_layout, decodings, is_ill_chunked, largest_divisor

lengths = st.tuples(*[st.integers(1, 12)] * 3)


def volume(shape, chunk=None, *, plane_wise=False, read_whole=False):
    return SimpleNamespace(
        path="brain", shape=shape, chunk_zyx=chunk, plane_wise=plane_wise, read_whole=read_whole, dtype=np.dtype("u2")
    )


@given(shape=lengths, chunk=lengths, box=lengths, halo=st.tuples(*[st.integers(0, 3)] * 3))
def test_decodings_are_those_that_are_counted(shape, chunk, box, halo):
    count = np.zeros(shape, int)
    for corner in itertools.product(*(range(0, n, edge) for n, edge in zip(shape, box, strict=True))):
        bounds = [(max(0, a - h), min(a + e + h, n)) for a, e, h, n in zip(corner, box, halo, shape, strict=True)]
        count[tuple(slice(a // c * c, -(-b // c) * c) for (a, b), c in zip(bounds, chunk, strict=True))] += 1
    assert decodings(shape, chunk, box, halo) == pytest.approx(count.mean())


@pytest.mark.parametrize(
    ("chunk", "ill"),
    [
        ((1, 512, 512), True),
        ((192, 1, 512), True),
        ((192, 512, 1), True),
        ((192, 512, 512), True),
        ((64, 64, 64), False),
        ((32, 128, 128), False),
        (None, False),
    ],
)
def test_what_blocks_would_decode_again_and_again(chunk, ill):
    assert is_ill_chunked([volume((192, 512, 512), chunk)], (128,) * 3, (32,) * 3, 64) == ill


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize(
    "chunk",
    [
        (1, 600, 600),
        (400, 1, 600),
        (400, 600, 600),
        (64, 64, 64),
        (100, 50, 600),
        (48, 600, 600),
        (7, 600, 600),
        (128, 128, 128),
    ],
)
def test_slabs_decode_chunks_once(chunk, copied):
    shape = (400, 600, 600)
    slab = choose_slab([volume(shape, chunk)], 2, 16.0, copied=copied)
    assert decodings(shape, chunk, (*slab, 600)) <= 1.3


def test_slices_are_read_whole_and_fewer_where_memory_is_short():
    shape = (400, 4000, 4000)
    assert choose_slab([volume(shape, plane_wise=True)], 2, 16.0, copied=True) == (64, 4000)
    assert choose_slab([volume(shape, plane_wise=True)], 2, 3.0, copied=True) == (8, 4000)
    assert choose_slab([volume(shape)], 2, 2.0, copied=False) == (64, 256)
    with pytest.raises(SelmaError, match="one slice of all channels"):
        choose_slab([volume((10, 50_000, 50_000), plane_wise=True)], 2, 3.0, copied=True)
    with pytest.raises(SelmaError, match="cannot be read in part"):
        choose_slab([volume(shape, read_whole=True)], 2, 3.0, copied=True)


@given(
    shape=st.tuples(*[st.integers(1, 3000)] * 3),
    slab=st.integers(1, 1500),
    rows=st.sampled_from([16, 64, 512, 3000]),
    chunk=st.sampled_from([32, 64, 128]),
)
def test_slabs_of_a_copy_are_whole_shards_of_whole_chunks(shape, slab, rows, chunk):
    depth, height, _ = shape
    rows = min(rows, height) if rows >= height else rows
    shard, chunks = copy_layout(shape, slab, rows, chunk)
    assert all(s % c == 0 for s, c in zip(shard, chunks, strict=True))
    assert slab % shard[0] == 0 or slab >= depth
    assert rows % shard[1] == 0 or rows >= height
    assert max(chunks) <= 128


@given(number=st.integers(1, 300), most=st.integers(1, 300))
def test_the_largest_divisor(number, most):
    assert largest_divisor(number, most) == max(d for d in range(1, most + 1) if number % d == 0)

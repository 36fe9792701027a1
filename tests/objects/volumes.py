"""Labels, images and files for the tests of objects."""

import numpy as np
import pytest
import tifffile
from hypothesis import strategies as st

from nnunet_selma.morphology.blocks import blocks
from nnunet_selma.objects.measuring import MeasuredComponents
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, create_labels, write_box

SPACING = (4.0, 1.5, 2.0)


@st.composite
def labels(draw, longest=9):
    """Small labels of up to two classes, from empty to full."""
    shape = draw(st.tuples(*[st.integers(1, longest)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))
    classes = draw(st.integers(1, 2))
    return ((rng.random(shape) < density) * rng.integers(1, classes, shape, endpoint=True)).astype(np.uint8)


def blobs(rng, shape=(30, 40, 50), classes=2):
    """Labels of balls, some of which touch each other and the border."""
    drawn, at = np.zeros(shape, np.uint8), np.indices(shape)
    for number in range(30):
        centre, radius = [rng.integers(0, n) for n in shape], rng.uniform(1, 5)
        inside = sum((axis - c) ** 2 for axis, c in zip(at, centre, strict=True)) <= radius**2
        drawn[inside] = 1 + number % classes
    return drawn


def measured(values, edge, raw=None, connectivity=26):
    """Objects of an array, measured in blocks."""
    components = MeasuredComponents(connectivity)
    for block in blocks(values.shape, edge):
        components.add(block, values[block.box], None if raw is None else raw[block.box])
    return components.finish()


def write_slices(folder, voxels):
    folder.mkdir()
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / f"s_{z}.tif", plane, compression="zlib")
    return folder


def write_ome_zarr(path, raw=None, channels=(), **labels):
    """An OME-Zarr image, if there is one, and label images."""
    if raw is not None:
        write_image(path, raw, channels=channels)
    for name, values in labels.items():
        write_image(path / "labels" / name, values, label_colours={1: ("cell", (255, 0, 0, 255))})
        create_labels(path, [name], "0.5")
    return path


def write_image(path, voxels, **options):
    pytest.importorskip("ome_zarr_models", reason="OME-Zarr is written with Python 3.11")
    chunk = (16, 16, 16)
    layout = ImageLayout(
        shape=voxels.shape[-3:],
        dtype=voxels.dtype,
        spacing_um_zyx=SPACING,
        shard_zyx=chunk,
        chunk_zyx=chunk,
        reduction="nearest",
        name="image",
        **options,
    )
    create_image(path, layout)
    for block in blocks(layout.shape, chunk):
        own = tuple(slice(a, b) for a, b in zip(block.start, block.stop, strict=True))
        write_box(path, block.start, voxels[(..., *own)])
    return path

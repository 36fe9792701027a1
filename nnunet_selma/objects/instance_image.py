"""A label image with the number of its object at every voxel, written block by block.

This is a second pass over the same blocks: labelling a block gives the same components as the first time, and the first pass says which
object each belongs to. Memory: a block, and 8 bytes for each object of each block.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Block, Read, blocks
from nnunet_selma.morphology.components import Connectivity, label
from nnunet_selma.running.progress import Progress
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume, by_times
from nnunet_selma.volumes.segmented import has_image, is_label_image, levels

_MOST_CHUNK = 64  # voxels


@dataclass(frozen=True, kw_only=True)
class InstanceImage:
    """The image to write, and the blocks in which the components were found."""

    path: Path
    shape: ShapeZYX
    edge: ShapeZYX
    """Shape of the blocks, voxels."""
    spacing_um_zyx: SpacingUm | None
    like: Volume
    """The volume that it lies on."""
    connectivity: Connectivity

    @property
    def staging(self) -> Path:
        """Hidden folder that holds the image until it is complete."""
        return self.path.parent / f".{self.path.name}.partial"

    @property
    def image(self) -> Path | None:
        """The OME-Zarr image that it belongs to; None unless its folder is the `labels` of one."""
        return self.path.parent.parent if self.path.parent.name == "labels" else None


def check_free(path: Path, sources: Sequence[Path], shape: ShapeZYX, *, overwrite: bool) -> None:
    """Check that instances can be written at a path.

    Raises:
        SelmaError: something exists there and must not be replaced, the image around it has other voxels, or a library is missing.
    """
    from nnunet_selma.volumes.ome_zarr import zarr_library
    from nnunet_selma.volumes.ome_zarr_writing import image_version

    zarr_library()
    if find_spec("ome_zarr_models") is None:
        raise SelmaError("writing OME-Zarr needs ome-zarr-models; install it with: pip install 'nnunet-selma[brains]'")
    if any(source.resolve().is_relative_to(path.resolve()) for source in sources):
        raise SelmaError(f"{path}: is what is measured, and would be lost; choose another name for the instances")
    if path.exists() and not overwrite:
        raise SelmaError(f"{path} exists already; remove it, choose another name, or replace it with --overwrite")
    if path.exists() and not is_label_image(path):
        raise SelmaError(f"{path}: is no label image, and is not replaced; remove it, or choose another name")
    if path.parent.name == "labels" and image_version(path.parent.parent) is None:
        raise SelmaError(f"{path.parent.parent}: is no OME-Zarr, in whose labels {path.name} could be written")
    if path.parent.name == "labels" and has_image(path.parent.parent):
        resolutions = [volume.shape for volume in levels(path.parent.parent, 0)]
        if shape not in resolutions:
            raise SelmaError(
                f"{path.parent.parent}: has {by_times(resolutions[0])} voxels (z, y, x) and the labels {by_times(shape)}; "
                "write the instances elsewhere"
            )
    if path.parent.name != "labels" and not path.parent.is_dir():
        raise SelmaError(f"{path.parent}: there is no such folder; make it first")


def write_instances(
    target: InstanceImage,
    read: Read,
    ids: NDArray[np.int64],
    progress: Progress[Any],
    draw: Callable[[Block, Array], None] = lambda _block, _core: None,
) -> None:
    """Write the image under a hidden name, with all its resolutions, and rename it; an earlier image is replaced.

    Args:
        target: the image.
        read: reader of boxes of the labels.
        ids: number of the object of each component of each block, in the order of blocks; 0 for objects that are left out.
        progress: shows the blocks.
        draw: called with each block and the numbers in its core, to write those of objects that are no whole components.
    """
    from nnunet_selma.volumes.ome_zarr_writing import (
        ImageLayout,
        create_image,
        create_labels,
        fill_pyramid,
        image_version,
        place_like,
        write_box,
    )

    dtype = np.dtype(np.uint32 if ids.max(initial=0) < 2**32 else np.uint64)
    version = (image_version(target.image) if target.image else None) or "0.5"
    shard, chunk = _shard_and_chunk(target.edge, target.shape)
    layout = ImageLayout(
        shape=target.shape,
        dtype=dtype,
        spacing_um_zyx=target.spacing_um_zyx,
        shard_zyx=shard,
        chunk_zyx=chunk,
        reduction="any",
        name=target.path.name.removesuffix(".zarr").removesuffix(".ome"),
        label_colours={},
        version=version,
        **place_like(target.like),
    )
    shutil.rmtree(target.staging, ignore_errors=True)
    try:
        create_image(target.staging, layout)
        numbers, offset = np.concatenate([[0], ids]).astype(dtype), 0
        for block in progress(list(blocks(target.shape, target.edge)), "instances"):
            labels, n = label(read(*block.box), target.connectivity)
            block_numbers = np.concatenate([numbers[:1], numbers[offset + 1 : offset + 1 + n]])
            offset += n
            core = block_numbers[labels[block.core]]
            draw(block, core)
            if core.any():  # boxes that are not written read as 0
                write_box(target.staging, block.start, core)
        fill_pyramid(target.staging, progress)
        _rename(target.staging, target.path)
    finally:
        shutil.rmtree(target.staging, ignore_errors=True)
    if target.image is not None:
        create_labels(target.image, [target.path.name], version)


def _rename(staging: Path, path: Path) -> None:
    """Rename a folder; an earlier folder of that name is deleted afterwards."""
    before = path.parent / f".{path.name}.before"
    shutil.rmtree(before, ignore_errors=True)  # of a process that was killed here
    if path.exists():
        os.replace(path, before)
    os.replace(staging, path)
    shutil.rmtree(before, ignore_errors=True)


def _shard_and_chunk(edge: ShapeZYX, shape: ShapeZYX) -> tuple[ShapeZYX, ShapeZYX]:
    """Shapes of shards and chunks, voxels (z, y, x), so that each block is written alone.

    Chunks are as large as possible, up to 64 voxels along an axis, and fill a block without remainder. Along axes on which one block spans the
    volume, the remainder does not matter.
    """
    shard, chunk = [], []
    for length, whole in zip(edge, shape, strict=True):
        if length >= whole:
            parts = -(-length // _MOST_CHUNK)
            edge_of_chunk = -(-length // parts)
        else:
            parts = next(n for n in range(1, length + 1) if length % n == 0 and length // n <= _MOST_CHUNK)
            edge_of_chunk = length // parts
        shard.append(edge_of_chunk * parts)
        chunk.append(edge_of_chunk)
    return (shard[0], shard[1], shard[2]), (chunk[0], chunk[1], chunk[2])

"""The number of its object at every voxel, written block by block as a label image.

A second pass over the same blocks: labelling a block gives the same components again, and each is looked up in what it has become. Memory:
a block, and 8 bytes for each object in each block.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Block, Read
from nnunet_selma.morphology.components import Connectivity, label
from nnunet_selma.running.progress import Progress
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX
from nnunet_selma.volumes.segmented import has_image, is_label_image, levels

_MOST_CHUNK = 64  # voxels


@dataclass(frozen=True, kw_only=True)
class InstanceImage:
    """Where the numbers go, and what the blocks were."""

    path: Path
    shape: ShapeZYX
    edge: ShapeZYX
    """Shape of the blocks."""
    spacing_um_zyx: SpacingUm | None
    connectivity: Connectivity

    @property
    def staging(self) -> Path:
        """Where the image lies until it is complete."""
        return self.path.parent / f".{self.path.name}.partial"

    @property
    def image(self) -> Path | None:
        """The OME-Zarr image whose label image it becomes, if it lies in its `labels`."""
        return self.path.parent.parent if self.path.parent.name == "labels" else None


def check_free(path: Path, sources: Sequence[Path], shape: ShapeZYX, *, overwrite: bool) -> None:
    """Raise `SelmaError` if an image cannot be written there.

    Something lies there that is not to be replaced, the image it would belong to has other voxels, or a library is missing.
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
                f"{path.parent.parent}: has {' × '.join(map(str, resolutions[0]))} voxels (z, y, x) and the labels {' × '.join(map(str, shape))}; "
                "write the instances elsewhere"
            )
    if path.parent.name != "labels" and not path.parent.is_dir():
        raise SelmaError(f"{path.parent}: there is no such folder; make it first")


def write_instances(
    target: InstanceImage, read: Read, parts: Sequence[Block], ids: NDArray[np.int64], progress: Progress[Any]
) -> None:
    """Write the image under a hidden name, with all its resolutions, and rename it; what was there is replaced.

    Args:
        target: the image.
        read: gives boxes of the labels.
        parts: the blocks, in the order in which the components were found.
        ids: number, 0 for none, of each component of each block, in that order.
        progress: shows the blocks.
    """
    from nnunet_selma.volumes.ome_zarr_writing import (
        ImageLayout,
        create_image,
        create_labels,
        fill_pyramid,
        image_version,
        write_box,
    )

    dtype = np.dtype(np.uint32 if ids.max(initial=0) < 2**32 else np.uint64)
    version = (image_version(target.image) if target.image else None) or "0.5"
    shard, chunk = _stored_in(target.edge, target.shape)
    layout = ImageLayout(
        shape=target.shape,
        dtype=dtype,
        spacing_um_zyx=target.spacing_um_zyx,
        shard_zyx=shard,
        chunk_zyx=chunk,
        reduction="nearest",
        name=target.path.name.removesuffix(".zarr").removesuffix(".ome"),
        label_colours={},
        version=version,
    )
    shutil.rmtree(target.staging, ignore_errors=True)
    try:
        create_image(target.staging, layout)
        numbers, offset = np.concatenate([[0], ids]).astype(dtype), 0
        for block in progress(parts, "instances"):
            labels, n = label(read(*block.box), target.connectivity)
            of_block = np.concatenate([numbers[:1], numbers[offset + 1 : offset + 1 + n]])
            offset += n
            if of_block.any():  # what is not written reads as 0
                write_box(target.staging, block.start, of_block[labels[block.own]])
        fill_pyramid(target.staging, progress)
        _put(target.staging, target.path)
    finally:
        shutil.rmtree(target.staging, ignore_errors=True)
    if target.image is not None:
        create_labels(target.image, [target.path.name], version)


def _put(staging: Path, path: Path) -> None:
    """Give a folder its name; another one of that name goes when the new one is there."""
    before = path.parent / f".{path.name}.before"
    shutil.rmtree(before, ignore_errors=True)  # of a process that was killed here
    if path.exists():
        os.replace(path, before)
    os.replace(staging, path)
    shutil.rmtree(before, ignore_errors=True)


def _stored_in(edge: ShapeZYX, shape: ShapeZYX) -> tuple[ShapeZYX, ShapeZYX]:
    """Shards and chunks, voxels (z, y, x), for blocks that are written by themselves.

    A chunk is what a reader reads whole: the largest that fills a block without rest, up to 64 voxels along an axis. Where the block is as long as
    the volume, the rest does not matter.
    """
    shard, chunk = [], []
    for length, whole in zip(edge, shape, strict=True):
        if length >= whole:
            parts = -(-length // _MOST_CHUNK)
            one = -(-length // parts)
        else:
            parts = next(n for n in range(1, length + 1) if length % n == 0 and length // n <= _MOST_CHUNK)
            one = length // parts
        shard.append(one * parts)
        chunk.append(one)
    return (shard[0], shard[1], shard[2]), (chunk[0], chunk[1], chunk[2])

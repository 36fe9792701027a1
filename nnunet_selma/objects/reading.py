"""Labels and the raw image they belong to: where they lie, and how they are read block by block.

A volume of slices is read as slabs of whole slices: those read last are kept, so that blocks side by side read each slice once. Together
they are 256 MB, or nine slices, whichever is more, and twice that while a file of many slices is read. A volume in chunks is read in blocks
of about 256³ voxels made of whole chunks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Read
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import Array, ShapeZYX, check_finite
from nnunet_selma.volumes.labels import label_values
from nnunet_selma.volumes.segmented import class_names, has_image, label_image, levels

SLAB_BYTES = 2**28
"""Slices of one volume that are kept in memory together."""
BLOCK_VOXELS = 2**24
"""Voxels of a block: 256³."""
_LEAST_SLICES = (
    8  # in a slab, however large they are: of thinner ones each object would be counted many times, and joined
)
_MOST_SLICES = 256
_CHUNK = (64, 64, 64)  # where a volume has none


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The volume that is measured, with its image if there is one."""

    labels: Volume
    raw: Volume | None
    """The image whose intensities are measured, of the labels' shape."""
    spacing_um_zyx: SpacingUm | None
    """Voxel size in the files: that of the labels, or else of the image."""
    classes: Mapping[int, str]
    """Label to its name, as far as the file says."""

    @property
    def paths(self) -> list[Path]:
        """Paths of the files that are read."""
        return [volume.path for volume in (self.labels, self.raw) if volume is not None]

    @property
    def edge(self) -> ShapeZYX:
        """Shape of the blocks that are read, voxels."""
        volumes = [self.labels] if self.raw is None else [self.labels, self.raw]
        return block_edge(volumes)

    @property
    def read_labels(self) -> Read:
        """Gives boxes of the labels, as unsigned integers."""
        return as_labels(slices_kept(self.labels), self.labels.path)

    @property
    def read_raw(self) -> Read | None:
        """Gives boxes of the image."""
        return None if self.raw is None else _finite(slices_kept(self.raw), self.raw.path)


def open_sources(
    labels: Path, *, name: str | None, raw: Path | None, without_raw: bool, channel: int | None
) -> Sources:
    """Open labels and their image; reads no voxels.

    Args:
        labels: any volume; of an OME-Zarr image with label images, one of these is taken.
        name: which label image of an OME-Zarr.
        raw: the image; without it that of the OME-Zarr, if the labels lie in one.
        without_raw: open no image at all.
        channel: of the image.

    Raises:
        SelmaError: nothing there, no such label image, or labels and image differ in shape.
    """
    inside = label_image(labels, name)
    place = (inside or labels).resolve()
    around = place.parent.parent
    if raw is None and place.parent.name == "labels" and has_image(around):
        raw = around
    volume = open_volume(place)
    resolutions = () if raw is None or without_raw else levels(raw, channel)
    image = next((one for one in resolutions if one.shape == volume.shape), resolutions[0] if resolutions else None)
    if image is not None and image.shape != volume.shape:
        raise SelmaError(
            f"{image.path}: has {_text(image.shape)} voxels (z, y, x), the labels {volume.path} have {_text(volume.shape)}; "
            "give the image that was segmented, at the same resolution, with --raw, or no intensities with --raw none"
        )
    spacing = volume.spacing_um_zyx or (image.spacing_um_zyx if image is not None else None)
    return Sources(labels=volume, raw=image, spacing_um_zyx=spacing, classes=class_names(place))


def _text(shape: ShapeZYX) -> str:
    return " × ".join(map(str, shape))


def block_edge(volumes: Sequence[Volume]) -> ShapeZYX:
    """Edges of blocks, voxels (z, y, x), in which all these volumes of one shape are read at little cost.

    At most `BLOCK_VOXELS` a block. If one of the volumes is made of slices, a block is as deep as its slab, in a power of two, and at
    least eight slices; else it is grown from the chunk of the first by doubling its shortest edge.
    """
    shape = volumes[0].shape
    slices = [volume for volume in volumes if volume.plane_wise]
    if slices:
        depth = min(_slices_kept(volume) for volume in slices) - 1  # a block reads one slice of the next
        z = _power_of_two(min(depth, _MOST_SLICES, 2 * shape[0]))
        side = _power_of_two(isqrt(BLOCK_VOXELS // z))
        return z, side, side
    edge = list(volumes[0].chunk_zyx or _CHUNK)
    while prod(edge) > BLOCK_VOXELS:
        longest = edge.index(max(edge))
        edge[longest] = -(-edge[longest] // 2)
    while 2 * prod(edge) <= BLOCK_VOXELS:
        open_axes = [axis for axis in range(3) if edge[axis] < shape[axis]]
        if not open_axes:
            break
        edge[min(open_axes, key=lambda axis: edge[axis])] *= 2
    return edge[0], edge[1], edge[2]


def _power_of_two(number: int) -> int:
    """The largest that is no more."""
    return 1 << (max(1, number).bit_length() - 1)


def _slices_kept(volume: Volume) -> int:
    plane = volume.shape[1] * volume.shape[2] * volume.dtype.itemsize
    return max(_LEAST_SLICES + 1, SLAB_BYTES // max(1, plane))


def slices_kept(volume: Volume) -> Read:
    """How to read boxes of a volume: as they are, or cut from slices that are kept, where whole slices are the cheap way."""
    return _KeptSlices(volume) if volume.plane_wise else volume.read


class _KeptSlices:
    """Reads boxes of a volume, and keeps the slices that were asked for last."""

    def __init__(self, volume: Volume) -> None:
        self._volume, self._most = volume, _slices_kept(volume)
        self._kept: dict[int, Array] = {}  # the one that was asked for longest ago stands first

    def __call__(self, z: slice, y: slice, x: slice) -> Array:
        box = np.empty([b.stop - b.start for b in (z, y, x)], self._volume.dtype)
        for at in range(z.start, z.stop):
            if at not in self._kept:
                self._fetch(at, z.stop)
            plane = self._kept[at] = self._kept.pop(at)
            box[at - z.start] = plane[y, x]
        return box

    def _fetch(self, first: int, stop: int) -> None:
        """Read the slices up to the next one that is kept, in one go: some files are read from their beginning each time."""
        stop = first + 1 if self._volume.slices_apart else min(stop, first + self._most)
        stop = next((at for at in range(first + 1, stop) if at in self._kept), stop)
        while self._kept and len(self._kept) + stop - first > self._most:
            del self._kept[next(iter(self._kept))]
        planes = self._volume.read(slice(first, stop))
        for at, plane in enumerate(planes, first):
            self._kept[at] = plane if len(planes) == 1 else plane.copy()  # a part would keep the whole in memory


def as_labels(read: Read, path: Path) -> Read:
    """The same boxes as unsigned integers, checked by `label_values`."""
    return lambda *box: label_values(read(*box), path)


def _finite(read: Read, path: Path) -> Read:
    """The same boxes; a `SelmaError` where one holds NaN."""

    def read_finite(*box: slice) -> Array:
        values = read(*box)
        check_finite(values, str(path))
        return values

    return read_finite

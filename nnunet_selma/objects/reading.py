"""Labels and their raw image: finding the files, and reading both block by block.

A volume of slices is read as slabs of whole slices: the last slices are kept in memory, so that blocks side by side read each slice once.
Kept slices take 256 MB, or nine slices, whichever is more, and twice that while a file of many slices is read. A volume in chunks is read in
blocks of about 256³ voxels made of whole chunks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt, prod
from pathlib import Path

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Read
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume
from nnunet_selma.volumes.base import Array, ShapeZYX, by_times, check_finite_voxels
from nnunet_selma.volumes.labels import label_values
from nnunet_selma.volumes.segmented import class_names, has_image, label_path, levels, open_labels

SLAB_BYTES = 2**28
"""Bytes of one volume's slices that are kept in memory."""
BLOCK_VOXELS = 2**24
"""Voxels of a block: 256³."""
_LEAST_SLICES = (
    8  # in a slab, however large they are: thinner slabs cut each object into many parts, which must be joined
)
_MOST_SLICES = 256
_CHUNK = (64, 64, 64)  # for volumes without chunks


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The labels that are measured, and their image."""

    labels: Volume
    raw: Volume | None = None
    """The image whose intensities are measured, in the labels' shape; None: no intensities."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size in the labels' file, otherwise in the image's; None: neither says it."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Label to its name, for labels that are named in the file."""

    @property
    def paths(self) -> list[Path]:
        """Paths of the files that are read."""
        return [volume.path for volume in (self.labels, self.raw) if volume is not None]

    @property
    def placed(self) -> Volume:
        """The volume that says where the labels lie: the image if it alone states a place, otherwise the labels."""
        volumes = [self.labels] if self.raw is None else [self.labels, self.raw]
        return next((volume for volume in volumes if volume.origin_voxels_zyx is not None), self.labels)

    @property
    def edge(self) -> ShapeZYX:
        """Shape of the blocks that are read, voxels."""
        volumes = [self.labels] if self.raw is None else [self.labels, self.raw]
        return block_edge(volumes)

    @property
    def read_labels(self) -> Read:
        """Reader of boxes of the labels, as unsigned integers."""
        return as_labels(slices_kept(self.labels), self.labels.path)

    @property
    def read_raw(self) -> Read | None:
        """Reader of boxes of the image; None without one."""
        return None if self.raw is None else _finite(slices_kept(self.raw), self.raw.path)


def open_sources(
    labels: Path,
    *,
    name: str | None,
    raw: Path | None,
    without_raw: bool,
    channel: int | None,
    scene: str | None = None,
    time: int | None = None,
) -> Sources:
    """Open labels and their image; reads a few boxes at most.

    Args:
        labels: any volume of labels, or an OME-Zarr image with label images.
        name: name of the label image in an OME-Zarr.
        raw: the image; None: the image of the OME-Zarr in which the labels lie, if they do.
        without_raw: True opens no image.
        channel: channel of the image, from 0.
        scene: scene of the image, in a file with several.
        time: time point of the image, in a file with several, from 0.

    Raises:
        SelmaError: there is no such file or label image, the labels' values are those of an image, labels and image differ in shape, or a choice is
            made of an image that is not there.
    """
    place = label_path(labels, name).resolve()
    around = place.parent.parent
    if without_raw:
        raw = None
    elif raw is None and place.parent.name == "labels" and has_image(around):
        raw = around
    choice = {"--scene": scene, "--channel": channel, "--time": time}
    given = [option for option, value in choice.items() if value is not None]
    if raw is None and given:
        raise SelmaError(
            f"{given[0]} is for the image, and none is measured; give it with --raw, or leave the option out"
        )
    volume = open_labels(place)
    resolutions = () if raw is None else levels(raw, channel, scene=scene, time=time)
    image = next((level for level in resolutions if level.shape == volume.shape), next(iter(resolutions), None))
    if image is not None and image.shape != volume.shape:
        raise SelmaError(
            f"{image.path}: has {by_times(image.shape)} voxels (z, y, x), the labels {volume.path} have {by_times(volume.shape)}; "
            "give the image that was segmented, at the same resolution, with --raw, or no intensities with --raw none"
        )
    spacing = volume.spacing_um_zyx or (image.spacing_um_zyx if image is not None else None)
    return Sources(labels=volume, raw=image, spacing_um_zyx=spacing, classes=class_names(place))


def block_edge(volumes: Sequence[Volume]) -> ShapeZYX:
    """Shape of blocks, voxels (z, y, x), in which volumes of one shape are read at little cost; at most `BLOCK_VOXELS` a block.

    If one of the volumes is made of slices, a block is as deep as its slab, rounded down to a power of two, and at least eight slices deep.
    Otherwise the chunk of the first volume grows by doubling its shortest edge.
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
    """The largest power of two up to a number."""
    return 1 << (max(1, number).bit_length() - 1)


def _slices_kept(volume: Volume) -> int:
    plane = volume.shape[1] * volume.shape[2] * volume.dtype.itemsize
    return max(_LEAST_SLICES + 1, SLAB_BYTES // max(1, plane))


def slices_kept(volume: Volume) -> Read:
    """Reader of boxes of a volume; where whole slices are cheap to read, boxes are cut from slices that are kept in memory."""
    return _KeptSlices(volume) if volume.plane_wise else volume.read


class _KeptSlices:
    """Reader of boxes that keeps the slices it used last."""

    def __init__(self, volume: Volume) -> None:
        self._volume, self._most = volume, _slices_kept(volume)
        self._kept: dict[int, Array] = {}  # the slice unused for longest stands first

    def __call__(self, z: slice, y: slice, x: slice) -> Array:
        box = np.empty([b.stop - b.start for b in (z, y, x)], self._volume.dtype)
        for at in range(z.start, z.stop):
            if at not in self._kept:
                self._fetch(at, z.stop)
            plane = self._kept[at] = self._kept.pop(at)
            box[at - z.start] = plane[y, x]
        return box

    def _fetch(self, first: int, stop: int) -> None:
        """Read the slices up to the next kept one with one call, because some files are read from their beginning each time."""
        stop = first + 1 if self._volume.slices_apart else min(stop, first + self._most)
        stop = next((at for at in range(first + 1, stop) if at in self._kept), stop)
        while self._kept and len(self._kept) + stop - first > self._most:
            del self._kept[next(iter(self._kept))]
        planes = self._volume.read(slice(first, stop))
        for at, plane in enumerate(planes, first):
            self._kept[at] = plane if len(planes) == 1 else plane.copy()  # a view would keep the whole slab in memory


def as_labels(read: Read, path: Path) -> Read:
    """The same boxes as unsigned integers, checked by `label_values`."""
    return lambda *box: label_values(read(*box), path)


def _finite(read: Read, path: Path) -> Read:
    """The same reader; raises `SelmaError` for NaN and infinite values."""

    def read_finite(*box: slice) -> Array:
        values = read(*box)
        check_finite_voxels(values, str(path))
        return values

    return read_finite

"""Touching objects: components that are known from a first pass, each split alone (`morphology/watershed.py`).

A second pass reads the same blocks. A component that lies in one block is split there; of one that goes on, the parts are kept until its last
voxel is read. Therefore the result does not depend on the blocks. A component whose box has more than `MOST_VOXELS` is left whole, and counted.
Memory: a block; 110 bytes for each voxel of the largest box that is split; a bit for each voxel in the boxes of parts that wait, with their
intensities and probabilities; and, for an image of instances, the compressed shapes of split components.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.morphology.blocks import Block, Box, Mask, blocks
from nnunet_selma.morphology.components import Connectivity, label
from nnunet_selma.morphology.watershed import NECK, split_component
from nnunet_selma.objects.measuring import measure_pieces
from nnunet_selma.objects.reading import Sources, slices_kept
from nnunet_selma.objects.table import Objects
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import inventory, open_volume
from nnunet_selma.volumes.base import Array, ShapeZYX, by_times

MOST_VOXELS = 2**23
"""Voxels of the largest box in which a component is split: about 200³, 0.9 GB."""
ReadProbability = Callable[[Block, Array], Array]
"""Returns the probability, 0 to 255, of the label at each voxel of a block's core, from the labels there."""


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """The rule by which components are split."""

    neck: float = NECK
    """Share of the lower summit up to which a pass is a neck."""
    connectivity: Connectivity = 26
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size; None: voxels are cubes."""
    probability: ReadProbability | None = None
    """Reader of probabilities; None: only distances count."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of the pieces of components that were split."""

    pieces: dict[int, tuple[Box, bytes]] = field(default_factory=dict)
    """Row of a component to its box and the numbers of its pieces there, compressed."""
    in_block: dict[ShapeZYX, list[int]] = field(default_factory=dict)
    """Place of a block to the rows of the components with voxels in its core."""

    def add(self, row: int, box: Box, pieces: NDArray[np.int32], places: Sequence[ShapeZYX]) -> None:
        """Keep the pieces of a component, which lies in the blocks at these places."""
        self.pieces[row] = box, zlib.compress(pieces.tobytes(), 1)
        for place in set(places):
            self.in_block.setdefault(place, []).append(row)

    def within(self, row: int, block: Block) -> tuple[Box, NDArray[np.int32]]:
        """The part of a component in a block's core: its box, as slices of the core, and the numbers of its pieces."""
        box, compressed = self.pieces[row]
        pieces = np.frombuffer(zlib.decompress(compressed), np.int32).reshape(_shape(box))
        low = [max(side.start, a) for side, a in zip(box, block.start, strict=True)]
        high = [min(side.stop, b) for side, b in zip(box, block.stop, strict=True)]
        return _box(low, high, block.start), pieces[_box(low, high, _corners(box)[0])]


@dataclass(frozen=True, kw_only=True)
class SplitObjects:
    """Objects after splitting: pieces, and components that are whole."""

    objects: Objects
    """Objects in the order of their components; pieces of one component in raster order of their first voxels."""
    component: NDArray[np.int64]
    """Row of the component that each object is, or is a piece of, (n,)."""
    neck: float
    """The share by which components were split."""
    components: int
    """Number of components."""
    left_whole: int
    """Components whose box is too large to be split."""
    shapes: Shapes
    """Shapes of the pieces; empty if they were not asked for."""

    @property
    def first(self) -> NDArray[np.int64]:
        """Row of the first object of each component, (components,)."""
        return np.searchsorted(self.component, np.arange(self.components)).astype(np.int64)

    def drawing(self, numbers: NDArray[np.int64]) -> Callable[[Block, Array], None]:
        """A function that writes the numbers (n,) of pieces into the core of a block."""
        first = self.first

        def draw(block: Block, core: Array) -> None:
            for row in self.shapes.in_block.get(block.index, ()):
                box, pieces = self.shapes.within(row, block)
                inside = pieces > 0
                core[box][inside] = numbers[first[row] + pieces[inside] - 1]

        return draw

    def summary(self) -> dict[str, Any]:
        """The rule, and counts before and after, before objects are left out by their size."""
        return {
            "neck": self.neck,
            "components": self.components,
            "objects": len(self.objects),
            "components_split": int(np.count_nonzero(np.bincount(self.component, minlength=1) > 1)),
            "components_left_whole": self.left_whole,
        }


@dataclass(frozen=True)
class _Part:
    """The voxels of a component in the core of one block."""

    place: ShapeZYX
    """Place of the block."""
    box: Box
    """Box of the part in the volume."""
    bits: NDArray[np.uint8]
    """Mask in that box, eight voxels a byte."""
    raw: Array | None
    """Intensities of the voxels, in raster order."""
    probability: Array | None
    """Probabilities of the voxels, in raster order."""

    @property
    def mask(self) -> Mask:
        """True for the voxels of the part, in its box."""
        shape = _shape(self.box)
        return np.unpackbits(self.bits, count=prod(shape)).reshape(shape).view(np.bool_)


def split_touching(
    sources: Sources,
    components: Objects,
    rows: NDArray[np.int64],
    splitting: Splitting,
    progress: Progress[Any] = silent,
    *,
    keep_shapes: bool = False,
) -> SplitObjects:
    """Split the components of a volume in one pass over its blocks.

    Args:
        sources: the labels, and the image whose intensities are measured.
        components: the components, as `find_objects` returns them.
        rows: row of its component for each component of each block, in the order of blocks.
        splitting: the rule.
        progress: shows the blocks.
        keep_shapes: keep the shapes of pieces, so that they can be drawn.

    Raises:
        SelmaError: a block cannot be read.
    """
    splittable = np.prod(components.stop - components.start, axis=1) <= MOST_VOXELS
    whole, shapes = np.ones(len(components), np.bool_), Shapes()
    pieces, origin = [components.select(~whole)], [np.zeros(0, np.int64)]
    for complete in _complete_components(sources, components, rows, splittable, splitting, progress):
        in_block = []
        for row, parts in complete:
            box = _box(components.start[row], components.stop[row])
            bodies, n, raw = _split(parts, box, sources.labels.shape, splitting)
            if n == 1:
                continue
            whole[row] = False
            in_block.append(measure_pieces(box, bodies, n, int(components.label[row]), raw))
            origin.append(np.full(n, row, np.int64))
            if keep_shapes:
                shapes.add(row, box, bodies, [part.place for part in parts])
        if in_block:
            pieces.append(_concatenated(in_block))
    component = np.concatenate([np.flatnonzero(whole), *origin])
    order = np.argsort(component, kind="stable")
    return SplitObjects(
        objects=_concatenated([components.select(whole), *pieces]).select(order),
        component=component[order],
        neck=splitting.neck,
        components=len(components),
        left_whole=int(np.count_nonzero(~splittable)),
        shapes=shapes,
    )


def _complete_components(
    sources: Sources,
    components: Objects,
    rows: NDArray[np.int64],
    selected: Mask,
    splitting: Splitting,
    progress: Progress[Any],
) -> Iterator[list[tuple[int, list[_Part]]]]:
    """For each block the selected components whose last voxels it holds: their rows, and their parts in this and earlier blocks."""
    waiting: dict[int, list[_Part]] = {}
    missing, offset = components.voxels.copy(), 0
    read, read_raw = sources.read_labels, sources.read_raw
    for block in progress(list(blocks(sources.labels.shape, sources.edge)), "splitting"):
        values = read(*block.box)
        labels, n = label(values, splitting.connectivity)
        here, offset = rows[offset : offset + n], offset + n
        if not selected[here].any():
            continue
        core, complete = labels[block.core], []
        raw = read_raw(*block.box)[block.core] if read_raw else None
        probability = splitting.probability(block, values[block.core]) if splitting.probability else None
        boxes = ndimage.find_objects(core, n)
        for number in np.flatnonzero(selected[here]):
            if boxes[number] is None:  # all its voxels here belong to the next block
                continue
            row, mask = int(here[number]), core[boxes[number]] == number + 1
            waiting.setdefault(row, []).append(_part(block, boxes[number], mask, raw, probability))
            missing[row] -= np.count_nonzero(mask)
            if not missing[row]:
                complete.append((row, waiting.pop(row)))
        yield complete


def probability_reader(path: Path, sources: Sources) -> ReadProbability:
    """Reader of the probabilities that `predict-volume --probabilities` wrote: one channel for each class, 0 to 255.

    Raises:
        SelmaError: they are of another volume, have other values, or their channels are not those of the labels.
    """
    count, classes = inventory(path).channels, list(sources.classes)
    channels = [open_volume(path, channel=channel if count > 1 else None) for channel in range(count)]
    first = channels[0]
    if first.dtype != np.uint8:
        raise SelmaError(
            f"{path}: holds {first.dtype}, and probabilities are uint8, 0 to 255; give OUT_probabilities.ome.zarr"
        )
    if first.shape != sources.labels.shape:
        raise SelmaError(
            f"{path}: has {by_times(first.shape)} voxels (z, y, x), the labels {by_times(sources.labels.shape)}; "
            "give the probabilities of this segmentation"
        )
    if classes and len(classes) != count:
        raise SelmaError(
            f"{path}: has {counted(count, 'channel')}, and the labels {counted(len(classes), 'class', 'classes')}; give the probabilities of this segmentation"
        )
    order = _values_of_channels(path, sources, count)
    channel_of = dict(zip(order, (slices_kept(channel) for channel in channels), strict=True))

    def read(block: Block, labels: Array) -> Array:
        probability = np.zeros(labels.shape, np.uint8)
        core = _box(block.start, block.stop)
        for value in np.unique(labels[labels > 0]).tolist():
            if value not in channel_of:
                raise SelmaError(
                    f"{path}: has no channel for the label {value}; give the probabilities of this segmentation"
                )
            inside = labels == value
            probability[inside] = channel_of[value](*core)[inside]
        return probability

    return read


def _values_of_channels(path: Path, sources: Sources, count: int) -> list[int]:
    """The label whose probability each channel holds, by names; in the order of numbers where channels have no names.

    Raises:
        SelmaError: the names differ, are not unique, or are missing where the order leaves a doubt.
    """
    names, classes = inventory(path).channel_names, sources.classes
    if names and classes:
        value_of = {name: value for value, name in classes.items()}
        if sorted(names) != sorted(value_of):
            raise SelmaError(
                f"{path}: has the channels {', '.join(names)}, and the labels the classes {', '.join(classes.values())}; "
                "give the probabilities of this segmentation"
            )
        return [value_of[name] for name in names]
    if names and count > 1:
        raise SelmaError(
            f"{sources.labels.path}: does not name its classes, of which {path} has a channel each; give the labels in the OME-Zarr that "
            "predict-volume wrote with them"
        )
    if list(classes) != sorted(classes):
        raise SelmaError(
            f"{path}: does not name its channels, and {sources.labels.path} lists its classes in another order than that of their numbers; "
            "give the probabilities of this segmentation"
        )
    return list(classes) or list(range(1, count + 1))


def _part(block: Block, box: Box, mask: Mask, raw: Array | None, probability: Array | None) -> _Part:
    """A part with its mask in a box, given as slices of the block's core, and the values there."""
    z, y, x = (slice(side.start + a, side.stop + a) for side, a in zip(box, block.start, strict=True))
    grey, probable = (None if values is None else values[box][mask] for values in (raw, probability))
    return _Part(block.index, (z, y, x), np.packbits(mask), grey, probable)


def _split(
    parts: Sequence[_Part], box: Box, shape: ShapeZYX, splitting: Splitting
) -> tuple[NDArray[np.int32], int, Array | None]:
    """Numbers of the bodies of a component in its box, how many there are, and the intensities of its voxels."""
    mask = np.zeros(_shape(box), np.bool_)
    raw, probability = (
        None if values is None else np.zeros(mask.shape, values.dtype)
        for values in (parts[0].raw, parts[0].probability)
    )
    for part in parts:
        at, inside = _box(*_corners(part.box), _corners(box)[0]), part.mask
        mask[at] |= inside
        if raw is not None:
            raw[at][inside] = part.raw
        if probability is not None:
            probability[at][inside] = part.probability
    around = [(int(side.start > 0), int(side.stop < n)) for side, n in zip(box, shape, strict=True)]
    bodies, n = split_component(
        np.pad(mask, around),
        splitting.spacing_um_zyx or (1.0, 1.0, 1.0),
        neck=splitting.neck,
        connectivity=splitting.connectivity,
        probability=None if probability is None else np.pad(probability, around),
    )
    inner = tuple(slice(before, before + n) for (before, _), n in zip(around, mask.shape, strict=True))
    return bodies[inner], n, raw


def _concatenated(tables: Sequence[Objects]) -> Objects:
    return Objects(*(np.concatenate([getattr(table, each.name) for table in tables]) for each in fields(Objects)))


def _box(low: Sequence[int], high: Sequence[int], origin: Sequence[int] = (0, 0, 0)) -> Box:
    """The box between two corners, as slices of an array whose first voxel is at the origin."""
    z, y, x = (slice(int(a - o), int(b - o)) for a, b, o in zip(low, high, origin, strict=True))
    return z, y, x


def _corners(box: Box) -> tuple[list[int], list[int]]:
    return [side.start for side in box], [side.stop for side in box]


def _shape(box: Box) -> ShapeZYX:
    z, y, x = (side.stop - side.start for side in box)
    return z, y, x

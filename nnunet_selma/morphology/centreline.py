"""Centrelines of tree-like structures: the skeleton of Lee, Kashyap and Chu (1994), clDice (Shit et al. 2021), and length.

Thinning decides by neighbourhoods of 3×3×3 voxels, and no two 26-connected components share such a neighbourhood. Therefore each component
is thinned in its box, with the same result as for the whole array, in less time, and in the memory that the largest box needs. A component
whose box is too large can be thinned in pieces with a halo: far from the cut, the skeleton is that of the whole component.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf, nan

import numpy as np
from scipy.ndimage import find_objects
from skimage.morphology import skeletonize

from nnunet_selma.morphology.blocks import Block, Box, Mask, Read, blocks
from nnunet_selma.morphology.components import ComponentTable, label
from nnunet_selma.morphology.overlap import Overlap
from nnunet_selma.volumes.base import Array, ShapeZYX

_SMOOTH = 1e-6


def skeleton(labels: Array) -> Mask:
    """The skeleton of a labelled array (z, y, x), in the same shape.

    Some components have no skeleton: cubes with an even edge vanish, as they do in the official evaluators.
    """
    thin = np.zeros(labels.shape, np.bool_)
    for number, box in enumerate(find_objects(labels), 1):
        thin[box] |= _thin(labels[box] == number, volume=len(labels) > 1)
    return thin


def _thin(component: Mask, *, volume: bool) -> Mask:
    """The skeleton of one component in its box.

    scikit-image thins a single slice as a picture. A component one slice deep that is cut from a volume is therefore given a second, empty slice.
    """
    if volume and len(component) == 1:
        return _thin(np.pad(component, ((0, 1), (0, 0), (0, 0))), volume=volume)[:1]
    thin: Mask = skeletonize(component).astype(np.bool_)
    return thin


@dataclass(frozen=True)
class Piece:
    """The skeleton of a component, or of a piece of it."""

    box: Box
    """Place in the volume."""
    thin: Mask
    """The skeleton in that box."""
    core: Box = (slice(None), slice(None), slice(None))
    """Part of the box in which the skeleton counts; around it other pieces count."""
    whole: bool = True
    """True if the piece is a whole component; False if it was cut out of one."""


def skeletons_by_blocks(
    read: Read, shape: ShapeZYX, edge: ShapeZYX, *, most: float = inf, halo: int = 64
) -> Iterator[Piece]:
    """The skeleton of each component of the mask `> 0` of a volume.

    A component that lies in one block is thinned there; one that goes on into another block is thinned after all blocks, in its box or,
    where that is too large, in pieces.

    Args:
        read: reader of boxes of the volume.
        shape: shape of the volume, voxels (z, y, x).
        edge: shape of a block, voxels (z, y, x).
        most: voxels of the largest box in which a component is thinned whole.
        halo: voxels around a piece that are thinned with it. The skeleton in the piece is that of the whole component if the structure is
            thin against the halo, and always if the halo is as wide as the volume.
    """
    volume = shape[0] > 1
    table, crosses = ComponentTable(), list[Mask]([np.zeros(0, np.bool_)])
    for block in blocks(shape, edge):
        labels, n = label(read(*block.box) > 0)
        boxes = find_objects(labels)
        crosses.append(np.array([_crosses(box, block) for box in boxes], np.bool_))
        for number in np.flatnonzero(~crosses[-1]):
            box = boxes[number]
            z, y, x = (slice(b.start + s, b.stop + s) for b, s in zip(box, block.start, strict=True))
            yield Piece((z, y, x), _thin(labels[box] == number + 1, volume=volume))
        table.add(block, labels, n)
    components, which = table.finish()
    crossing = np.unique(which[np.concatenate(crosses)])
    large = crossing[np.prod(components.high[crossing] - components.low[crossing], axis=1) > most]
    for number in np.setdiff1d(crossing, large):
        box = components.box(number)
        labels, _ = label(read(*box) > 0)
        first = components.first[number] - components.low[number]
        yield Piece(box, _thin(labels == labels[tuple(first)], volume=volume))
    if len(large):
        yield from _pieces(read, shape, edge, halo, np.isin(which, large))


def _pieces(read: Read, shape: ShapeZYX, edge: ShapeZYX, halo: int, selected: Mask) -> Iterator[Piece]:
    """Skeletons of the selected components, block by block.

    `selected` holds a bool for each component of each block, in the order in which they are labelled.
    """
    for block in blocks(shape, edge):
        labels, n = label(read(*block.box) > 0)
        here, selected = np.concatenate([[False], selected[:n]]), selected[n:]
        seeds = here[labels[block.core]]
        if not seeds.any():
            continue
        z, y, x = (
            slice(max(a - halo, 0), min(b + halo, n)) for a, b, n in zip(block.start, block.stop, shape, strict=True)
        )
        core = tuple(
            slice(a - s.start, b - s.start) for a, b, s in zip(block.start, block.stop, (z, y, x), strict=True)
        )
        around, _ = label(read(z, y, x) > 0)
        touches = np.zeros(int(around.max()) + 1, np.bool_)
        touches[around[core][seeds]] = True
        yield Piece((z, y, x), skeleton(label(touches[around])[0]), core, whole=False)  # type: ignore[arg-type]


def _crosses(box: Box, block: Block) -> bool:
    """True if a component with this box in a block reaches voxels that the block shares with another."""
    return any(
        (side.start == 0 and start > 0) or (side.stop == end - start and end > stop)
        for side, start, stop, end in zip(box, block.start, block.stop, block.end, strict=True)
    )


@dataclass(frozen=True)
class Centrelines:
    """Numbers of skeleton voxels of a prediction and of its reference."""

    prediction: int
    """Voxels of the prediction's skeleton."""
    prediction_inside: int
    """Those of them that lie in the reference's mask."""
    reference: int
    """Voxels of the reference's skeleton."""
    reference_inside: int
    """Those of them that lie in the prediction's mask."""

    @property
    def cldice_2024(self) -> float:
        """The clDice of SELMA3D 2024, smoothed: an empty skeleton counts 0, and two zeros make 1.0.

        Therefore an empty prediction gets 1.0, and so does one where neither skeleton meets the other mask.
        """
        a, b = self._shares(0.0, 0.0)
        return (2 * a * b + _SMOOTH) / (a + b + _SMOOTH)

    @property
    def cldice_2026(self) -> float:
        """The clDice of SELMA3D 2026 (panoptica 2.1.7): NaN if a skeleton is empty, or neither meets the other mask."""
        a, b = self._shares(nan, nan)
        return 2 * a * b / (a + b) if a + b else nan

    def corrected(self, official: float, overlap: Overlap) -> float:
        """The official clDice, replaced by a meaningful value in its corner cases.

        0.0 if neither skeleton meets the other mask, or if one mask is empty; 1.0 if both are. If a mask has voxels but no skeleton, its
        voxels replace the skeleton.

        Args:
            official: `cldice_2024` or `cldice_2026`.
            overlap: overlap of the two masks.
        """
        if self.prediction and self.reference and (self.prediction_inside or self.reference_inside):
            return official
        if not overlap.prediction or not overlap.reference:
            return float(overlap.prediction == overlap.reference)
        a, b = self._shares(overlap.both / overlap.reference, overlap.both / overlap.prediction)
        return 2 * a * b / (a + b) if a + b else 0.0

    def _shares(self, no_reference: float, no_prediction: float) -> tuple[float, float]:
        """Share of the reference's skeleton in the prediction, and the reverse; an empty skeleton has the share that is given for it."""
        return (
            self.reference_inside / self.reference if self.reference else no_reference,
            self.prediction_inside / self.prediction if self.prediction else no_prediction,
        )


def centreline_length(thin: Mask, spacing_zyx: tuple[float, float, float], core: Box | None = None) -> float:
    """Length of a skeleton: the sum of its steps between neighbouring voxels; a single voxel has length 0.

    A diagonal step is left out if the skeleton also takes the way round over a voxel between, so that corners and junctions do not count
    twice. Lengths of pieces add up (`skeletons_by_blocks`).

    Args:
        thin: the skeleton, (z, y, x).
        spacing_zyx: voxel size, in the unit of the length.
        core: part of the array in which the first voxel of a step must lie to count; None: all.
    """
    length, inside = 0.0, _within(thin, core)[thin]
    for step, goes in _steps(np.pad(thin, 1)):
        length += int(np.count_nonzero(goes & inside)) * float(np.linalg.norm(np.multiply(step, spacing_zyx)))
    return length


def branch_points(thin: Mask, core: Box | None = None) -> int:
    """Number of forks of a skeleton: groups of touching voxels, each with steps to three or more of its neighbours.

    Steps are those of `centreline_length`: a corner of a path is no fork, though three of its voxels touch each other. Numbers of pieces
    add up (`skeletons_by_blocks`).

    Args:
        thin: the skeleton, (z, y, x).
        core: part of the array in which the first voxel of a fork must lie to count; None: all.
    """
    padded = np.pad(thin, 1)
    at = np.flatnonzero(padded)
    steps = np.zeros(len(at), np.uint8)
    for step, goes in _steps(padded):
        steps += goes
        ahead = at[goes] + np.dot(step, padded.strides)  # strides of a mask count voxels
        steps[np.searchsorted(at, ahead)] += 1
    forks = np.zeros_like(padded)
    forks.ravel()[at[steps >= 3]] = True
    labels = label(forks)[0].ravel()[at]
    numbers, first = np.unique(labels, return_index=True)
    return int(np.count_nonzero(_within(thin, core)[thin][first[numbers > 0]]))


def _within(thin: Mask, core: Box | None) -> Mask:
    """True for the voxels in a part of an array."""
    within = np.zeros(thin.shape, np.bool_)
    within[core or ...] = True
    return within


def _steps(padded: Mask) -> Iterator[tuple[tuple[int, int, int], Mask]]:
    """The 13 directions to voxels later in raster order, each with a bool for every voxel of the skeleton: True if it has a step there.

    A diagonal is no step if the skeleton also takes the way round over a voxel between. The outermost layer must be empty.
    """
    z, y, x = np.nonzero(padded)
    for step in product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)):
        if step <= (0, 0, 0):
            continue
        goes = padded[z + step[0], y + step[1], x + step[2]]
        for between in product(*({0, s} for s in step)):
            if between not in ((0, 0, 0), step):
                goes = goes & ~padded[z + between[0], y + between[1], x + between[2]]
        yield step, goes

"""Centrelines of tree-like structures: the skeleton of Lee, Kashyap and Chu (1994), clDice (Shit et al. 2021), and length.

Thinning looks at 3×3×3 voxels, and no two 26-connected components share such a neighbourhood. So each component is thinned in its own box:
the result is that of the whole array, in the time that its components take, and it needs no more memory than the box of the largest one.
A component whose box is too large for that can be thinned in pieces with a halo: far from where it was cut, it is thinned as in the whole.
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
    """The skeleton of a labelled array (z, y, x), same shape.

    A component may have none: cubes with an even edge vanish, as they do in the official evaluators.
    """
    thin = np.zeros(labels.shape, np.bool_)
    for number, box in enumerate(find_objects(labels), 1):
        thin[box] |= _thinned(labels[box] == number, volume=len(labels) > 1)
    return thin


def _thinned(own: Mask, *, volume: bool) -> Mask:
    """The skeleton of one component in its box; scikit-image thins a single slice as a picture, which it is in no `volume`."""
    if volume and len(own) == 1:
        return _thinned(np.pad(own, ((0, 1), (0, 0), (0, 0))), volume=volume)[:1]
    thin: Mask = skeletonize(own).astype(np.bool_)
    return thin


@dataclass(frozen=True)
class Piece:
    """The skeleton of a component, or a piece of it."""

    box: Box
    """Where in the volume."""
    thin: Mask
    """The skeleton in that box."""
    own: Box = (slice(None), slice(None), slice(None))
    """Region of the box whose skeleton this piece provides; the rest belongs to another piece."""
    whole: bool = True
    """True if the piece is a whole component; False if it was cut out of one."""


def skeletons_by_blocks(
    read: Read, shape: ShapeZYX, edge: ShapeZYX, *, most: float = inf, halo: int = 64
) -> Iterator[Piece]:
    """The skeleton of each component of the mask `> 0` of a volume.

    A component that lies in one block is thinned there; one that goes on into another block is thinned after all blocks, in its box or,
    where that is too large, in pieces.

    Args:
        read: gives the voxels of a box.
        shape: of the volume, voxels (z, y, x).
        edge: of a block, voxels (z, y, x).
        most: voxels of the largest box in which a component is thinned whole.
        halo: voxels around a piece that are thinned with it. The skeleton within the piece is that of the whole where the structure is
            thin against the halo; as wide as the volume, it is so everywhere.
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
            yield Piece((z, y, x), _thinned(labels[box] == number + 1, volume=volume))
        table.add(block, labels, n)
    components, which = table.finish()
    late = np.unique(which[np.concatenate(crosses)])
    large = late[np.prod(components.high[late] - components.low[late], axis=1) > most]
    for number in np.setdiff1d(late, large):
        box = components.box(number)
        labels, _ = label(read(*box) > 0)
        first = components.first[number] - components.low[number]
        yield Piece(box, _thinned(labels == labels[tuple(first)], volume=volume))
    if len(large):
        yield from _pieces(read, shape, edge, halo, np.isin(which, large))


def _pieces(read: Read, shape: ShapeZYX, edge: ShapeZYX, halo: int, wanted: Mask) -> Iterator[Piece]:
    """Skeletons of the selected components, block by block.

    `wanted` holds a bool for each component of each block, in the order in which they are labelled.
    """
    for block in blocks(shape, edge):
        labels, n = label(read(*block.box) > 0)
        wanted_here, wanted = np.concatenate([[False], wanted[:n]]), wanted[n:]
        seeds = wanted_here[labels[block.own]]
        if not seeds.any():
            continue
        z, y, x = (
            slice(max(a - halo, 0), min(b + halo, n)) for a, b, n in zip(block.start, block.stop, shape, strict=True)
        )
        own = tuple(slice(a - s.start, b - s.start) for a, b, s in zip(block.start, block.stop, (z, y, x), strict=True))
        around, _ = label(read(z, y, x) > 0)
        touches = np.zeros(int(around.max()) + 1, np.bool_)
        touches[around[own][seeds]] = True
        touching = touches[around]
        yield Piece((z, y, x), skeleton(label(touching)[0]), own, whole=False)  # type: ignore[arg-type]


def _crosses(box: Box, block: Block) -> bool:
    """True if a component with this box in a block reaches voxels that the block shares with another."""
    return any(
        (side.start == 0 and start > 0) or (side.stop == end - start and end > stop)
        for side, start, stop, end in zip(box, block.start, block.stop, block.end, strict=True)
    )


@dataclass(frozen=True)
class Centrelines:
    """Voxels of both skeletons, and how many of them lie in the other mask."""

    prediction: int
    prediction_inside: int
    reference: int
    reference_inside: int

    @property
    def cldice_2024(self) -> float:
        """The clDice of SELMA3D 2024, smoothed: an empty skeleton counts 0, and two zeros make 1.0.

        So a prediction that is empty, or whose skeleton misses the structure and the reverse, gets 1.0.
        """
        a, b = self._shares(0.0, 0.0)
        return (2 * a * b + _SMOOTH) / (a + b + _SMOOTH)

    @property
    def cldice_2026(self) -> float:
        """The clDice of SELMA3D 2026 (panoptica 2.1.7), without guard: NaN where a skeleton is empty, or neither meets the other mask."""
        a, b = self._shares(nan, nan)
        return 2 * a * b / (a + b) if a + b else nan

    def corrected(self, official: float, overlap: Overlap) -> float:
        """The clDice that says what it should where the official one does not, given the overlap of the two masks.

        0.0 where neither skeleton meets the other mask, or if just one mask is empty; 1.0 if both are. Where a mask has voxels but no
        skeleton, its voxels stand in for it. Everywhere else the official value.
        """
        if self.prediction and self.reference and (self.prediction_inside or self.reference_inside):
            return official
        if not overlap.prediction or not overlap.reference:
            return float(overlap.prediction == overlap.reference)
        a, b = self._shares(overlap.both / overlap.reference, overlap.both / overlap.prediction)
        return 2 * a * b / (a + b) if a + b else 0.0

    def _shares(self, no_reference: float, no_prediction: float) -> tuple[float, float]:
        """Share of the reference's skeleton in the prediction, and the reverse; the given numbers where a skeleton is empty."""
        return (
            self.reference_inside / self.reference if self.reference else no_reference,
            self.prediction_inside / self.prediction if self.prediction else no_prediction,
        )


def centreline_length(thin: Mask, spacing_zyx: tuple[float, float, float], own: Box | None = None) -> float:
    """Length of a skeleton (z, y, x) in the unit of the spacing: the sum of its steps between neighbouring voxels.

    A diagonal step is left out where the skeleton also goes round by a voxel between, so that corners and junctions do not count twice.
    A single voxel has length 0. Lengths of pieces add up (`skeletons_by_blocks`); a step counts where its first voxel is in `own`.
    """
    length, inside = 0.0, _within(thin, own)[thin]
    for step, goes in _steps(np.pad(thin, 1)):
        length += int(np.count_nonzero(goes & inside)) * float(np.linalg.norm(np.multiply(step, spacing_zyx)))
    return length


def branch_points(thin: Mask, own: Box | None = None) -> int:
    """How often a skeleton (z, y, x) forks: groups of touching voxels, each with steps to three or more of its neighbours.

    Steps are those of `centreline_length`: a corner of a path is no branch point, though three of its voxels touch each other. Forks
    whose voxels touch are one. Numbers of pieces add up (`skeletons_by_blocks`); a fork counts where its first voxel is in `own`.
    """
    padded = np.pad(thin, 1)
    at = np.flatnonzero(padded)
    steps = np.zeros(len(at), np.uint8)
    for step, goes in _steps(padded):
        steps += goes
        ahead = at[goes] + np.dot(step, padded.strides)  # of a mask, a stride is a number of voxels
        steps[np.searchsorted(at, ahead)] += 1
    forks = np.zeros_like(padded)
    forks.ravel()[at[steps >= 3]] = True
    labels = label(forks)[0].ravel()[at]
    numbers, first = np.unique(labels, return_index=True)
    return int(np.count_nonzero(_within(thin, own)[thin][first[numbers > 0]]))


def _within(thin: Mask, own: Box | None) -> Mask:
    """Which voxels of an array lie in a part of it."""
    within = np.zeros(thin.shape, np.bool_)
    within[own or ...] = True
    return within


def _steps(padded: Mask) -> Iterator[tuple[tuple[int, int, int], Mask]]:
    """The 13 directions from a voxel of a skeleton to those behind it, and for each voxel, in raster order, whether there is a step.

    A diagonal one is none where the skeleton also goes round by a voxel between. The outermost layer must be empty.
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

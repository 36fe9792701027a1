"""nnU-Net's sliding window over a volume, and arithmetic of boxes; axes are nnU-Net's."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

from nnunet_selma.morphology.blocks import Box
from nnunet_selma.volumes.base import ShapeZYX


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of a volume."""

    shape: ShapeZYX
    """Shape of the volume, voxels."""
    tile: ShapeZYX
    """Shape of a tile: the patch of the plans; one plane thick for 2D plans."""
    step: float
    """Largest step from tile to tile, in tiles."""

    @cached_property
    def starts(self) -> tuple[list[int], list[int], list[int]]:
        """First voxels of the tiles along each axis; below 0 where nnU-Net pads a volume that is smaller than its patch."""
        from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

        padded = [max(length, edge) for length, edge in zip(self.shape, self.tile, strict=True)]
        low = [(long - length) // 2 for long, length in zip(padded, self.shape, strict=True)]
        z, y, x = compute_steps_for_sliding_window(padded, self.tile, self.step)
        if (
            self.tile[0] == 1
        ):  # nnU-Net predicts every plane once; steps of half a plane would be rounded to some of them
            z = list(range(padded[0]))
        return [a - low[0] for a in z], [a - low[1] for a in y], [a - low[2] for a in x]

    def touching(self, box: Box) -> list[Box]:
        """The tiles that share voxels with a box, in the order in which nnU-Net computes them; bounds may exceed the volume."""
        along = [
            [slice(start, start + edge) for start in starts if bounds.start - edge < start < bounds.stop]
            for starts, edge, bounds in zip(self.starts, self.tile, box, strict=True)
        ]
        return list(product(along[0], along[1], along[2]))


def lengths(box: Box) -> ShapeZYX:
    """Length of a box along each axis, voxels."""
    z, y, x = (bounds.stop - bounds.start for bounds in box)
    return z, y, x


def hull(boxes: list[Box]) -> Box:
    """The smallest box around all boxes."""
    z, y, x = (slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in range(3))
    return z, y, x


def intersection(first: Box, second: Box) -> Box:
    """The voxels that two boxes share; empty along an axis where they do not meet."""
    z, y, x = (
        slice(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop)))
        for a, b in zip(first, second, strict=True)
    )
    return z, y, x


def within(box: Box, other: Box) -> Box:
    """The bounds of a box counted from the first voxel of another."""
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, other, strict=True))
    return z, y, x

"""nnU-Net's sliding window over a volume, and which of its tiles a box of the volume needs; axes are nnU-Net's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from nnunet_selma.morphology.blocks import Box
from nnunet_selma.volumes.base import ShapeZYX


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of a volume."""

    shape: ShapeZYX
    """Shape of the volume."""
    tile: ShapeZYX
    """The patch of the plans; one plane thick for 2D plans."""
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

    def touching(self, box: Box, wanted: Callable[[Box], bool] = lambda _: True) -> list[Box]:
        """The tiles that share voxels with a box, in the order nnU-Net computes them in; those that are wanted.

        Bounds may lie outside of the volume.
        """
        along = [
            [start for start in starts if start < bounds.stop and start + edge > bounds.start]
            for starts, edge, bounds in zip(self.starts, self.tile, box, strict=True)
        ]
        return [tile for tile in self._tiles(along) if wanted(tile)]

    def _tiles(self, along: list[list[int]]) -> Iterator[Box]:
        for start in product(*along):
            z, y, x = (slice(a, a + edge) for a, edge in zip(start, self.tile, strict=True))
            yield z, y, x


def lengths(box: Box) -> ShapeZYX:
    """How many voxels a box is long along each axis."""
    z, y, x = (bounds.stop - bounds.start for bounds in box)
    return z, y, x


def hull(boxes: list[Box]) -> Box:
    """The smallest box around all boxes."""
    z, y, x = (slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in range(3))
    return z, y, x


def common(one: Box, other: Box) -> Box:
    """Intersection of two boxes; empty along an axis where they do not meet."""
    z, y, x = (
        slice(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop)))
        for a, b in zip(one, other, strict=True)
    )
    return z, y, x


def within(box: Box, other: Box) -> Box:
    """The bounds of a box counted from the first voxel of another."""
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, other, strict=True))
    return z, y, x

"""Weighted sums of the logits of tiles, which move along a column of blocks; in nnU-Net's order and half precision, so that they equal nnU-Net's.

Tiles that reach from one block into the next are computed once: their part of the next block's sums is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.tiling import intersection, within

CACHED_PLANES = 8
"""Planes that are computed together on a CPU, whose cache they fit into."""
_PIECE_VALUES = 2**26
"""Logits whose mean is computed together on a GPU, whose memory holds copies of them in single precision too."""


@dataclass
class Sums:
    """Sums over a box of the network's grid, for each fold."""

    box: Box
    """The box; network axes, resampled."""
    totals: list[torch.Tensor]
    """Weighted sum of logits, (head, z, y, x), for each fold."""
    weights: torch.Tensor
    """Sum of the weights, (z, y, x); the same for all folds."""

    @staticmethod
    def empty(box: Box, heads: int, folds: int, dtype: torch.dtype, device: torch.device) -> "Sums":
        """Sums of no tile."""
        shape = tuple(bounds.stop - bounds.start for bounds in box)
        return Sums(
            box=box,
            totals=[torch.zeros((heads, *shape), dtype=dtype, device=device) for _ in range(folds)],
            weights=torch.zeros(shape, dtype=dtype, device=device),
        )

    def move(self, planes: slice) -> None:
        """Let the sums cover other planes along the first axis, further on: those that were covered before keep their values."""
        offset = planes.start - self.box[0].start
        length = planes.stop - planes.start
        for fold, total in enumerate(self.totals):
            self.totals[fold] = _moved(total, 1, offset, length)
            del total
        self.weights = _moved(self.weights, 0, offset, length)
        self.box = (planes, *self.box[1:])

    def add(self, fold: int, tile: Box, logits: torch.Tensor, weight: torch.Tensor) -> None:
        """Add the logits of a tile, (head, z, y, x), with a weight for each voxel of it, (z, y, x)."""
        shared = intersection(tile, self.box)
        in_box, in_tile = within(shared, self.box), within(shared, tile)
        total, addend, factor = (
            self.totals[fold][(slice(None), *in_box)],
            logits[(slice(None), *in_tile)],
            weight[in_tile],
        )
        step = CACHED_PLANES if total.device.type == "cpu" else max(1, total.shape[1])
        for z in range(0, total.shape[1], step):
            part = total[:, z : z + step]
            # the product is rounded to the type of the logits and the sum to that of the total, as nnU-Net does
            part.copy_(part.float().add_(addend[:, z : z + step] * factor[z : z + step]))
        if fold == 0:
            self.weights[in_box] += factor

    def release(self) -> None:
        """Free the memory of the sums, which are not used any more."""
        self.totals = []
        self.weights = self.weights.new_empty(0)

    def means(self, box: Box) -> Iterator[torch.Tensor]:
        """Yield the weighted mean of the logits of a box, averaged over the folds, a few planes at a time.

        Yields:
            Logits of planes one behind the other, (head, z, y, x); 0 where no tile was added.
        """
        inside = within(box, self.box)
        depth = box[0].stop - box[0].start
        plane = self.totals[0][:, 0].numel()
        step = CACHED_PLANES if self.weights.device.type == "cpu" else max(CACHED_PLANES, _PIECE_VALUES // plane)
        for start in range(0, depth, step):
            first = inside[0].start + start
            piece = (slice(first, min(first + step, inside[0].stop)), *inside[1:])
            weights = self.weights[piece]
            weights = torch.where(weights == 0, 1, weights)
            mean = self.totals[0][(slice(None), *piece)] / weights
            for total in self.totals[1:]:
                mean += total[(slice(None), *piece)] / weights
            yield mean.div_(len(self.totals)) if len(self.totals) > 1 else mean


def _moved(values: torch.Tensor, axis: int, offset: int, length: int) -> torch.Tensor:
    """The values from an offset on along an axis, as many as asked for; zeros behind the last one. Values of that shape are overwritten."""
    kept = values.narrow(axis, offset, max(0, min(length, values.shape[axis] - offset))).clone()
    shape = list(values.shape)
    shape[axis] = length
    result = values if shape == list(values.shape) else values.new_empty(shape)
    result.narrow(axis, 0, kept.shape[axis]).copy_(kept)
    result.narrow(axis, kept.shape[axis], length - kept.shape[axis]).zero_()
    return result

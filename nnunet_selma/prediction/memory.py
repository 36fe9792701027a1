"""Memory of a prediction, and the largest blocks that a limit allows."""

from dataclasses import dataclass
from math import prod

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.model import Model
from nnunet_selma.volumes.base import ShapeZYX

GB = 10**9
BASE_BYTES = 1.0 * GB
"""Python with PyTorch and nnU-Net."""
_ACTIVATIONS = 8
"""Feature maps of full resolution that live at once while a tile is computed; the widest stages are those of the decoder."""
_MOST_BLOCK = 1024
"""Longest edge of a block, voxels; larger blocks save hardly any tile, and a killed run loses more."""
_LEAST_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Numbers that decide how much memory a block takes."""

    channels: int
    """Channels of the image."""
    voxel_bytes: int
    """Bytes of a voxel of one channel of the image."""
    heads: int
    """Output channels of the network."""
    tile: ShapeZYX
    """Shape of a tile, voxels along the axes of the volume."""
    features: int
    """Features of the network's first stage."""
    folds: int = 1
    """Folds whose logits are averaged."""
    weights: int = 0
    """Bytes of the weights of one fold."""
    probabilities: bool = False
    """True if probabilities are written too."""
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Voxels of the network's grid for one of the volume, along each axis of the volume."""

    @staticmethod
    def for_model(
        model: Model, voxel_bytes: int, probabilities: bool, scale: tuple[float, float, float]
    ) -> "MemoryPlan":
        """The plan for a model; the other arguments are the fields of the same name."""
        architecture = model.configuration["architecture"]["arch_kwargs"]
        features = architecture.get("features_per_stage") or [32]
        tile = [0, 0, 0]
        for edge, axis in zip(model.tile, model.transpose, strict=True):
            tile[axis] = edge
        return MemoryPlan(
            channels=len(model.channels),
            voxel_bytes=voxel_bytes,
            heads=model.heads,
            tile=(tile[0], tile[1], tile[2]),
            features=max(features[0], 16),
            folds=len(model.settings.folds),
            weights=model.weight_bytes,
            probabilities=probabilities,
            scale=scale,
        )

    def bytes(self, block: ShapeZYX) -> float:
        """Peak memory of predicting blocks of a shape (z, y, x) one after another.

        While one block is predicted, the image of the next one is in memory already, and the logits and labels of the last one still.
        """
        resampled = self.scale != (1.0, 1.0, 1.0)
        logits = prod(edge * s + 2 for edge, s in zip(block, self.scale, strict=True))
        image = prod(edge * s + 2 * t for edge, s, t in zip(block, self.scale, self.tile, strict=True))
        source = image / prod(self.scale)
        # as read, and normalised; both a second time for the block that is read meanwhile
        images = 2 * self.channels * (source * (self.voxel_bytes + 4) + image * 4)
        # a spline takes a channel in float64: its voxels, padded, filtered, and the result
        images += resampled * 8 * (3 * source + image)
        # of this block and the last one
        sums = logits * 2 * (self.heads * (2 + (self.folds > 1)) + 1)
        way_back = resampled * (8 * (logits + prod(block)) + 2 * self.heads * prod(block))
        results = prod(block) * (3 + self.probabilities * self.heads * 3)
        network = prod(self.tile) * (self.features * 4 * _ACTIVATIONS + self.heads * 12)
        # of each fold, in the network, and of a checkpoint that is loaded
        weights = self.weights * (self.folds + 2)
        return BASE_BYTES + images + sums + way_back + results + network + weights

    def choose_block(self, shape: ShapeZYX, edge: int | None, max_memory: float) -> tuple[ShapeZYX, int]:
        """Shape of the blocks of a volume (z, y, x), and the edge of the chunks that they are made of, in voxels.

        Args:
            shape: shape of the volume (z, y, x).
            edge: edge of a block, voxels; None for the largest that fits into the memory.
            max_memory: GB.

        Raises:
            SelmaError: the edge is no power of two, or a block does not fit.
        """
        chunk = chunk_edge(shape)
        if edge is None:
            return self.largest_block(shape, chunk, max_memory), chunk
        if edge < _LEAST_BLOCK or edge & (edge - 1):
            raise SelmaError(f"--block {edge}: give a power of two from {_LEAST_BLOCK} on, such as 256")
        chunk = min(chunk, edge)
        block = _cut(edge, shape, chunk)
        self._check_fits(block, max_memory)
        return block, chunk

    def largest_block(self, shape: ShapeZYX, chunk: int, max_memory: float) -> ShapeZYX:
        """Shape (z, y, x) of the largest block of whole chunks within the memory (GB), no longer than the volume along any axis.

        Raises:
            SelmaError: not even one chunk fits.
        """
        edges = range(chunk, _MOST_BLOCK + 1, chunk)
        fitting = [edge for edge in edges if self.bytes(_cut(edge, shape, chunk)) <= max_memory * GB]
        if not fitting:
            self._check_fits(_cut(chunk, shape, chunk), max_memory)
        return _cut(fitting[-1], shape, chunk)

    def _check_fits(self, block: ShapeZYX, max_memory: float) -> None:
        needed = self.bytes(block) / GB
        if needed > max_memory:
            size = "×".join(map(str, block))
            raise SelmaError(
                f"--max-memory {max_memory:g}: a block of {size} voxels with this model takes about {needed:.1f} GB; give at least that"
            )


def _cut(edge: int, shape: ShapeZYX, chunk: int) -> ShapeZYX:
    """A cube of whole chunks; along an axis where the volume is shorter it ends with the volume's last chunk."""
    z, y, x = (min(edge, -(-length // chunk) * chunk) for length in shape)
    return z, y, x


def chunk_edge(shape: ShapeZYX) -> int:
    """Edge of a chunk, voxels: the cube that a viewer reads at once."""
    return 128 if max(shape) > 2048 else 64 if max(shape) > 256 else 32

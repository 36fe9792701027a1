"""Memory of a prediction, and the largest blocks that a limit allows."""

from dataclasses import dataclass
from itertools import product
from math import prod

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.model import Model
from nnunet_selma.volumes.base import ShapeZYX

GB = 10**9
BASE_BYTES = 1.0 * GB
"""Python with PyTorch and nnU-Net."""
_ACTIVATIONS = 8
"""Feature maps of full resolution that live at once while a tile is computed; the widest stages are those of the decoder."""
_MOST_ACROSS = 2048
"""Longest edge of a block across its column, voxels; wider ones save hardly any tile, and a killed run loses more."""
READ_PLANES = 64
"""Most planes that are read and normalised together (`block_prediction`)."""
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
    kept: int = 0
    """Bytes of decoded chunks that the files of the volume keep."""
    along: int = 0
    """Axis of the volume along which blocks of a column lie one behind the other."""

    @staticmethod
    def for_model(
        model: Model,
        axes: tuple[int, int, int],
        voxel_bytes: int,
        probabilities: bool,
        scale: tuple[float, float, float],
        kept: int = 0,
    ) -> "MemoryPlan":
        """The plan for a model whose axes are these of the volume; the other arguments are the fields of the same name."""
        architecture = model.configuration["architecture"]["arch_kwargs"]
        features = architecture.get("features_per_stage") or [32]
        tile = [0, 0, 0]
        for edge, axis in zip(model.tile, axes, strict=True):
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
            kept=kept,
            along=axes[0],
        )

    def bytes(self, block: ShapeZYX) -> float:
        """Peak memory of predicting blocks of a shape (z, y, x) one after another.

        While one block is predicted, the image of the next one is read, and the labels or logits of the last one are written. The first
        block of a column takes the image of all its tiles, a block that follows that of new tiles only.
        """
        along, resampled = self.along, self.scale != (1.0, 1.0, 1.0)
        edges = [edge * s + 2 for edge, s in zip(block, self.scale, strict=True)]
        depth, tile = edges[along], self.tile[along]
        face = prod(edges) / depth
        around = prod(e + 2 * t for axis, (e, t) in enumerate(zip(edges, self.tile, strict=True)) if axis != along)
        images = 4 * self.channels * around * (2 * depth + 3 * tile)
        if resampled:  # a channel in float64, resampled within planes, and across them
            image = around * (depth + tile)
            source = image / prod(self.scale)
            images += self.channels * source * 4 + 8 * (source + image)
        else:
            images += self.channels * around * READ_PLANES * (self.voxel_bytes + 4)
        # of each fold, and once more while those of one fold are moved on; of weights
        sums = 2 * (self.heads * (self.folds + 1) + 1) * face * (depth + tile)
        logits = 2 * self.heads * face * depth * (1 + (self.folds > 1) + resampled)
        way_back = resampled * (8 * (face * depth + prod(block)) + 2 * self.heads * prod(block))
        results = prod(block) * (4 + self.probabilities * self.heads * 3)
        network = prod(self.tile) * (self.features * 4 * _ACTIVATIONS + self.heads * 12)
        # of each fold, in the network, and of a checkpoint that is loaded
        weights = self.weights * (self.folds + 2)
        return BASE_BYTES + self.kept + images + sums + logits + way_back + results + network + weights

    def choose_block(self, shape: ShapeZYX, edge: int | None, max_memory: float) -> tuple[ShapeZYX, int]:
        """Shape of the blocks of a volume (z, y, x), and the edge of the chunks that they are made of, in voxels.

        Args:
            shape: shape of the volume (z, y, x).
            edge: edge of a block, voxels; None for blocks as wide as the memory allows, and about as long as a tile along their column.
            max_memory: GB.

        Raises:
            SelmaError: the edge is no power of two, or a block does not fit.
        """
        chunk = chunk_edge(shape)
        if edge is None:
            return self.widest_block(shape, chunk, max_memory), chunk
        if edge < _LEAST_BLOCK or edge & (edge - 1):
            raise SelmaError(f"--block {edge}: give a power of two from {_LEAST_BLOCK} on, such as 256")
        chunk = min(chunk, edge)
        block = self._cut(edge, edge, shape, chunk)
        self._check_fits(block, max_memory)
        return block, chunk

    def widest_block(self, shape: ShapeZYX, chunk: int, max_memory: float) -> ShapeZYX:
        """Shape (z, y, x) of the block of whole chunks, within the memory (GB), whose columns share the fewest tiles.

        Raises:
            SelmaError: not even one chunk fits.
        """
        tile = self.tile[self.along] / self.scale[self.along]
        # a halo around each block is resampled twice, so that those are made longer
        depth = chunk * max(1, round(tile / chunk)) * (1 if self.scale == (1.0, 1.0, 1.0) else 2)
        for length in sorted({depth, chunk}, reverse=True):
            blocks = self._blocks_of(length, shape, chunk)
            fitting = [block for block in blocks if self.bytes(block) <= max_memory * GB]
            if fitting:
                return min(fitting, key=lambda block: self._tiled_area(block, shape))
        smallest = self._cut(chunk, chunk, shape, chunk)
        self._check_fits(smallest, max_memory)
        return smallest

    def _blocks_of(self, length: int, shape: ShapeZYX, chunk: int) -> set[ShapeZYX]:
        """Blocks of a length along their column, for every number of columns along the other axes."""
        first, second = (axis for axis in range(3) if axis != self.along)
        widths = range(chunk, _MOST_ACROSS + 1, chunk)
        cuts = [self._cut(length, width, shape, chunk) for width in widths]
        blocks = set()
        for edge, other in product({cut[first] for cut in cuts}, {cut[second] for cut in cuts}):
            block = list(cuts[0])
            block[first], block[second] = edge, other
            blocks.add((block[0], block[1], block[2]))
        return blocks

    def _tiled_area(self, block: ShapeZYX, shape: ShapeZYX) -> float:
        """Area that the tiles of all columns cover, in tiles."""
        columns = [-(-whole // edge) for whole, edge in zip(shape, block, strict=True)]
        return prod(
            (whole * self.scale[axis] + columns[axis] * self.tile[axis]) / self.tile[axis]
            for axis, whole in enumerate(shape)
            if axis != self.along
        )

    def _cut(self, length: int, widest: int, shape: ShapeZYX, chunk: int) -> ShapeZYX:
        """A block of whole chunks of a length along its column; columns of at most a width share the volume evenly."""
        edges = []
        for axis, whole in enumerate(shape):
            most = max(chunk, (length if axis == self.along else widest) // chunk * chunk)
            even = most if axis == self.along else -(-whole // -(-whole // most))
            edges.append(min(-(-even // chunk), -(-whole // chunk)) * chunk)
        z, y, x = edges
        return z, y, x

    def _check_fits(self, block: ShapeZYX, max_memory: float) -> None:
        needed = self.bytes(block) / GB
        if needed > max_memory:
            size = "×".join(map(str, block))
            raise SelmaError(
                f"--max-memory {max_memory:g}: a block of {size} voxels with this model takes about {needed:.1f} GB; give at least that"
            )


def chunk_edge(shape: ShapeZYX) -> int:
    """Edge of a chunk, voxels: the cube that a viewer reads at once."""
    return 128 if max(shape) > 2048 else 64 if max(shape) > 256 else 32

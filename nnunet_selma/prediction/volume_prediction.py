"""Settings that decide the result of a prediction, and the largest block that the memory allows."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.model import Model, ModelSettings
from nnunet_selma.volumes import OnBadSlice
from nnunet_selma.volumes.base import ShapeZYX
from nnunet_selma.volumes.ome_zarr_writing import OmeZarrVersion

GB = 10**9
BASE_BYTES = 1.0 * GB
"""Python with PyTorch and nnU-Net."""
_ACTIVATIONS = 8
"""Feature maps of full resolution that live at once while a tile is computed; the widest stages are those of the decoder."""
_MOST_BLOCK = 1024
"""Voxels; with larger blocks hardly a tile less is computed twice, and a killed run loses more."""


@dataclass(frozen=True, kw_only=True)
class VolumePrediction:
    """One prediction of one volume."""

    inputs: tuple[Path, ...]
    """The volume, or its channels in the order of the model's."""
    channels: tuple[int, ...] | None = None
    """Channels of a file with several, from 0, in the order of the model's inputs; None: the first ones."""
    output: Path
    model: ModelSettings
    spacing_um_zyx: tuple[float, float, float] | None = None
    """Voxel size, µm; None: that of the file."""
    level: int = 0
    """Resolution level of an OME-Zarr; 0 is the finest."""
    on_bad_slice: OnBadSlice = "error"
    """A slice that is missing or unreadable: stop, or interpolate from its neighbours."""
    tissue_only: bool = True
    """Leave out blocks without tissue."""
    mask: Path | None = None
    """Predict only where this volume is above 0; it has any resolution and the same field of view; None: where there is tissue."""
    probabilities: bool = False
    """Write probabilities too, 0 to 255: OUT_probabilities.ome.zarr."""
    raw: bool = True
    """Put the image beside the labels."""
    name: str = "segmentation"
    """Name of the label image."""
    version: OmeZarrVersion = "0.5"
    """Version of the OME-Zarr."""
    block: int | None = None
    """Edge of a block, voxels; None: as large as the memory allows."""
    max_memory: float = 16.0
    """Memory of this process, GB."""

    @property
    def beside_input(self) -> bool:
        """True if the labels go into the OME-Zarr that is predicted."""
        return len(self.inputs) == 1 and self.output.resolve() == self.inputs[0].resolve()

    @property
    def staging(self) -> Path:
        """Where the run lies until it is complete."""
        suffix = f"_{self.name}" if self.beside_input else ""
        return self.output.parent / f".{self.output.name}{suffix}.partial"

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        content = asdict(self)
        content["inputs"] = [str(one.resolve()) for one in self.inputs]
        content["output"] = str(self.output.resolve())
        content["mask"] = None if self.mask is None else str(self.mask.resolve())
        content["model"] = {
            **content["model"],
            "folder": str(self.model.folder.resolve()),
            "folds": list(self.model.folds),
        }
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain

    @property
    def products(self) -> dict[str, Path]:
        """Part of the run's folder to what it may become; the labels last."""
        near = self.output.parent / re.sub(r"(\.ome)?\.zarr$", "", self.output.name)
        labels = {f"output/labels/{self.name}": self.output / "labels" / self.name}
        return {
            "probabilities": near.with_name(f"{near.name}_probabilities.ome.zarr"),
            "tiff": near.with_name(f"{near.name}_{self.name}"),
            **(labels if self.beside_input else {"output": self.output}),
        }

    @property
    def record(self) -> Path:
        """The JSON beside the output that says how it was made."""
        tiff = self.products["tiff"]
        return tiff.with_name(f"{tiff.name}.json")

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "VolumePrediction":
        """The reverse of `as_json`."""
        model = content["model"]
        spacing = content["spacing_um_zyx"]
        return VolumePrediction(
            **{
                **content,
                "inputs": tuple(Path(one) for one in content["inputs"]),
                "output": Path(content["output"]),
                "mask": None if content["mask"] is None else Path(content["mask"]),
                "model": ModelSettings(**{**model, "folder": Path(model["folder"]), "folds": tuple(model["folds"])}),
                "spacing_um_zyx": None if spacing is None else tuple(spacing),
                "channels": None if content["channels"] is None else tuple(content["channels"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory that a block of a model takes."""

    channels: int
    voxel_bytes: int
    """Bytes of a voxel of one channel of the image."""
    heads: int
    tile: ShapeZYX
    """Edges along the axes of the volume."""
    features: int
    """Features of the network's first stage."""
    folds: int = 1
    weights: int = 0
    """Bytes of one fold's."""
    probabilities: bool = False
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Network voxels along an axis for one of the volume."""

    @staticmethod
    def of(model: Model, voxel_bytes: int, probabilities: bool, scale: tuple[float, float, float]) -> "MemoryPlan":
        """For a model."""
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
        """Peak memory of predicting blocks of so many voxels, with the next block's image and the last one's logits and labels beside it."""
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

    def block(self, shape: ShapeZYX, chunk: int, max_memory: float) -> ShapeZYX:
        """The largest block of whole chunks within the memory, no longer than the volume along any axis.

        Raises:
            SelmaError: not even one chunk fits.
        """
        edges = range(chunk, _MOST_BLOCK + 1, chunk)
        fitting = [edge for edge in edges if self.bytes(cut(edge, shape, chunk)) <= max_memory * GB]
        if not fitting:
            self.check_fits(cut(chunk, shape, chunk), max_memory)
        return cut(fitting[-1], shape, chunk)

    def check_fits(self, block: ShapeZYX, max_memory: float) -> None:
        """Raise `SelmaError` where a block takes more than the memory."""
        needed = self.bytes(block) / GB
        if needed > max_memory:
            size = "×".join(map(str, block))
            raise SelmaError(
                f"--max-memory {max_memory:g}: a block of {size} voxels with this model takes about {needed:.1f} GB; give at least that"
            )


def cut(edge: int, shape: ShapeZYX, chunk: int) -> ShapeZYX:
    """A cube of whole chunks, cut where the volume ends before it does."""
    z, y, x = (min(edge, -(-length // chunk) * chunk) for length in shape)
    return z, y, x


def chunk_edge(shape: ShapeZYX) -> int:
    """Edge of a chunk: what a viewer reads at once, and what blocks are made of."""
    return 128 if max(shape) > 2048 else 64 if max(shape) > 256 else 32

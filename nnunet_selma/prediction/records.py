"""Records that a run keeps as JSON: facts about the volume and the grids, one record for each block, and the result."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_selma.running.fingerprints import Contents
from nnunet_selma.volumes.base import ShapeZYX


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything besides the settings that decides the result, and the sizes of blocks and slabs."""

    shape: ShapeZYX
    """Shape of the volume, voxels (z, y, x)."""
    dtype: str
    """Type in which the image is kept, as numpy names it."""
    channels: int
    """Channels of the image."""
    spacing_um_zyx: tuple[float, float, float] | None
    """Voxel size, µm (z, y, x); None where it is not known."""
    model: str
    """Fingerprint of the model."""
    block: ShapeZYX
    """Shape of a block, voxels (z, y, x)."""
    chunk: int
    """Edge of a chunk of the output, voxels."""
    in_voxels: bool
    """True if the model was trained in units of voxels; the voxel size is then ignored."""
    slab: int
    """Slices that are read together."""
    rows: int
    """Lines of a slice that are read together."""
    copied: bool
    """True if the image is copied into chunks, from which blocks are read."""
    precision: str
    """`half` on a GPU and `single` elsewhere; blocks of both do not belong into one result."""
    versions: Mapping[str, str]
    """Version of each library that the result depends on."""
    axes: tuple[int, int, int] = (0, 1, 2)
    """Axis of the volume that becomes each axis of the network; blocks that lie one behind the other along the first one are a column."""
    flips: tuple[bool, bool, bool] = (False, False, False)
    """True for each axis of the volume (z, y, x) that runs the other way for the network."""
    by_image: bool = False
    """True if the statistics of the image reach the network: it is normalised by them, and no instance norm takes them out again."""
    files: Mapping[str, Contents] = field(default_factory=dict)
    """Fingerprint of each volume and of the mask; empty in records of earlier versions."""

    def changed(self, now: "RunFacts") -> str | None:
        """Name and both values of the first fact about the volume or the model that differs; None if the result would be the same.

        Sizes of blocks and slabs do not change the result, and fingerprints are compared by `Sources`.
        """
        apart = ("model", "block", "chunk", "slab", "rows", "files")
        stored = {name: value for name, value in self.as_json().items() if name not in apart}
        return first_difference(stored, now.as_json())

    def as_json(self) -> dict[str, Any]:
        """Content for a JSON file."""
        content = asdict(self)
        return plain({("in voxels" if key == "in_voxels" else key): value for key, value in content.items()})

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "RunFacts":
        """Facts from the content of a JSON file."""
        fields = {key.replace(" ", "_"): value for key, value in with_tuples(content).items()}
        files = {name: Contents.from_json(value) for name, value in content.get("files", {}).items()}
        return RunFacts(**{**fields, "files": files})


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """Record of one block that was predicted or skipped."""

    tiles: int = 0
    """Tiles that the network computed for it and not for the block before it."""
    foreground: int = 0
    """Voxels above 0 in the result."""
    seconds: float = 0.0
    """Time that the network took."""
    predicted: bool = False
    """False for a block without tissue."""
    half: bool = True
    """False if sums in half precision overflowed, so that the block was computed again in single precision."""


@dataclass(frozen=True, kw_only=True)
class PredictionResult:
    """Result of a prediction in numbers."""

    voxels: int
    """Voxels of the volume."""
    foreground: int
    """Voxels above 0."""
    tissue_share: float
    """Share of the volume that was predicted; the rest is background."""
    blocks: int
    blocks_without_tissue: int
    tiles: int
    """Tiles that the network computed; those that two columns of blocks share count twice."""
    seconds_of_prediction: float
    """Time that the network took, over all processes."""
    seconds_of_the_last_call: float
    """Time that the call took that completed the run."""
    blocks_in_single_precision: int = 0
    """Blocks whose sums overflowed in half precision, and that were computed again in single precision."""

    def as_json(self) -> dict[str, Any]:
        """Content for a JSON file, whose keys have spaces."""
        return {key.replace("_", " "): value for key, value in asdict(self).items()}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "PredictionResult":
        """Result from the content of a JSON file."""
        return PredictionResult(**{key.replace(" ", "_"): value for key, value in content.items()})


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as a JSON file gives it back: lists for tuples, absolute paths as text."""
    result: dict[str, Any] = json.loads(json.dumps(content, default=_absolute))
    return result


def first_difference(stored: Any, asked: Any, name: str = "") -> str | None:
    """Name and both values of the first entry that differs; None if there is none."""
    if not (isinstance(stored, dict) and isinstance(asked, dict)):
        return None if stored == asked else f"{name} ({stored} there, {asked} now)"
    differences = (first_difference(stored[key], asked.get(key), key.replace("_", " ")) for key in stored)
    return next((difference for difference in differences if difference), None)


def with_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with tuples for lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def _absolute(path: Path) -> str:
    return str(path.resolve())

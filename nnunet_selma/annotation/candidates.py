"""Candidates for annotation: boxes of a grid that hold tissue, and what they look like.

A few slices of every box are read for its tissue and brightness (`conversion/tiles.py`). A pool of candidates, spread evenly over brains and
over their regions, is read in part for the response to bright blobs and tubes (`pretraining/structure_response.py`). Memory: one slice, and
the middle slices of the candidates of one layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from nnunet_selma.annotation.brains import Brain
from nnunet_selma.conversion.channel_files import volume_path
from nnunet_selma.conversion.tiles import has_signal, tissue_map
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.morphology.tissue import intensity_unit, log_intensity
from nnunet_selma.pretraining.structure_response import structure_response
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX

_LEAST_TISSUE = 0.25
"""Least share of tissue in a candidate."""
_LOOKED_AT: ShapeZYX = (32, 256, 256)
"""Middle of a candidate that the structure response is computed on, voxels at most."""
_SCALES = (1.5, 3.0)
"""Standard deviations of the Gaussian before second derivatives, voxels along the finest axis: cells and vessels at a few µm."""
_PERCENTILE = 99.0
"""Percentile of the response over a candidate: structures fill few of its voxels."""

Region = tuple[int, int, int]
"""Half of the tissue along z, y and x: 0 the first, 1 the second."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A box of a brain."""

    brain: str
    """Name of the brain, with the scene and time point of files with several."""
    path: str
    """Path of the brain, the same for files of its channels, with the scene and time point of files with several."""
    start: SpacingUm
    """First voxel (z, y, x), in voxels of the finest level."""
    stop: SpacingUm
    """End, in voxels of the finest level."""

    def touches(self, other: "Place") -> bool:
        """True if the boxes share voxels, a face, an edge or a corner; brains are the same if their names or their files are."""
        if self.brain != other.brain and self.path != other.path:
            return False
        return all(a <= d and c <= b for a, b, c, d in zip(self.start, self.stop, other.start, other.stop, strict=True))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A box that may be annotated."""

    brain: Brain
    start: ShapeZYX
    """First voxel (z, y, x)."""
    shape: ShapeZYX
    """Length along each axis, voxels."""
    place: Place
    region: Region
    tissue: float
    """Share of tissue."""
    brightness: float
    """Mean log intensity of the tissue."""
    response: float = 0.0
    """Structure response; 0 before it is measured."""

    @property
    def box(self) -> Box:
        """The candidate as slices (z, y, x)."""
        z, y, x = (slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))
        return z, y, x


def place_of(
    name: str, path: str, suffix: str, start: Sequence[int], shape: Sequence[int], factor: Sequence[float]
) -> Place:
    """The place of a box, given in voxels of a level whose voxels are `factor` voxels of the finest one along each axis."""
    first = tuple(s * f for s, f in zip(start, factor, strict=True))
    end = tuple((s + n) * f for s, n, f in zip(start, shape, factor, strict=True))
    return Place(brain=name + suffix, path=volume_path(path) + suffix, start=first, stop=end)  # type: ignore[arg-type]


def image_suffix(scene: str | None, time: int | None) -> str:
    """Scene and time point as an ending for the name of a brain; empty for files with a single image."""
    return "".join(f", {word} {value}" for word, value in (("scene", scene), ("time", time)) if value is not None)


def candidates_of(brain: Brain, size: int, suffix: str = "", progress: Progress[Any] = silent) -> list[Candidate]:
    """The boxes of a brain that hold tissue and signal.

    Raises:
        SelmaError: there is none, or a slice cannot be read.
    """
    tissue = tissue_map(brain.first, size, progress)
    kept = np.flatnonzero(has_signal(tissue, _LEAST_TISSUE))
    if not len(kept):
        raise SelmaError(
            f"{brain.path}: no cube of {size} voxels holds {_LEAST_TISSUE:.0%} tissue; choose a smaller --size"
        )
    starts = np.array([tissue.tiles[i].start for i in kept])
    middle = (starts.min(0) + starts.max(0)) / 2
    factor = brain.first.level_factor_zyx
    candidates = []
    for i, start in zip(kept, starts, strict=True):
        tile = tissue.tiles[i]
        z, y, x = (int(at > half) for at, half in zip(start, middle, strict=True))
        candidates.append(
            Candidate(
                brain=brain,
                start=tile.start,
                shape=tile.shape,
                place=place_of(brain.name, str(brain.path), suffix, tile.start, tile.shape, factor),
                region=(z, y, x),
                tissue=float(tissue.foreground[i]),
                brightness=float(tissue.brightness[i]),
            )
        )
    return candidates


def draw_pool(candidates: Sequence[Sequence[Candidate]], count: int, rng: np.random.Generator) -> list[Candidate]:
    """Draw candidates evenly over brains, and over the regions of each; brains and regions with few leave their share to the others.

    Args:
        candidates: the candidates of each brain.
        count: candidates to draw.
        rng: source of chance.
    """
    queues = []
    for of_brain in candidates:
        regions = {candidate.region: list[Candidate]() for candidate in of_brain}
        for i in rng.permutation(len(of_brain)):
            regions[of_brain[i].region].append(of_brain[i])
        order = [list(regions.values())[i] for i in rng.permutation(len(regions))]
        queues.append([c for turn in zip_longest(*order) for c in turn if c is not None])
    return [c for turn in zip_longest(*queues) for c in turn if c is not None][:count]


def with_responses(pool: Sequence[Candidate], progress: Progress[Any] = silent) -> list[Candidate]:
    """The candidates with their structure response, in the same order."""
    responses = {}
    for brain in {candidate.brain.name: candidate.brain for candidate in pool}.values():
        numbers = [i for i, candidate in enumerate(pool) if candidate.brain.name == brain.name]
        boxes = [_middle(pool[i]) for i in numbers]
        unit = intensity_unit(brain.first)
        reading = brain.read_boxes(boxes, only_first=True)
        for _ in progress(numbers, f"looking for structure in {brain.name}"):
            at, voxels = next(reading)
            patch = torch.from_numpy(log_intensity(voxels, unit))[None]
            response = structure_response(patch, brain.spacing_um_zyx, scales=_SCALES)
            responses[numbers[at]] = float(np.percentile(response.numpy(), _PERCENTILE))
    return [replace(candidate, response=responses[i]) for i, candidate in enumerate(pool)]


def _middle(candidate: Candidate) -> Box:
    """The middle of a candidate, at most `_LOOKED_AT` voxels."""
    edges = [min(most, length) for most, length in zip(_LOOKED_AT, candidate.shape, strict=True)]
    first = [s + (n - e) // 2 for s, n, e in zip(candidate.start, candidate.shape, edges, strict=True)]
    z, y, x = (slice(a, a + e) for a, e in zip(first, edges, strict=True))
    return z, y, x

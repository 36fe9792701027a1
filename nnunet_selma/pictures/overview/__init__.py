"""Data of a picture of a whole segmentation: projections along three axes, where objects are, and how large.

The objects come from the table that `nnunet-selma objects` wrote, or are measured here. With a table, the projections are drawn from a
coarse resolution of an OME-Zarr, and the finest is not read; without one, the pass that measures the objects draws them too. Memory: a
block and the pictures, as `projections` says, and the objects, as `objects.measuring` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.objects.measuring import find_objects
from nnunet_selma.objects.reading import Sources
from nnunet_selma.objects.table import Objects, read_objects
from nnunet_selma.pictures.overview.density import DensityMap, density_map
from nnunet_selma.pictures.overview.projected_labels import ProjectedLabels, project_labels
from nnunet_selma.pictures.overview.projections import VOXEL, Pictures, project_image
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import ShapeZYX
from nnunet_selma.volumes.segmented import Segmented


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Everything that the picture shows."""

    name: str
    shape: ShapeZYX
    """Shape of the segmentation, voxels."""
    spacing_um_zyx: SpacingUm | None
    """Voxel size; None: it is not known, and lengths are voxels."""
    classes: Mapping[int, str]
    """Bit in the projected labels to the name of its class; only classes that occur."""
    labels: Pictures
    """Bits of the classes on each line."""
    shares: Pictures
    """Share of each line that is foreground, 0 to 1."""
    raw: Pictures | None
    """Highest grey value on each line, on a grid of its own; -inf where none is finite. None: there is no image."""
    objects: Objects
    density: DensityMap

    @property
    def voxel(self) -> SpacingUm:
        """Voxel size, µm; 1 if it is not known."""
        return self.spacing_um_zyx or VOXEL

    @property
    def extent_zyx(self) -> tuple[float, float, float]:
        """Size of the volume, µm; voxels if the voxel size is not known."""
        z, y, x = (n * s for n, s in zip(self.shape, self.voxel, strict=True))
        return z, y, x

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Volume of each object, (n,), µm³; voxels if the voxel size is not known."""
        sizes: NDArray[np.float64] = self.objects.voxels * np.prod(self.voxel)
        return sizes

    @property
    def foreground(self) -> float:
        """Share of the volume that the objects take, 0 to 1."""
        return float(self.objects.voxels.sum() / np.prod(self.shape))


def overview(
    segmented: Segmented,
    *,
    spacing_um_zyx: SpacingUm | None = None,
    table: Path | None = None,
    channel: int = 0,
    progress: Progress[Any] = silent,
) -> Overview:
    """Compute what the picture of a segmentation shows.

    Args:
        segmented: a segmentation, and its image if there is one.
        spacing_um_zyx: voxel size, instead of the one in the files.
        table: objects of the segmentation, as `nnunet-selma objects` writes them; None: they are measured here.
        channel: channel of the image that is shown, from 0.
        progress: shows how far the work is.

    Raises:
        SelmaError: a part cannot be read, it is no segmentation, there is no such channel, or the table is of another volume.
    """
    volume = segmented.labels[0]
    if segmented.channels and not 0 <= channel < len(segmented.channels):
        raise SelmaError(f"--channel {channel}: the image has the channels 0 to {len(segmented.channels) - 1}")
    image = segmented.channels[channel] if segmented.channels else ()
    of_image = next((level.spacing_um_zyx for level in image if level.shape == volume.shape), None)
    spacing = spacing_um_zyx or volume.spacing_um_zyx or of_image
    voxel = spacing or VOXEL
    if table:
        objects = read_objects(table, volume.shape)
        labels = project_labels(segmented.labels, objects, voxel, progress)
    else:
        labels = ProjectedLabels(volume.shape, voxel)
        objects, _ = find_objects(
            Sources(labels=volume),
            progress=progress,
            also=lambda block, values: labels.add(block.start, values[block.core]),
        )
    return Overview(
        name=segmented.name,
        shape=volume.shape,
        spacing_um_zyx=spacing,
        classes=labels.classes(segmented.classes),
        labels=labels.pictures,
        shares=labels.shares,
        raw=project_image(image, volume.shape, voxel, progress) if image else None,
        objects=objects,
        density=density_map(objects, labels, volume.shape, spacing),
    )

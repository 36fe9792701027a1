"""A table of the objects of a segmentation of any size: their volume, place, intensity and region, and what they are together.

Passes over the blocks: (1) components are found and measured, and the table is written, (2) topology, (3) skeletons, where trees are asked
for, (4) numbers of instances, where they are asked for. Memory: a block and what is computed of it (0.7 GB where it holds little, 1.5 GB
where it is full), slabs of slices (`reading`) and the objects (`table`). It does not grow with the volume otherwise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Block, blocks
from nnunet_selma.morphology.components import Connectivity
from nnunet_selma.objects.atlas import Atlas, open_atlas, read_region_names, region_table, regions_of
from nnunet_selma.objects.instances import InstanceImage, check_free, write_instances
from nnunet_selma.objects.reading import Sources, open_sources
from nnunet_selma.objects.summary import HALO, counts, topology, trees
from nnunet_selma.objects.table import MeasuredComponents, Objects
from nnunet_selma.objects.writing import Columns, check_writable, write_table
from nnunet_selma.running.json_files import read_json, without_nan, write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX


@dataclass(frozen=True, kw_only=True)
class ObjectSettings:
    """Options for measuring and writing objects."""

    labels: Path
    """Any volume of labels, or an OME-Zarr image with label images."""
    output: Path
    """The table, .csv or .parquet; a summary of the same name, .json, lies beside it."""
    label: str | None = None
    """Label image of an OME-Zarr that holds several."""
    raw: Path | None = None
    """The image whose intensities are measured; None: that of the OME-Zarr, if there is one."""
    without_raw: bool = False
    """Measure no intensities."""
    channel: int | None = None
    """Channel of an image with several, from 0."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size, µm; None: that of the file."""
    connectivity: Connectivity = 26
    """Neighbours of a voxel: 6 share a face with it, 26 a face, an edge or a corner."""
    min_voxels: int = 1
    """Voxels of the smallest object that is listed."""
    max_voxels: int | None = None
    """Voxels of the largest object that is listed."""
    trees: bool = False
    """Measure length and branch points of the skeletons. Networks that span a brain need labels in chunks (OME-Zarr); slices are read many times."""
    instances: Path | None = None
    """OME-Zarr to write with the number of its object at every voxel; IMAGE.ome.zarr/labels/NAME adds it to an image."""
    overwrite: bool = False
    """Replace instances that are there."""
    atlas: Path | None = None
    """Region numbers; without a transform over the same field of view as the labels, at any resolution."""
    transform: Path | None = None
    """From the sample (fixed image) to the atlas (moving image), as ITK and ANTs write it; NIfTI, NRRD and MHA lie where their headers say, other labels begin at 0."""
    atlas_spacing_um_zyx: SpacingUm | None = None
    """Voxel size of the atlas, µm; None: that of the file."""
    region_names: Path | None = None
    """CSV with the columns id and name."""
    regions: Path | None = None
    """Table of regions to write; None: TABLE_regions.csv."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.min_voxels < 1 or (self.max_voxels is not None and self.max_voxels < self.min_voxels):
            raise SelmaError("--min-voxels is at least 1, and --max-voxels no less than --min-voxels")
        of_atlas = {
            "--transform": self.transform,
            "--atlas-spacing": self.atlas_spacing_um_zyx,
            "--region-names": self.region_names,
            "--regions": self.regions,
        }
        given = [option for option, value in of_atlas.items() if value is not None]
        if self.atlas is None and given:
            raise SelmaError(f"{given[0]} is for an atlas: give it with --atlas FILE")
        if self.region_table == self.output:
            raise SelmaError(f"{self.output}: cannot hold objects and regions; give --regions another name")

    @property
    def summary(self) -> Path:
        """Where the summary lies."""
        return self.output.with_suffix(".json")

    @property
    def region_table(self) -> Path:
        """Where the table of regions lies."""
        return self.regions or self.output.with_name(f"{self.output.stem}_regions.csv")


def measure_objects(settings: ObjectSettings, progress: Progress[Any] = silent) -> dict[str, Any]:
    """Write the table of objects, its summary, and what else is asked for; returns the summary.

    Raises:
        SelmaError: something cannot be read or written; what can be known before the first pass is said before it.
    """
    check_writable(settings.output)
    sources = open_sources(
        settings.labels,
        name=settings.label,
        raw=settings.raw,
        without_raw=settings.without_raw,
        channel=settings.channel,
    )
    instances = settings.instances and settings.instances.resolve()
    if instances is not None:
        check_free(instances, sources.paths, sources.labels.shape, overwrite=settings.overwrite)
    spacing = settings.spacing_um_zyx or sources.spacing_um_zyx
    regions = _Regions.of(settings, sources.labels.path, spacing)
    if settings.summary.is_file() and "betti" not in read_json(settings.summary):
        raise SelmaError(
            f"{settings.summary}: would be replaced by the summary of the table, and is none; give -o another name"
        )
    shape, edge = sources.labels.shape, sources.edge
    parts = list(blocks(shape, edge))
    found, which = _find(sources, parts, settings.connectivity, progress)
    kept = (found.voxels >= settings.min_voxels) & (found.voxels <= (settings.max_voxels or np.inf))
    objects, left_out = found.of(kept), int(np.count_nonzero(~kept))
    columns = table_of(objects, shape, spacing)
    if regions is not None:
        columns["region"] = regions.write(objects)
    settings.summary.unlink(missing_ok=True)  # of another table
    write_table(settings.output, columns)
    betti = topology(sources.read_labels, shape, edge, progress)
    skeletons = trees(sources.read_labels, shape, edge, spacing, progress) if settings.trees else None
    if instances is not None:
        ids = np.where(kept, np.cumsum(kept), 0)[which]
        target = InstanceImage(
            path=instances, shape=shape, edge=edge, spacing_um_zyx=spacing, connectivity=settings.connectivity
        )
        write_instances(target, sources.read_labels, parts, ids, progress)
    notes = [*_notes(settings, spacing, left_out, skeletons), *(regions.notes(shape, columns) if regions else ())]
    summary: dict[str, Any] = without_nan(
        {
            **_description(settings, sources, spacing),
            **counts(objects, left_out, shape, spacing, sources.classes),
            "betti": betti._asdict(),
            "trees": skeletons,
            "notes": notes,
        }
    )
    write_json(settings.summary, summary)
    return summary


def _find(
    sources: Sources, parts: Sequence[Block], connectivity: Connectivity, progress: Progress[Any]
) -> tuple[Objects, NDArray[np.int64]]:
    """The first pass."""
    measured = MeasuredComponents(connectivity)
    read, read_raw = sources.read_labels, sources.read_raw
    for block in progress(parts, "objects"):
        try:
            measured.add(block, read(*block.box), read_raw(*block.box) if read_raw else None)
        except ValueError as error:
            raise SelmaError(
                f"{sources.labels.path}: looks like an image, not like labels ({error}); give the segmentation, and the image with --raw"
            ) from error
    return measured.finish()


def table_of(objects: Objects, shape: ShapeZYX, spacing_um_zyx: SpacingUm | None) -> dict[str, Array]:
    """The columns of the table, in raster order of the objects' first voxels; NaN where something is not known."""
    spacing = spacing_um_zyx or (np.nan,) * 3
    columns: dict[str, Array] = {
        "id": np.arange(1, len(objects) + 1),
        "label": objects.label,
        "voxels": objects.voxels,
        "volume_um3": objects.voxels * prod(spacing),
    }
    columns |= {f"centroid_{axis}_um": objects.centroid[:, i] * spacing[i] for i, axis in enumerate("zyx")}
    columns |= {f"centroid_{axis}": objects.centroid[:, i] for i, axis in enumerate("zyx")}
    columns |= {f"start_{axis}": objects.start[:, i] for i, axis in enumerate("zyx")}
    columns |= {f"stop_{axis}": objects.stop[:, i] for i, axis in enumerate("zyx")}
    return columns | {
        "mean_intensity": objects.mean_intensity,
        "max_intensity": objects.max_intensity,
        "touches_border": objects.touches_border(shape),
    }


@dataclass(frozen=True, kw_only=True)
class _Regions:
    """An atlas and what becomes of it."""

    atlas: Atlas
    names: dict[int, str]
    sample_um_zyx: SpacingUm
    table: Path

    @staticmethod
    def of(settings: ObjectSettings, labels: Path, spacing: SpacingUm | None) -> "_Regions | None":
        """As the settings want it, for labels that lie at a path; None without an atlas."""
        if settings.atlas is None:
            return None
        if spacing is None:
            raise SelmaError(
                f"{settings.labels}: does not say how large its voxels are, and an atlas is in µm; give the voxel size with --spacing Z,Y,X"
            )
        check_writable(settings.region_table)
        atlas = open_atlas(
            settings.atlas,
            sample=labels,
            sample_um_zyx=spacing,
            transform=settings.transform,
            spacing_um_zyx=settings.atlas_spacing_um_zyx,
        )
        names = read_region_names(settings.region_names) if settings.region_names else {}
        return _Regions(atlas=atlas, names=names, sample_um_zyx=spacing, table=settings.region_table)

    def write(self, objects: Objects) -> NDArray[np.int64]:
        """Write the table of regions; returns the region of each object."""
        regions, sizes = regions_of(self.atlas, objects, self.sample_um_zyx)
        columns: Columns = region_table(self.atlas, sizes, regions, objects, self.sample_um_zyx, self.names)
        write_table(self.table, columns)
        return regions

    def notes(self, shape: ShapeZYX, columns: Columns) -> list[str]:
        """Warnings about an atlas that does not seem to lie on the sample."""
        notes, regions = [], columns["region"]
        extent = [n * s for n, s in zip(shape, self.sample_um_zyx, strict=True)]
        beyond = np.abs(np.subtract(self.atlas.extent_um_zyx, extent)) > np.maximum(
            self.atlas.spacing_um_zyx, self.sample_um_zyx
        )
        if self.atlas.placing is None and beyond.any():
            sizes = (" × ".join(f"{n:.6g}" for n in of) for of in (self.atlas.extent_um_zyx, extent))
            notes.append(
                "the atlas measures {} µm (z, y, x), the sample {}: they are taken to begin at the same corner".format(
                    *sizes
                )
            )
        if len(regions) and not regions.any():
            notes.append(
                "no object lies in a region of the atlas: check that the transform leads from the sample to the atlas, and the voxel sizes"
            )
        return notes


def _description(settings: ObjectSettings, sources: Sources, spacing: SpacingUm | None) -> dict[str, Any]:
    """Record of the measurement: its results and its settings."""
    paths = {name: str(value) for name, value in asdict(settings).items() if isinstance(value, Path)}
    return {
        "version": __version__,
        **paths,
        "labels": str(sources.labels.path),
        "raw": sources.raw and str(sources.raw.path),
        "shape_zyx": list(sources.labels.shape),
        "spacing_um_zyx": spacing and list(spacing),
        "connectivity": settings.connectivity,
        "min_voxels": settings.min_voxels,
        "max_voxels": settings.max_voxels,
    }


def _notes(
    settings: ObjectSettings, spacing: SpacingUm | None, left_out: int, skeletons: dict[str, Any] | None
) -> list[str]:
    notes = []
    if spacing is None:
        notes.append(
            "the voxel size is not known, and columns in µm are empty; give it with --spacing Z,Y,X, or use the columns in voxels"
        )
    if left_out or settings.connectivity == 6:
        what = "β0, β1, β2 and the skeleton" if settings.trees else "β0, β1 and β2"
        notes.append(f"{what} are those of the 26-connected foreground, objects of all sizes included")
    if skeletons and skeletons["pieces"]:
        notes.append(
            f"a component too large to be thinned at once was thinned in pieces ({skeletons['pieces']}), each with {HALO} voxels around it; "
            "where it is not thin against that, its skeleton may not be that of the whole"
        )
    return notes

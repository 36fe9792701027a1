"""Number and density of objects in each region of an atlas.

An object belongs to the region at its centroid. Volumes of regions are counted in voxels of the atlas: if the transform scales, densities
are per mm³ of the atlas, not of the sample. The atlas is read in pieces of at most 1 GB.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.objects.atlas import Atlas
from nnunet_selma.objects.table import MOST_CLASSES, UM3_PER_MM3, Objects
from nnunet_selma.objects.table_files import Columns
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array

OUTSIDE = 0
"""Region number of objects in no region: in the atlas's background, or beyond the atlas."""
_PIECE_BYTES = 2**30


def regions_of(atlas: Atlas, objects: Objects) -> tuple[NDArray[np.int64], dict[int, int]]:
    """The region of each object, (n,), and the number of atlas voxels of each region."""
    at = atlas.voxels_at(objects.centroid)
    regions = np.full(len(at), OUTSIDE, np.int64)
    sizes: dict[int, int] = {}
    for z, voxels in _pieces(atlas):
        here = (at >= (z, 0, 0)).all(axis=1) & (at < np.add(voxels.shape, (z, 0, 0))).all(axis=1)
        regions[here] = voxels[tuple((at[here] - (z, 0, 0)).T)]
        for region, count in zip(*_count_values(voxels), strict=True):
            sizes[int(region)] = sizes.get(int(region), 0) + int(count)
    return regions, sizes


def _pieces(atlas: Atlas) -> Iterator[tuple[int, Array]]:
    """The atlas slab by slab: number of the first slice, and voxels."""
    depth, height, width = atlas.volume.shape
    step = max(1, _PIECE_BYTES // max(1, height * width * atlas.volume.dtype.itemsize))
    for z in range(0, depth, step):
        yield z, atlas.read(slice(z, min(z + step, depth)), slice(0, height), slice(0, width))


def _count_values(voxels: Array) -> tuple[Array, Array]:
    """The values of an array and how often each occurs; sorts runs of equal values instead of voxels, because an atlas has few runs."""
    flat = voxels.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, int)
    values, which = np.unique(flat[starts], return_inverse=True)
    return values, np.bincount(which, np.diff(starts, append=flat.size), minlength=len(values))


def region_table(
    atlas: Atlas,
    sizes: Mapping[int, int],
    regions: NDArray[np.int64],
    objects: Objects,
    sample_um_zyx: SpacingUm,
    names: Mapping[int, str],
) -> Columns:
    """A row for each region and label: objects, the region's volume, objects per mm³ and mean volume of an object.

    Volume and density of `outside` are NaN, and so is the mean volume of no objects. More than 256 labels are numbers of instances: they are
    counted together, as label 0.
    """
    classes = np.unique(objects.label)
    together = not 0 < len(classes) <= MOST_CLASSES
    rows = [OUTSIDE, *sorted(set(sizes) - {OUTSIDE})]
    region, label = (grid.ravel() for grid in np.meshgrid(rows, [0] if together else classes, indexing="ij"))
    place = np.searchsorted(rows, regions)
    if not together:
        place = place * len(classes) + np.searchsorted(classes, objects.label)
    count = np.bincount(place, minlength=len(region))
    voxels = np.bincount(place, objects.voxels, minlength=len(region))
    mm3 = np.array([sizes.get(int(r), 0) for r in region]) * np.prod(atlas.spacing_um_zyx) / UM3_PER_MM3
    mm3[region == OUTSIDE] = np.nan
    mean = np.divide(voxels, count, out=np.full(len(count), np.nan), where=count > 0)
    return {
        "region": region,
        "name": np.array([names.get(int(r), "outside" if r == OUTSIDE else "") for r in region]),
        "label": label,
        "objects": count,
        "region_volume_mm3": mm3,
        "objects_per_mm3": count / mm3,
        "mean_object_volume_um3": mean * np.prod(sample_um_zyx),
    }


def registration_notes(atlas: Atlas, regions: NDArray[np.int64]) -> list[str]:
    """Warnings about an atlas that does not seem to lie on the sample."""
    notes = list(atlas.notes)
    if len(regions) and not regions.any():
        notes.append(
            "no object lies in a region of the atlas: check that the transform leads from the sample to the atlas, and the voxel sizes"
        )
    return notes


def read_region_names(path: Path) -> dict[int, str]:
    """Region number to name, from the columns `id` and `name` of a CSV file; other columns are ignored."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = {"id", "name"} - set(rows.fieldnames or ())
            if missing:
                raise SelmaError(
                    f"{path}: has no column {' and '.join(sorted(missing))}; its first line must name id and name"
                )
            return {int(float(row["id"])): row["name"] for row in rows if row["id"]}
    except (ValueError, UnicodeDecodeError) as error:
        raise SelmaError(
            f"{path}: is no table of region numbers and names ({error}); save it as CSV, UTF-8, with the columns id,name"
        ) from error

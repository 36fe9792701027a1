"""How many objects lie in which region of an atlas that is registered to the sample already.

An object lies where its centroid lies. There are two ways to find the voxel of the atlas there:

- without a transform, the atlas is an array over the same field of view: both begin at the same corner and have the same axes, and only
  their voxel sizes differ. What the atlas's header says of origin and direction is not used, because programs differ in what they write.
- with a transform, as ITK and ANTs write it for the sample as fixed and the atlas as moving image: it takes a physical point of the sample to
  one of the atlas, and the atlas's origin and direction take that to a voxel. Where the labels are a file that ITK reads (NIfTI, NRRD, MHA),
  their header says where the first voxel lies and where its axes point, as it did to the program that registered them. Else a point is
  (x, y, z) from the centre of the first voxel along the axes of the array, in the unit of the atlas's header.

The unit of a header is the millimetre where its voxels are below 1, and else the µm. Volumes of regions are counted in voxels of the atlas:
where the transform scales, densities are per mm³ of the atlas, not of the sample. The atlas is read in pieces of at most 1 GB.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Read
from nnunet_selma.objects.reading import as_labels
from nnunet_selma.objects.table import Objects
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.itk import is_itk_file
from nnunet_selma.volumes.nifti import is_nifti
from nnunet_selma.volumes.units import spacing_from_header, um_in_header_unit

OUTSIDE = 0
"""The region of objects that lie in none: in the atlas's background, or beyond it."""
_PIECE_BYTES = 2**30
_MM_BELOW = 1.0  # an atlas's voxel is never less than a µm nor more than a mm wide
_MOST_LABELS = 256
"""Greatest number of classes of a segmentation that are counted apart; numbers of instances are not classes."""
_UM3_OF_MM3 = 1e9


@dataclass(frozen=True, kw_only=True)
class Placing:
    """From a point of the sample to an index of the atlas, by way of a transform; all of it (x, y, z)."""

    transform: sitk.Transform
    sample_origin: NDArray[np.float64]
    sample_step: NDArray[np.float64]
    """From voxels of the sample to a physical distance, (3, 3)."""
    origin: NDArray[np.float64]
    """Physical position of the atlas's first voxel."""
    to_index: NDArray[np.float64]
    """From a physical distance to voxels of the atlas, (3, 3)."""

    def indices(self, centroid_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous indices (z, y, x) in the atlas of those in the sample, (n, 3)."""
        points = centroid_zyx[:, ::-1] @ self.sample_step.T + self.sample_origin
        mapped = np.array([self.transform.TransformPoint(point) for point in points.tolist()]).reshape(-1, 3)
        indices: NDArray[np.float64] = ((mapped - self.origin) @ self.to_index.T)[:, ::-1]
        return indices


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """A volume of region numbers."""

    volume: Volume
    spacing_um_zyx: SpacingUm
    placing: Placing | None
    """None: it begins where the sample begins."""

    @property
    def read(self) -> Read:
        """Gives boxes of region numbers."""
        return as_labels(self.volume.read, self.volume.path)

    @property
    def extent_um_zyx(self) -> tuple[float, float, float]:
        """Its size."""
        z, y, x = (n * s for n, s in zip(self.volume.shape, self.spacing_um_zyx, strict=True))
        return z, y, x

    def voxels_at(self, centroid: NDArray[np.float64], sample_um_zyx: SpacingUm) -> NDArray[np.int64]:
        """The voxel of the atlas, (n, 3), at voxel indices of the sample, (n, 3); it may lie outside of the atlas."""
        if self.placing is None:
            index = (centroid + 0.5) * sample_um_zyx / self.spacing_um_zyx - 0.5
        else:
            index = self.placing.indices(centroid)
        beyond = np.array(self.volume.shape)  # far away is as good as just outside, and fits an integer
        voxels: NDArray[np.int64] = np.clip(np.floor(index + 0.5), -1, beyond).astype(np.int64)
        return voxels


def open_atlas(
    path: Path,
    *,
    sample: Path,
    sample_um_zyx: SpacingUm,
    transform: Path | None = None,
    spacing_um_zyx: SpacingUm | None = None,
) -> Atlas:
    """Open an atlas; reads no voxels.

    Args:
        path: NIfTI, NRRD or MHA; without a transform any volume.
        sample: the labels that it is registered to.
        sample_um_zyx: their voxel size.
        transform: a file that ITK reads.
        spacing_um_zyx: its voxel size, where the header does not say it, or says something else.

    Raises:
        SelmaError: a file cannot be read, or the voxel size is not known.
    """
    volume = open_volume(path)
    header = _header(path)
    stated = volume.spacing_um_zyx if header is None else _spacing_um(header)
    spacing = spacing_um_zyx or stated
    if spacing is None:
        raise SelmaError(
            f"{path}: does not say how large its voxels are; give the voxel size with --atlas-spacing Z,Y,X in µm"
        )
    if transform is None:
        return Atlas(volume=volume, spacing_um_zyx=spacing, placing=None)
    if header is None or len(header.GetSpacing()) != 3:
        raise SelmaError(
            f"{path}: a transform needs an atlas with an origin; save it as three-dimensional NIfTI, NRRD or MHA"
        )
    ratios = np.array(spacing[::-1]) / header.GetSpacing()
    if np.ptp(ratios) > 1e-3 * ratios.max():
        raise SelmaError(
            f"{path}: --atlas-spacing {','.join(f'{s:g}' for s in spacing)} has other proportions than the header "
            f"({_shown(header.GetSpacing()[::-1])}), "
            "so that the transform's unit is not known; correct the header"
        )
    unit_um = float(ratios.mean())
    sample_origin, sample_step = _placed(sample, sample_um_zyx, unit_um)
    placing = Placing(
        transform=_read_transform(transform),
        sample_origin=sample_origin,
        sample_step=sample_step,
        origin=np.array(header.GetOrigin()),
        to_index=np.linalg.inv(_direction(header) * header.GetSpacing()).astype(np.float64),
    )
    return Atlas(volume=volume, spacing_um_zyx=spacing, placing=placing)


def _placed(sample: Path, sample_um_zyx: SpacingUm, unit_um: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the first voxel of the sample lies, (3,), and what a step along its axes is, (3, 3); (x, y, z) in the unit of its header."""
    header, spacing = _header(sample), np.array(sample_um_zyx[::-1])
    if header is None:
        return np.zeros(3), np.diag(spacing / unit_um)
    if len(header.GetSpacing()) != 3:
        raise SelmaError(
            f"{sample}: a transform needs labels with three axes; save them as three-dimensional NIfTI, NRRD or MHA, or as OME-Zarr"
        )
    unit_um = um_in_header_unit(header.GetSpacing(), mm_below=_MM_BELOW) or unit_um
    return np.array(header.GetOrigin()), _direction(header) * (spacing / unit_um)


def _direction(header: Any) -> NDArray[np.float64]:
    """Directions of the axes (x, y, z) of an image, one per column."""
    return np.array(header.GetDirection(), np.float64).reshape(3, 3)


def _header(path: Path) -> Any:
    """Header of a file that ITK reads, or None where ITK reads no such files."""
    if not (is_nifti(path) or is_itk_file(path)):
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise SelmaError(f"{path}: cannot be read, the file is damaged or no image; copy it again") from error
    return reader


def _spacing_um(header: Any) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) that the header of an atlas states; None where it states none."""
    return spacing_from_header(header.GetSpacing()[2::-1], mm_below=_MM_BELOW)


def _shown(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _read_transform(path: Path) -> sitk.Transform:
    if not path.is_file():
        raise SelmaError(f"{path}: there is no such file; give the transform with --transform")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise SelmaError(
            f"{path}: ITK reads no transform in it; give .tfm, .txt, .mat or .h5, and a displacement field as composite transform (.h5)"
        ) from error
    if transform.GetDimension() != 3:
        raise SelmaError(f"{path}: transforms points of {transform.GetDimension()} axes; one of three is needed")
    return transform


def _pieces(atlas: Atlas) -> Iterator[tuple[int, Array]]:
    """The atlas slab by slab: first slice, voxels."""
    depth, height, width = atlas.volume.shape
    step = max(1, _PIECE_BYTES // max(1, height * width * atlas.volume.dtype.itemsize))
    for z in range(0, depth, step):
        yield z, atlas.read(slice(z, min(z + step, depth)), slice(0, height), slice(0, width))


def regions_of(atlas: Atlas, objects: Objects, sample_um_zyx: SpacingUm) -> tuple[NDArray[np.int64], dict[int, int]]:
    """The region each object lies in, (n,), and how many voxels of the atlas each region has."""
    at = atlas.voxels_at(objects.centroid, sample_um_zyx)
    regions = np.full(len(at), OUTSIDE, np.int64)
    sizes: dict[int, int] = {}
    for z, voxels in _pieces(atlas):
        here = (at >= (z, 0, 0)).all(axis=1) & (at < np.add(voxels.shape, (z, 0, 0))).all(axis=1)
        regions[here] = voxels[tuple((at[here] - (z, 0, 0)).T)]
        for region, count in zip(*_counts(voxels), strict=True):
            sizes[int(region)] = sizes.get(int(region), 0) + int(count)
    return regions, sizes


def _counts(voxels: Array) -> tuple[Array, Array]:
    """Values and how often each occurs; sorts runs of equal values, which are few in an atlas, not voxels."""
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
) -> dict[str, Array]:
    """A row for each region and label: objects, the region's volume, objects per mm³ and mean volume of an object.

    Volume and density of `outside` are NaN, and so is the mean of no objects. Of more than 256 labels, which are then numbers of
    instances, all are counted together, as label 0.
    """
    classes = np.unique(objects.label)
    together = not 0 < len(classes) <= _MOST_LABELS
    rows = [OUTSIDE, *sorted(set(sizes) - {OUTSIDE})]
    region, label = (grid.ravel() for grid in np.meshgrid(rows, [0] if together else classes, indexing="ij"))
    place = np.searchsorted(rows, regions)
    if not together:
        place = place * len(classes) + np.searchsorted(classes, objects.label)
    count = np.bincount(place, minlength=len(region))
    voxels = np.bincount(place, objects.voxels, minlength=len(region))
    mm3 = np.array([sizes.get(int(r), 0) for r in region]) * np.prod(atlas.spacing_um_zyx) / _UM3_OF_MM3
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


def read_region_names(path: Path) -> dict[int, str]:
    """Region number to name, of a CSV file with the columns `id` and `name`; others are not looked at."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            lacking = {"id", "name"} - set(rows.fieldnames or ())
            if lacking:
                raise SelmaError(
                    f"{path}: has no column {' and '.join(sorted(lacking))}; its first line must name id and name"
                )
            return {int(float(row["id"])): row["name"] for row in rows if row["id"]}
    except (ValueError, UnicodeDecodeError) as error:
        raise SelmaError(
            f"{path}: is no table of region numbers and names ({error}); save it as CSV, UTF-8, with the columns id,name"
        ) from error

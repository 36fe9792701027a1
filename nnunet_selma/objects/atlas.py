"""An atlas of brain regions that is registered to the sample already, and the atlas voxel at a point of the sample.

There are two ways to find that voxel:

- without a transform, the atlas is an array over the same field of view: both begin at the same corner and have the same axes, and only
  their voxel sizes differ. Origin and direction in the atlas's header are ignored, because programs differ in what they write.
- with a transform, as ITK and ANTs write it for the sample as fixed and the atlas as moving image: the transform takes a physical point of
  the sample to one of the atlas, and the atlas's origin and direction take that to a voxel. Where the labels are a file that ITK reads
  (NIfTI, NRRD, MHA), physical points follow its header, as they did in the program that registered it. Otherwise a point is (x, y, z) from
  the centre of the first voxel along the axes of the array, in the unit of the atlas's header.

The unit of a header is the millimetre if its voxels are below 1, otherwise the µm.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Read
from nnunet_selma.objects.reading import as_labels
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume
from nnunet_selma.volumes.itk import is_itk_file, itk_name
from nnunet_selma.volumes.nifti import is_nifti
from nnunet_selma.volumes.segmented import open_labels
from nnunet_selma.volumes.units import spacing_from_header, um_in_header_unit

_MM_BELOW = 1.0  # an atlas's voxel is never narrower than a µm nor wider than a mm


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The way from a point of the sample to an index of the atlas, through a transform; all axes are (x, y, z)."""

    transform: sitk.Transform
    sample_origin: NDArray[np.float64]
    """Physical position of the sample's first voxel, (3,)."""
    sample_step: NDArray[np.float64]
    """Matrix from voxels of the sample to a physical distance, (3, 3)."""
    origin: NDArray[np.float64]
    """Physical position of the atlas's first voxel, (3,)."""
    to_index: NDArray[np.float64]
    """Matrix from a physical distance to voxels of the atlas, (3, 3)."""

    def indices(self, centroid_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous indices (z, y, x) in the atlas for indices in the sample, both (n, 3)."""
        points = centroid_zyx[:, ::-1] @ self.sample_step.T + self.sample_origin
        mapped = np.array([self.transform.TransformPoint(point) for point in points.tolist()]).reshape(-1, 3)
        indices: NDArray[np.float64] = ((mapped - self.origin) @ self.to_index.T)[:, ::-1]
        return indices


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """A volume of region numbers."""

    volume: Volume
    spacing_um_zyx: SpacingUm
    registration: Registration | None
    """None: the atlas begins at the first corner of the sample."""

    @property
    def read(self) -> Read:
        """Reader of boxes of region numbers."""
        return as_labels(self.volume.read, self.volume.path)

    @property
    def extent_um_zyx(self) -> tuple[float, float, float]:
        """Size of the atlas, µm."""
        z, y, x = (n * s for n, s in zip(self.volume.shape, self.spacing_um_zyx, strict=True))
        return z, y, x

    def voxels_at(self, centroid: NDArray[np.float64], sample_um_zyx: SpacingUm) -> NDArray[np.int64]:
        """The atlas voxel, (n, 3), at voxel indices of the sample, (n, 3); it may lie outside of the atlas."""
        if self.registration is None:
            index = (centroid + 0.5) * sample_um_zyx / self.spacing_um_zyx - 0.5
        else:
            index = self.registration.indices(centroid)
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
        sample_um_zyx: voxel size of the labels.
        transform: file with a transform, as ITK reads it.
        spacing_um_zyx: voxel size of the atlas, instead of its header's.

    Raises:
        SelmaError: a file cannot be read, or the voxel size is not known.
    """
    volume = open_labels(path)
    header = _read_header(path)
    stated = volume.spacing_um_zyx if header is None else _spacing_um(header)
    spacing = spacing_um_zyx or stated
    if spacing is None:
        raise SelmaError(
            f"{path}: does not say how large its voxels are; give the voxel size with --atlas-spacing Z,Y,X in µm"
        )
    if transform is None:
        return Atlas(volume=volume, spacing_um_zyx=spacing, registration=None)
    if header is None or len(header.GetSpacing()) != 3:
        raise SelmaError(
            f"{path}: a transform needs an atlas with an origin; save it as three-dimensional NIfTI, NRRD or MHA"
        )
    ratios = np.array(spacing[::-1]) / header.GetSpacing()
    if np.ptp(ratios) > 1e-3 * ratios.max():
        in_header = ", ".join(f"{number:g}" for number in header.GetSpacing()[::-1])
        raise SelmaError(
            f"{path}: --atlas-spacing {','.join(f'{s:g}' for s in spacing)} has other proportions than the header "
            f"({in_header}), so that the transform's unit is not known; correct the header"
        )
    sample_origin, sample_step = _sample_geometry(sample, sample_um_zyx, float(ratios.mean()))
    registration = Registration(
        transform=_read_transform(transform),
        sample_origin=sample_origin,
        sample_step=sample_step,
        origin=np.array(header.GetOrigin()),
        to_index=np.linalg.inv(_direction(header) * header.GetSpacing()).astype(np.float64),
    )
    return Atlas(volume=volume, spacing_um_zyx=spacing, registration=registration)


def _sample_geometry(
    sample: Path, sample_um_zyx: SpacingUm, unit_um: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position of the sample's first voxel, (3,), and the step of one voxel along each axis, (3, 3); (x, y, z).

    Both are in the unit of the sample's header, or in `unit_um` where it has none.
    """
    header, spacing = _read_header(sample), np.array(sample_um_zyx[::-1])
    if header is None:
        return np.zeros(3), np.diag(spacing / unit_um)
    if len(header.GetSpacing()) != 3:
        raise SelmaError(
            f"{sample}: a transform needs labels with three axes; save them as three-dimensional NIfTI, NRRD or MHA, or as OME-Zarr"
        )
    unit_um = um_in_header_unit(header.GetSpacing(), mm_below=_MM_BELOW) or unit_um
    return np.array(header.GetOrigin()), _direction(header) * (spacing / unit_um)


def _direction(header: Any) -> NDArray[np.float64]:
    """Directions of the axes (x, y, z) of an image, one a column."""
    return np.array(header.GetDirection(), np.float64).reshape(3, 3)


def _read_header(path: Path) -> Any:
    """Header of a file that ITK reads; None for other files."""
    if not (is_nifti(path) or is_itk_file(path)):
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise SelmaError(f"{path}: cannot be read, the file is damaged or no image; copy it again") from error
    return reader


def _spacing_um(header: Any) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) that the header of an atlas states; None where it states none."""
    return spacing_from_header(header.GetSpacing()[2::-1], mm_below=_MM_BELOW).um_zyx


def _read_transform(path: Path) -> sitk.Transform:
    if not path.is_file():
        raise SelmaError(f"{path}: there is no such file; give the transform with --transform")
    try:
        transform = sitk.ReadTransform(itk_name(path))
    except RuntimeError as error:
        raise SelmaError(
            f"{path}: ITK reads no transform in it; give .tfm, .txt, .mat or .h5, and a displacement field as composite transform (.h5)"
        ) from error
    if transform.GetDimension() != 3:
        raise SelmaError(f"{path}: transforms points of {transform.GetDimension()} axes; one of three is needed")
    return transform

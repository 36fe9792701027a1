"""An atlas of brain regions that is registered to the sample already, and the atlas voxel at a point of the sample.

There are two ways to find that voxel:

- without a transform, the atlas is an array over the sample, of any voxel size. Its axes are turned as orientations say that were given, or else
  as the headers of both files say; if one file states no directions, they are those of the sample. An atlas of the sample's size begins at the
  same corner. One of another size lies where both files say, and at the same corner if one of them states no place. Headers are refused that
  turn the axes and then put atlas and sample at different places: programs write the origin 0 where they know none.
- with a transform, as ITK and ANTs write it for the sample as fixed and the atlas as moving image: the transform takes a physical point of
  the sample to one of the atlas, and the atlas's origin and direction take that to a voxel. Where the labels are a file that ITK reads
  (NIfTI, NRRD, MHA), or were predicted from such a file, physical points follow its header, as they did in the program that registered it.
  Otherwise a point is (x, y, z) along the axes of the array, from the origin that the labels state or else from the centre of their first voxel,
  in the unit of the atlas's header.

The unit of a header is that of the volume (`volumes.units`), except for an atlas whose header names none: its numbers are mm below 1.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Read
from nnunet_selma.objects.brainreg import ATLAS_ORIENTATION, BrainregOutput, brainreg_output
from nnunet_selma.objects.reading import as_labels
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume
from nnunet_selma.volumes.base import by_times
from nnunet_selma.volumes.itk import is_itk_file, itk_name
from nnunet_selma.volumes.nifti import is_nifti
from nnunet_selma.volumes.orientation import IN_PLACE, Turn, directions, turn_between, turn_by_headers
from nnunet_selma.volumes.segmented import open_labels
from nnunet_selma.volumes.units import um_in_header_unit

_MM_BELOW = 1.0  # an atlas's voxel is never narrower than a µm nor wider than a mm


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The way from a point of the sample to an index of an atlas that lies over it as an array; all axes are (z, y, x)."""

    sample_um_zyx: SpacingUm
    atlas_um_zyx: SpacingUm
    extent_um_zyx: tuple[float, float, float]
    """Size of the sample."""
    turn: Turn = IN_PLACE
    """Turns after which the sample lies as the atlas."""
    corner_um_zyx: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """First corner of the atlas, from that of the turned sample."""

    def indices(self, centroid_zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous indices (z, y, x) in the atlas for indices in the sample, both (n, 3)."""
        axes = list(self.turn.axes)
        at = ((centroid_zyx + 0.5) * self.sample_um_zyx)[:, axes]
        at = np.where(self.turn.flips, np.array(self.extent_um_zyx)[axes] - at, at)
        indices: NDArray[np.float64] = (at - self.corner_um_zyx) / self.atlas_um_zyx - 0.5
        return indices


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
    lies: Overlay | Registration
    """The way from the sample to the atlas."""
    notes: tuple[str, ...] = ()
    """Sentences about how the atlas was laid, where files leave a doubt."""

    @property
    def read(self) -> Read:
        """Reader of boxes of region numbers."""
        return as_labels(self.volume.read, self.volume.path)

    def voxels_at(self, centroid: NDArray[np.float64]) -> NDArray[np.int64]:
        """The atlas voxel, (n, 3), at voxel indices of the sample, (n, 3); it may lie outside of the atlas."""
        beyond = np.array(self.volume.shape)  # far away is as good as just outside, and fits an integer
        voxels: NDArray[np.int64] = np.clip(np.floor(self.lies.indices(centroid) + 0.5), -1, beyond).astype(np.int64)
        return voxels


def open_atlas(
    path: Path,
    *,
    sample: Volume,
    sample_um_zyx: SpacingUm,
    transform: Path | None = None,
    spacing_um_zyx: SpacingUm | None = None,
    orientation: str | None = None,
    atlas_orientation: str | None = None,
) -> Atlas:
    """Open an atlas; reads a few boxes at most, to tell it from an image.

    Args:
        path: NIfTI, NRRD or MHA; without a transform any volume, or an output folder of brainreg.
        sample: the labels that it is registered to, or their image if that alone states a place.
        sample_um_zyx: voxel size of the labels.
        transform: file with a transform, as ITK reads it.
        spacing_um_zyx: voxel size of the atlas, instead of its header's.
        orientation: orientation of the labels, as in `turn_between`.
        atlas_orientation: orientation of the atlas.

    Raises:
        SelmaError: a file cannot be read, the atlas holds an image, the voxel size or the orientation is not known, or headers contradict each other.
    """
    registered = brainreg_output(path)
    path = registered.atlas if registered else path
    volume = open_labels(path)
    spacing = spacing_um_zyx or (registered and registered.atlas_um_zyx) or _stated_um(volume)
    if spacing is None:
        raise SelmaError(
            f"{path}: does not say how large its voxels are; give the voxel size with --atlas-spacing Z,Y,X in µm"
        )
    if transform is not None:
        if orientation or atlas_orientation:
            raise SelmaError(
                "--orientation and --atlas-orientation are for an atlas without --transform; leave one out"
            )
        lies = _registration(path, spacing, sample, sample_um_zyx, transform)
        return Atlas(volume=volume, spacing_um_zyx=spacing, lies=lies)
    turn, notes = _turn(path, registered, orientation, atlas_orientation)
    if registered and sample.spacing_um_zyx is None and sample_um_zyx == registered.spacing_um_zyx:
        size = ", ".join(f"{edge:g}" for edge in sample_um_zyx)
        notes.append(f"the voxel size of the labels is taken from brainreg's record: {size} µm (z, y, x)")
    z, y, x = (n * edge for n, edge in zip(sample.shape, sample_um_zyx, strict=True))
    by_headers = turn is None
    overlay = Overlay(
        sample_um_zyx=sample_um_zyx,
        atlas_um_zyx=spacing,
        extent_um_zyx=(z, y, x),
        turn=turn or _turn_by_headers(volume, sample),
    )
    apart = _apart_um(volume, sample, overlay) if by_headers else None
    if by_headers and overlay.turn != IN_PLACE:
        _check_together(volume, sample, overlay, apart)
        notes.append(
            "the axes of the atlas run otherwise than those of the labels, as their headers say, and were turned"
        )
    return _laid(volume, overlay, apart, notes)


def _turn(
    path: Path, registered: BrainregOutput | None, orientation: str | None, atlas_orientation: str | None
) -> tuple[Turn | None, list[str]]:
    """The turns from the labels to the atlas, None if no orientation is known, and sentences about where it comes from."""
    stated = registered.orientation if registered else None
    if registered and registered.lies_as_stack:
        if orientation is None and atlas_orientation is None:
            return None, ["atlas and labels are taken to lie as the stack that brainreg registered"]
        atlas_orientation = atlas_orientation or stated
    elif registered and not (orientation or stated):
        raise SelmaError(
            f"{path}: brainreg writes its results in the orientation of its atlas ({ATLAS_ORIENTATION}), not in that of the stack that was registered; "
            "say how the labels lie with --orientation, as in psl (the letters that brainreg was given). For an atlas that lies as the labels do, give the "
            "same letters with --atlas-orientation"
        )
    elif registered:
        atlas_orientation = atlas_orientation or ATLAS_ORIENTATION
    source = orientation or stated
    if source is None and atlas_orientation is None:
        return None, []
    if source is None or atlas_orientation is None:
        raise SelmaError(
            f"{path}: the orientations of labels and atlas are needed, if one is given; give --orientation and --atlas-orientation"
        )
    notes = []
    if orientation is None:
        notes.append(
            f"the labels are taken to lie as the stack that brainreg registered ({source}), the atlas as {atlas_orientation}; "
            "say otherwise with --orientation"
        )
    return turn_between(source, atlas_orientation), notes


def _turn_by_headers(volume: Volume, sample: Volume) -> Turn:
    """The turns from the sample to the atlas by the directions in both files; none where a file states no directions."""
    if volume.origin_voxels_zyx is None or sample.origin_voxels_zyx is None:
        return IN_PLACE
    if volume.affine is None or sample.affine is None:
        return IN_PLACE
    turn = turn_by_headers(sample.affine, volume.affine)
    if turn is None:
        raise SelmaError(
            f"{volume.path}: its axes are not parallel to those of {sample.path}, as their headers say; give the way between them with --transform, "
            "or how both arrays lie with --orientation and --atlas-orientation"
        )
    return turn


def _apart_um(volume: Volume, sample: Volume, overlay: Overlay) -> NDArray[np.float64] | None:
    """Way from the centre of the turned sample's first voxel to that of the atlas, µm along the atlas's axes (z, y, x); None if the files do not tell it."""
    if volume.origin_voxels_zyx is None or sample.origin_voxels_zyx is None:
        return None
    first = np.array(sample.origin_voxels_zyx) * overlay.sample_um_zyx
    last = first + np.array(overlay.extent_um_zyx) - overlay.sample_um_zyx
    axes = list(overlay.turn.axes)
    of_sample = np.where(overlay.turn.flips, -last[axes], first[axes])
    apart: NDArray[np.float64] = np.array(volume.origin_voxels_zyx) * overlay.atlas_um_zyx - of_sample
    return apart


def _check_together(volume: Volume, sample: Volume, overlay: Overlay, apart: NDArray[np.float64] | None) -> None:
    """Raise `SelmaError` if an atlas and a sample, turned by their headers, have no more than a voxel in common along an axis."""
    axes = list(overlay.turn.axes)
    of_sample = np.array(overlay.sample_um_zyx)[axes]
    begin = (0.0 if apart is None else apart) + (of_sample - overlay.atlas_um_zyx) / 2
    end = begin + np.array(volume.shape) * overlay.atlas_um_zyx
    common = np.minimum(end, np.array(overlay.extent_um_zyx)[axes]) - np.maximum(begin, 0)
    if (common <= np.maximum(of_sample, overlay.atlas_um_zyx)).any():
        raise SelmaError(
            f"{volume.path}: its axes run otherwise than those of {sample.path}, and the origins in their headers then put them at different places; "
            "correct the headers, or say how both arrays lie with --orientation and --atlas-orientation (the same letters if they lie alike)"
        )


def _laid(volume: Volume, overlay: Overlay, apart: NDArray[np.float64] | None, notes: list[str]) -> Atlas:
    """The atlas over the sample: at the same corner, or by the places that both files state if their sizes differ."""
    edges = np.array((overlay.sample_um_zyx, overlay.atlas_um_zyx))
    extent = np.array(overlay.extent_um_zyx)[list(overlay.turn.axes)]
    edges[0] = edges[0][list(overlay.turn.axes)]
    of_atlas = np.array(volume.shape) * overlay.atlas_um_zyx
    same_size = bool((np.abs(of_atlas - extent) <= edges.max(axis=0)).all())
    # files place the centres of first voxels, or forget that these are not corners
    elsewhere = apart is not None and bool((np.abs(apart) > edges.max(axis=0) / 2).any())
    sizes = f"the atlas measures {_text(of_atlas)} µm (z, y, x), the sample {_text(extent)}"
    if apart is not None and elsewhere and not same_size:
        z, y, x = (apart + (edges[0] - edges[1]) / 2).tolist()
        overlay = replace(overlay, corner_um_zyx=(z, y, x))
        notes.append(f"{sizes}: they are laid by the places that their files state, {_text(apart)} µm apart")
    elif apart is not None and elsewhere:
        notes.append(
            f"the files of atlas and labels state different places, {_text(apart)} µm apart (z, y, x), and measure the same: they are taken to "
            "begin at the same corner"
        )
    elif not same_size:
        notes.append(f"{sizes}: they are taken to begin at the same corner")
    return Atlas(volume=volume, spacing_um_zyx=overlay.atlas_um_zyx, lies=overlay, notes=tuple(notes))


def _text(lengths: NDArray[np.float64]) -> str:
    return by_times(f"{length:.6g}" for length in lengths + 0.0)  # no -0


def _registration(
    path: Path, spacing: SpacingUm, sample: Volume, sample_um_zyx: SpacingUm, transform: Path
) -> Registration:
    """The way through a transform to an atlas of this voxel size."""
    header = _read_header(path)
    if header is None:
        raise SelmaError(
            f"{path}: a transform needs an atlas with an origin; save it as three-dimensional NIfTI, NRRD or MHA"
        )
    unit_um = _unit_um(spacing, header)
    if unit_um is None:
        in_header = ", ".join(f"{number:g}" for number in header.spacing[::-1])
        raise SelmaError(
            f"{path}: --atlas-spacing {','.join(f'{s:g}' for s in spacing)} has other proportions than the header "
            f"({in_header}), so that the transform's unit is not known; correct the header"
        )
    sample_origin, sample_step = _sample_geometry(sample, sample_um_zyx, unit_um)
    return Registration(
        transform=_read_transform(transform),
        sample_origin=sample_origin,
        sample_step=sample_step,
        origin=header.origin,
        to_index=np.linalg.inv(header.direction * header.spacing).astype(np.float64),
    )


def _sample_geometry(
    sample: Volume, sample_um_zyx: SpacingUm, unit_um: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position of the sample's first voxel, (3,), and the step of one voxel along each axis, (3, 3); (x, y, z).

    Both are in the unit of the sample's header, or in `unit_um` where it has none.
    """
    header, spacing = _read_header(sample.path) or _header_of(sample), np.array(sample_um_zyx[::-1])
    if header is None:
        return np.array((sample.origin_voxels_zyx or (0.0, 0.0, 0.0))[::-1]) * spacing / unit_um, np.diag(
            spacing / unit_um
        )
    stated = sample.spacing_um_zyx
    unit_um = (stated and _unit_um(stated, header)) or um_in_header_unit(header.spacing.tolist()) or unit_um
    return header.origin, header.direction * (spacing / unit_um)


class _Header(NamedTuple):
    """A header as ITK counts, in LPS; axes are (x, y, z)."""

    spacing: NDArray[np.float64]
    origin: NDArray[np.float64]
    direction: NDArray[np.float64]
    """Directions of the axes, one a column."""


def _unit_um(spacing_um_zyx: SpacingUm, header: _Header) -> float | None:
    """Micrometres in the unit of a header, from the voxel size; None if the proportions differ."""
    ratios = np.array(spacing_um_zyx[::-1]) / header.spacing
    return None if np.ptp(ratios) > 1e-3 * ratios.max() else float(ratios.mean())


def _header_of(volume: Volume) -> _Header | None:
    """The header of the file that an OME-Zarr was predicted from; None where it keeps none."""
    if volume.affine is None:
        return None
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    return _Header(voxel_sizes(lps), lps[:3, 3], directions(lps))


def _read_header(path: Path) -> _Header | None:
    """Header of a file that ITK reads; None for other files."""
    if not (is_nifti(path) or is_itk_file(path)):
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise SelmaError(f"{path}: cannot be read, the file is damaged or no image; copy it again") from error
    if reader.GetDimension() != 3:
        raise SelmaError(
            f"{path}: a transform needs three axes; save it as three-dimensional NIfTI, NRRD or MHA, or as OME-Zarr"
        )
    direction = np.array(reader.GetDirection(), np.float64).reshape(3, 3)
    return _Header(np.array(reader.GetSpacing()), np.array(reader.GetOrigin()), direction)


def _stated_um(volume: Volume) -> SpacingUm | None:
    """Voxel size of an atlas by its file; numbers whose unit is guessed are mm below 1, because no atlas has voxels below 1 µm."""
    stated = volume.spacing_um_zyx
    if stated is None or volume.spacing_guess is None or max(stated) >= _MM_BELOW:
        return stated
    z, y, x = (edge * 1e3 for edge in stated)
    return z, y, x


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

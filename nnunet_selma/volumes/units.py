"""Units of voxel sizes: the one place that decides whether a header means millimetres, micrometres or plain voxels."""

from collections.abc import Sequence
from math import inf

from nnunet_selma.structures import SpacingUm

VOXEL_UNITS: SpacingUm = (1.0, 1.0, 1.0)
"""Spacing (z, y, x) of images that are measured in voxels."""

UM_OF_UNIT = {
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "µm": 1.0,
    "\\u00b5m": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "meter": 1e6,
}
"""Micrometres in a unit of length, by the names that NIfTI, ImageJ, OME-TIFF and OME-Zarr give it."""

LIGHT_SHEET_MM = 0.1
"""Light-sheet voxels are smaller than this many mm, and larger than this many µm."""


def um_in_header_unit(spacing: Sequence[float], *, mm_below: float = LIGHT_SHEET_MM) -> float | None:
    """Micrometres in the unit of a medical header's spacing: 1000, 1, or None where the spacing is in voxels.

    NIfTI and ITK mean millimetres, but people write micrometres into the same field. A spacing of 1, 1, 1 is in voxels: programs write it
    where they know no voxel size. A spacing that is not positive and finite says as little.

    Args:
        spacing: voxel size along the three axes, in any order.
        mm_below: the largest edge of a voxel in mm; a spacing that reaches it is in µm.
    """
    if tuple(spacing) == VOXEL_UNITS or not all(0 < size < inf for size in spacing):
        return None
    return 1000.0 if max(spacing) < mm_below else 1.0


def spacing_from_header(spacing_zyx: Sequence[float], *, mm_below: float = LIGHT_SHEET_MM) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) of a medical header's numbers; None where these are in voxels (`um_in_header_unit`)."""
    unit = um_in_header_unit(spacing_zyx, mm_below=mm_below)
    if unit is None:
        return None
    # headers store float32; the digits beyond it are noise
    z, y, x = (round(float(size) * unit, 5) for size in spacing_zyx)
    return z, y, x

"""Units of voxel sizes: the one place that turns a number and a unit into µm, and guesses the unit of a header without one."""

import re
import unicodedata
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from nnunet_selma.structures import SpacingUm

VOXEL_UNITS: SpacingUm = (1.0, 1.0, 1.0)
"""Spacing (z, y, x) of images that are measured in voxels."""

LIGHT_SHEET_MM = 0.1
"""Without a unit, numbers below this one are mm, others µm: light-sheet voxels are smaller than 0.1 mm and larger than 0.1 µm."""

_LARGEST_MM = 1.0
"""A unit of mm is believed for voxels below 1 mm; programs that know no units write it beside µm."""

_UM_OF_PREFIX = {"å": 1e-4, "nm": 1e-3, "μm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0}
_NAMES = {
    "angstrom": "å",
    "ångström": "å",
    "nanometer": "nm",
    "um": "μm",
    "micron": "μm",
    "micrometer": "μm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "inch": "in",
    "inche": "in",
    '"': "in",
}


def um_of_unit(unit: object) -> float | None:
    r"""Micrometres in a unit of length; None for other words, as "pixel", and for no unit.

    Names are those of NIfTI, NRRD, ImageJ, OME-TIFF and OME-Zarr: in any case, singular or plural, American or British, with the micro
    sign, the Greek letter, u, or the escape `\u00B5` that Fiji writes.
    """
    text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda code: chr(int(code[1], 16)), str(unit or ""))
    text = unicodedata.normalize("NFKC", text).strip().casefold().replace("metre", "meter")
    for name in (text, text.removesuffix("s")):
        if (short := _NAMES.get(name, name)) in _UM_OF_PREFIX:
            return _UM_OF_PREFIX[short]
    return None


def to_um(value: float, unit: object) -> float | None:
    """A length in µm; None if the unit is no unit of length, or the length is not positive and finite."""
    scale = um_of_unit(unit)
    return round(value * scale, 6) if scale is not None and 0 < value < inf else None


def spacing_in_um(spacing_zyx: Sequence[float], units: Sequence[object]) -> SpacingUm | None:
    """Voxel size in µm, (z, y, x), from a number and a unit for each axis; None unless all three are lengths."""
    z, y, x = (to_um(float(size), unit) for size, unit in zip(spacing_zyx, units, strict=True))
    return None if z is None or y is None or x is None else (z, y, x)


class HeaderSpacing(NamedTuple):
    """Voxel size of a header."""

    um_zyx: SpacingUm | None
    """Voxel size, µm (z, y, x); None where the header is in voxels."""
    guess: str | None
    """A sentence where the unit was guessed."""


def spacing_from_header(
    spacing_zyx: Sequence[float], unit: object = None, *, mm_below: float = LIGHT_SHEET_MM
) -> HeaderSpacing:
    """Voxel size of a medical header (NIfTI, NRRD, MHA).

    An explicit unit counts, except mm for voxels of 1 mm and more, which programs write that know no units. Without a unit the
    numbers decide (`um_in_header_unit`).

    Args:
        spacing_zyx: voxel size along the axes, as stored.
        unit: name of the unit; None where the header has none.
        mm_below: without a unit, numbers below this one are mm.
    """
    sizes = [abs(float(size)) for size in spacing_zyx]
    explicit = um_of_unit(unit)
    if explicit == 1e3 and max(sizes) >= _LARGEST_MM:
        explicit = None
    scale = um_in_header_unit(sizes, mm_below=mm_below) if explicit is None else explicit
    if scale is None or not all(0 < size < inf for size in sizes):
        return HeaderSpacing(None, None)
    # headers store float32; the digits beyond it are noise
    z, y, x = (round(size * scale, 5) for size in sizes)
    guess = None
    if explicit is None:
        numbers = " × ".join(f"{size:g}" for size in sizes)
        named = f"the header says {unit}" if unit else "the header names no unit"
        guess = f"{named}; its voxel size {numbers} is taken as {'mm' if scale == 1e3 else 'µm'}"
    return HeaderSpacing((z, y, x), guess)


def um_in_header_unit(spacing: Sequence[float], *, mm_below: float = LIGHT_SHEET_MM) -> float | None:
    """Micrometres in the unit of numbers without a unit: 1000, 1, or None where the spacing is in voxels.

    NIfTI and ITK mean millimetres, but people write micrometres into the same field. A spacing of 1, 1, 1 is in voxels: programs write it
    where they know no voxel size. A spacing that is not positive and finite says as little.

    Args:
        spacing: voxel size along the three axes, in any order.
        mm_below: the largest edge of a voxel in mm; a spacing that reaches it is in µm.
    """
    if tuple(spacing) == VOXEL_UNITS or not all(0 < size < inf for size in spacing):
        return None
    return 1000.0 if max(spacing) < mm_below else 1.0

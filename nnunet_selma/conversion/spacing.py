"""The voxel size that a case is written with."""

from collections.abc import Sequence
from typing import Literal

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm, Structure
from nnunet_selma.volumes.units import VOXEL_UNITS

Spacing = Literal["physical", "voxel"] | SpacingUm
"""Voxel size to write: the structure table's, 1 voxel, or a given one in µm (z, y, x)."""


def default_spacing(structures: Sequence[Structure | None]) -> Literal["physical", "voxel"]:
    """Physical for one structure of known voxel size, voxel for several: one physical grid would shrink nuclei threefold."""
    prefixes = {structure.prefix if structure else None for structure in structures}
    return "physical" if len(prefixes) == 1 and structures[0] and structures[0].spacing_um_zyx else "voxel"


def spacing_of(structure: Structure | None, spacing: Spacing, header_um_zyx: SpacingUm | None = None) -> SpacingUm:
    """The voxel size to write, (z, y, x).

    Args:
        structure: structure of the case; None where it is unknown.
        spacing: "voxel", a voxel size in µm, or "physical": that of the structure table, or of the header where the table has none.
        header_um_zyx: voxel size in the header of the file; None where the header states none, or is not to be used.

    Raises:
        SelmaError: the spacing is physical and no source states it.
    """
    if spacing == "voxel":
        return VOXEL_UNITS
    if spacing != "physical":
        return spacing
    known = (structure.spacing_um_zyx if structure else None) or header_um_zyx
    if known is None:
        title = structure.title if structure else "a volume of unknown structure"
        raise SelmaError(
            f"no source states the voxel size of {title}; give it as --spacing Z,Y,X in µm, or choose --spacing voxel"
        )
    return known

"""Which voxel size a case is written with."""

from collections.abc import Sequence
from typing import Literal

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm, Structure

Spacing = Literal["physical", "voxel"] | SpacingUm
"""The structure table's, 1 voxel, or µm (z, y, x)."""


def default_spacing(structures: Sequence[Structure | None]) -> Literal["physical", "voxel"]:
    """Physical for one structure of known voxel size, voxel for several: one physical grid would shrink nuclei threefold."""
    only = {structure.prefix if structure else None for structure in structures}
    return "physical" if len(only) == 1 and structures[0] and structures[0].spacing_um_zyx else "voxel"


def spacing_of(structure: Structure | None, spacing: Spacing, header_um_zyx: SpacingUm | None = None) -> SpacingUm:
    """The voxel size to write: a given one, 1 voxel, or the table's (the header's, if it is given, where the table has none).

    Raises:
        SelmaError: "physical" was asked for and no source states it.
    """
    if spacing == "voxel":
        return (1.0, 1.0, 1.0)
    if spacing != "physical":
        return spacing
    known = (structure.spacing_um_zyx if structure else None) or header_um_zyx
    if known is None:
        title = structure.title if structure else "a volume of unknown structure"
        raise SelmaError(
            f"no source states the voxel size of {title}; give it as --spacing Z,Y,X in µm, or choose --spacing voxel"
        )
    return known

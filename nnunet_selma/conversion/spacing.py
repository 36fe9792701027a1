"""The voxel size that a case is written with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.voxel_sizes import as_text, in_unit, largest_factor, unit_of
from nnunet_selma.structures import SpacingUm, Structure
from nnunet_selma.volumes.units import VOXEL_UNITS

Spacing = Literal["header", "physical", "voxel"] | SpacingUm
"""Voxel size to write: the header's, the true one (the structure table's for a download of SELMA3D or DELiVR, else the header's), 1 voxel,
or a given one (z, y, x): in µm, or in mm if all edges are below 0.1, for datasets in mm."""

_LARGEST_RATIO = 1.5
"""Header and structure table that are further apart on any axis contradict each other."""


@dataclass(frozen=True, kw_only=True)
class SpacingSources:
    """Everything that may state the voxel size of a volume."""

    name: str
    """The file, for the errors."""
    structure: Structure | None
    in_layout: bool
    """True for a volume that lies as in a download of SELMA3D or DELiVR; other data may have been imaged at any voxel size."""
    header_um_zyx: SpacingUm | None
    """Voxel size in the header; None where the header states none."""
    level_factor: SpacingUm = (1.0, 1.0, 1.0)
    """Edges of a voxel of the resolution level that is read, in voxels of the finest one (z, y, x)."""

    @property
    def table_um_zyx(self) -> SpacingUm | None:
        """Voxel size of the finest level in the structure table, if it holds for this volume."""
        return self.structure.spacing_um_zyx if self.structure and self.in_layout else None


class WrittenSpacing(NamedTuple):
    """The voxel size of a case, its unit, and where it comes from."""

    size_zyx: SpacingUm
    unit: Literal["voxels", "µm", "mm"]
    source: str
    """For a sentence, as in "from the header"."""

    def __str__(self) -> str:
        """The voxel size, its unit and its source, for a sentence."""
        return f"{as_text(self.size_zyx)} {self.unit} (z, y, x), {self.source}"

    def in_mm(self, source: str) -> "WrittenSpacing":
        """The same voxel size in mm; `source` says why, for a sentence."""
        return WrittenSpacing(in_unit(self.size_zyx, "mm"), "mm", f"{self.source}, {source}")


def default_spacing(volumes: Iterable[SpacingSources]) -> Literal["physical", "voxel"]:
    """Voxel for SELMA3D's downloads of several structures, because one physical grid would shrink nuclei threefold, or of a structure that the table does not know; else physical."""
    tabled = [volume for volume in volumes if volume.in_layout]
    several = len({volume.structure.prefix for volume in tabled if volume.structure}) > 1
    return "voxel" if several or any(v.table_um_zyx is None and v.header_um_zyx is None for v in tabled) else "physical"


def spacing_of(volume: SpacingSources, spacing: Spacing) -> WrittenSpacing:
    """The voxel size to write.

    A voxel size that the table or the user gives is that of the finest level, and is multiplied for a coarser one.

    Raises:
        SelmaError: no source states the voxel size, or header and structure table contradict each other.
    """
    if spacing in ("voxel", VOXEL_UNITS):
        if volume.level_factor != (1, 1, 1):
            raise SelmaError(
                f"{volume.name}: in voxels of a coarser level everything looks smaller; take the finest level, or give its voxel size with "
                "--spacing Z,Y,X"
            )
        return WrittenSpacing(VOXEL_UNITS, "voxels", "not in µm")
    header, table = volume.header_um_zyx, volume.table_um_zyx
    at_level = "" if volume.level_factor == (1, 1, 1) else f", times {as_text(volume.level_factor)} for the level"
    if not isinstance(spacing, str):
        unit: Literal["µm", "mm"] = "mm" if unit_of(spacing) == "mm" else "µm"
        return WrittenSpacing(_times(spacing, volume.level_factor), unit, f"from --spacing{at_level}")
    if spacing == "physical" and table is not None:
        size = _times(table, volume.level_factor)
        if header and largest_factor(header, size) > _LARGEST_RATIO:
            title = volume.structure.title if volume.structure else ""
            raise SelmaError(
                f"{volume.name}: the header says {as_text(header)} µm, the table of SELMA3D's structures {as_text(size)} µm for {title} "
                "(z, y, x); say which is right with --spacing header or --spacing Z,Y,X"
            )
        return WrittenSpacing(size, "µm", f"from the table of SELMA3D's structures{at_level}")
    if header is None:
        raise SelmaError(f"{volume.name}: no header states the voxel size; {_remedy(volume)}")
    return WrittenSpacing(header, "µm", "from the header")


def _remedy(volume: SpacingSources) -> str:
    """Options to type where the voxel size is not known."""
    known = volume.structure.spacing_um_zyx if volume.structure else None
    example = ""
    if known and volume.structure:
        example = f" (SELMA3D's brains of {volume.structure.title} have {','.join(f'{edge:g}' for edge in known)})"
    return f"give it in µm as --spacing Z,Y,X{example}, or measure in voxels with --spacing voxel"


def _times(size: SpacingUm, factor: SpacingUm) -> SpacingUm:
    z, y, x = (edge * times for edge, times in zip(size, factor, strict=True))
    return z, y, x

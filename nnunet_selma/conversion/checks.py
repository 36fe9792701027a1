"""Facts and warnings about every file, for `inspect` and for the manifest of a conversion."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm, Structure
from nnunet_selma.volumes import Volume, to_intensities
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.labels import label_values

SATURATION = 65535


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """One image file."""

    file: str
    shape_zyx: tuple[int, int, int]
    dtype: str
    lowest: float
    highest: float
    saturated_share: float
    """Share of the voxels at 65535."""
    header_spacing_um_zyx: SpacingUm | None
    """None where the header says 1, 1, 1."""
    table_spacing_um_zyx: SpacingUm | None
    """Voxel size of the structure table, µm (z, y, x)."""
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """One ground-truth file."""

    file: str
    shape_zyx: tuple[int, int, int]
    dtype: str
    values: dict[str, int]
    """Value to number of voxels, the 16 most frequent."""
    foreground_share: float
    warnings: list[str]


def read_image(volume: Volume, structure: Structure | None) -> tuple[Array, ImageFacts]:
    """The whole image as uint16 (or float32, see `to_intensities`), (z, y, x), and what is to be said about it."""
    stored = volume.read()
    return to_intensities(stored, str(volume.path)), image_facts(stored, volume, structure)


def image_facts(voxels: Array, volume: Volume, structure: Structure | None) -> ImageFacts:
    """Facts about an image of which `voxels` were read (all of it, or a sparse sample of a whole brain)."""
    converted = to_intensities(voxels, str(volume.path))
    warnings = []
    if converted.dtype != np.uint16:
        warnings.append("values that uint16 cannot hold (fractions, negative or above 65535); kept as float32")
    if converted.min() == converted.max():
        warnings.append(f"all voxels have the value {converted.min()}")
    saturated = float((voxels == SATURATION).mean())
    if saturated > 0.01:
        warnings.append(f"{saturated:.1%} of the voxels are saturated")
    header, table = volume.spacing_um_zyx, structure.spacing_um_zyx if structure else None
    if header and table and not np.allclose(header, table, rtol=0.05):
        warnings.append(
            f"header spacing {header} µm differs from the table's {table} µm (z, y, x); the header is not used"
        )
    if volume.repaired:
        warnings.append(f"interpolated slices: {', '.join(volume.repaired)}")
    return ImageFacts(
        file=str(volume.path),
        shape_zyx=volume.shape,
        dtype=str(volume.dtype),
        lowest=float(voxels.min()),
        highest=float(voxels.max()),
        saturated_share=saturated,
        header_spacing_um_zyx=header,
        table_spacing_um_zyx=table,
        warnings=warnings,
    )


def read_label(volume: Volume) -> tuple[Array, LabelFacts]:
    """The mask `> 0` as uint8 0/1, (z, y, x), and what is to be said about the file.

    Raises:
        SelmaError: the values are no labels (`label_values`).
    """
    labels = label_values(volume.read(), volume.path)
    values, counts = (part.tolist() for part in np.unique(labels, return_counts=True))
    mask = (labels > 0).astype(np.uint8)
    warnings = []
    if not mask.any():
        warnings.append("the label is empty")
    if not set(values) <= {0, 1}:
        first = ", ".join(f"{value} ({count} voxels)" for value, count in zip(values[:8], counts, strict=False))
        warnings.append(f"label values other than 0 and 1: {first}; every value above 0 becomes 1")
    most = np.argsort(counts)[::-1][:16]
    facts = LabelFacts(
        file=str(volume.path),
        shape_zyx=volume.shape,
        dtype=str(volume.dtype),
        values={str(values[i]): counts[i] for i in sorted(most)},
        foreground_share=float(mask.mean()),
        warnings=warnings,
    )
    return mask, facts


def check_equal_shapes(volumes: dict[str, Volume]) -> None:
    """Raise `SelmaError` unless all volumes of a patch have one shape; reads headers only."""
    (_, first), *others = volumes.items()
    for _, volume in others:
        if volume.shape != first.shape:
            raise SelmaError(
                f"{volume.path} has {_by(volume.shape)} voxels, {first.path} has {_by(first.shape)} (z, y, x); "
                "they cannot belong together, download or export them again"
            )


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def as_json(facts: Any) -> dict[str, Any]:
    """A facts dataclass as plain values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(facts).items()}

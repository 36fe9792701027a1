"""Facts and warnings about files, for `inspect` and for the manifest of a conversion."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm, Structure
from nnunet_selma.volumes import Volume, to_intensities
from nnunet_selma.volumes.base import Array, ShapeZYX, by_times
from nnunet_selma.volumes.labels import read_mask
from nnunet_selma.volumes.orientation import Placement, placement
from nnunet_selma.volumes.segmented import open_labels

MASK_BY_VALUES = "only two values, 0 and another, as a mask has"
"""The reason to leave out a volume that `is_mask`."""
_SATURATION = 65535
_MASK_SLICES = 9


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Facts about an image file."""

    file: str
    shape_zyx: tuple[int, int, int]
    dtype: str
    lowest: float
    highest: float
    saturated_share: float
    """Share of the voxels at 65535, from 0 to 1."""
    header_spacing_um_zyx: SpacingUm | None
    """Voxel size in the header, µm (z, y, x); None where the header is in voxels."""
    table_spacing_um_zyx: SpacingUm | None
    """Voxel size of the structure table, µm (z, y, x); None where the table has none."""
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Facts about a ground-truth file."""

    file: str
    shape_zyx: tuple[int, int, int]
    dtype: str
    values: dict[str, int]
    """Value to number of voxels, the 16 most frequent."""
    foreground_share: float
    """Share of the voxels above 0, from 0 to 1."""
    warnings: list[str]


Facts = TypeVar("Facts", ImageFacts, LabelFacts)


def read_image(volume: Volume, tabled: Structure | None) -> tuple[Array, ImageFacts]:
    """Read a whole image as uint16 (or float32, see `to_intensities`), (z, y, x), with the facts about it."""
    stored = volume.read()
    return to_intensities(stored, str(volume.path)), image_facts(stored, volume, tabled)


def image_facts(voxels: Array, volume: Volume, tabled: Structure | None) -> ImageFacts:
    """Facts about an image.

    Args:
        voxels: the whole image, or a sample of it; values are those of the sample.
        volume: the image.
        tabled: the structure whose voxel size in the structure table holds for the image; None where there is none.

    Raises:
        SelmaError: the voxels are no intensities (`to_intensities`).
    """
    converted = to_intensities(voxels, str(volume.path))
    warnings = []
    if converted.dtype != np.uint16:
        warnings.append("values that uint16 cannot hold (fractions, negative or above 65535); kept as float32")
    if converted.min() == converted.max():
        warnings.append(f"all voxels have the value {converted.min()}")
    saturated = float((voxels == _SATURATION).mean())
    if saturated > 0.01:
        warnings.append(f"{saturated:.1%} of the voxels are saturated")
    header, table = volume.spacing_um_zyx, tabled.spacing_um_zyx if tabled else None
    if header and table and not np.allclose(header, table, rtol=0.05):
        warnings.append(f"header spacing {header} µm differs from the table's {table} µm (z, y, x)")
    if volume.spacing_guess:
        warnings.append(volume.spacing_guess)
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


def check_several_slices(volume: Volume) -> None:
    """Raise `SelmaError` for a volume of one slice, which may be the rest of a copy that broke off."""
    if volume.shape[0] == 1:
        raise SelmaError(
            f"{volume.path}: is a single slice, and a volume has several; give the folder with all slices, or copy the file again if it held more"
        )


def open_label(path: Path) -> Volume:
    """Open a label, in an OME-Zarr the label image; raises `SelmaError` as `open_labels`."""
    try:
        return open_labels(path)
    except SelmaError as error:
        raise SelmaError(str(error)) from error  # options that choose a channel are for images


def is_mask(volume: Volume) -> bool:
    """True if some slices of a volume hold 0 and one other value, and nothing else; reads a few slices, one in memory at a time."""
    values: set[float] = set()
    for z in np.linspace(0, volume.shape[0] - 1, _MASK_SLICES + 2).astype(int)[1:-1]:
        values.update(np.unique(volume.read(slice(z, z + 1))).tolist()[:3])
        if len(values) > 2:
            return False
    return len(values) == 2 and 0 in values


def read_label(volume: Volume, foreground: int | None = None) -> tuple[Array, LabelFacts]:
    """Read a whole ground truth as its mask, uint8 0/1, (z, y, x), with the facts about the file.

    Raises:
        SelmaError: the values are no labels, or do not tell which of them are objects (`read_mask`).
    """
    mask, values, warnings = read_mask(volume, foreground)
    if not mask.any():
        warnings = ["the label is empty", *warnings]
    frequent = sorted(sorted(values, key=lambda value: -values[value])[:16])
    facts = LabelFacts(
        file=str(volume.path),
        shape_zyx=volume.shape,
        dtype=str(volume.dtype),
        values={str(value): values[value] for value in frequent},
        foreground_share=float(mask.mean()),
        warnings=warnings,
    )
    return mask.astype(np.uint8), facts


def read_patch(
    images: Sequence[Volume], label: Volume, tabled: Structure | None, foreground: int | None = None
) -> tuple[list[tuple[Array, ImageFacts]], tuple[Array, LabelFacts]]:
    """Read the channels and the label of a patch, each with the facts about it.

    What lies in another orientation than the first channel, as the headers say, is turned to it; a warning says so.

    Raises:
        SelmaError: shapes differ, or what `read_image` and `read_label` raise.
    """
    placed = check_belonging([*images, label])
    channels = []
    for image, place in zip(images, placed, strict=False):
        voxels, facts = read_image(image, tabled)
        channels.append((place.apply(voxels), _warned(facts, place)))
    mask, label_facts = read_label(label, foreground)
    return channels, (placed[-1].apply(mask), _warned(label_facts, placed[-1]))


def _warned(facts: Facts, place: Placement) -> Facts:
    """The facts, with the warning of a placement if there is one."""
    return replace(facts, warnings=[*facts.warnings, place.warning]) if place.warning else facts


def check_belonging(volumes: Sequence[Volume]) -> list[Placement]:
    """The turns after which each volume lies as the first; raises `SelmaError` if shapes then differ; reads no voxels."""
    placed = [placement(volume, volumes[0]) for volume in volumes]
    for place in placed:
        if place.shape != volumes[0].shape:
            raise _different_shapes(place.path, place.shape, volumes[0], "download or export them again")
    return placed


def check_equal_shapes(volumes: Sequence[Volume], remedy: str) -> None:
    """Raise `SelmaError`, which ends in the remedy, if volumes that belong together differ in shape; reads no voxels."""
    for volume in volumes:
        if volume.shape != volumes[0].shape:
            raise _different_shapes(volume.path, volume.shape, volumes[0], remedy)


def _different_shapes(path: Path, shape: ShapeZYX, first: Volume, remedy: str) -> SelmaError:
    return SelmaError(
        f"{path} has {by_times(shape)} voxels, {first.path} has {by_times(first.shape)} (z, y, x); they cannot belong together, {remedy}"
    )


def facts_as_json(facts: ImageFacts | LabelFacts) -> dict[str, Any]:
    """Facts as JSON can hold them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(facts).items()}

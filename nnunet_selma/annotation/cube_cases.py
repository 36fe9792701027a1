"""The cases of a version of a dataset, which are kept, corrected or new, and their entries in the manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.annotation.cube_settings import LastingSettings
from nnunet_selma.annotation.growing import GrowingDataset
from nnunet_selma.annotation.layout import NOT_ANNOTATED, file_hash
from nnunet_selma.annotation.returned import Cube, ReturnedLabel
from nnunet_selma.conversion.checks import LabelFacts, check_equal_shapes, facts_as_json, read_image
from nnunet_selma.conversion.relatives import Signature, signature
from nnunet_selma.conversion.spacing import SpacingSources, WrittenSpacing, spacing_of
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.running.progress import Progress
from nnunet_selma.volumes import open_volume, to_intensities
from nnunet_selma.volumes.base import Array


class WrittenCases(NamedTuple):
    """The cases of a version."""

    channels: list[str]
    """Names of the input channels."""
    records: dict[str, Any]
    """Case to its entry in the manifest, without its group."""
    signatures: list[Signature]
    """Signature of the first channel of each case."""


def write_cases(
    dataset: GrowingDataset,
    lasting: LastingSettings,
    cubes: Mapping[str, Cube],
    kept: Mapping[str, Any],
    labels: Mapping[str, ReturnedLabel],
    progress: Progress[Any],
) -> WrittenCases:
    """Write the cases of the next version: those that are kept, and those of these labels.

    Args:
        dataset: the dataset, whose next version is begun here.
        lasting: its settings.
        cubes: case to its cube.
        kept: entries in the manifest of the cases of the version that is there, without those that are taken out.
        labels: case to its label, where it is new or changed.
        progress: shows the cubes.

    Raises:
        SelmaError: cubes differ in their channels, or images cannot be used.
    """
    records = dict(kept)
    cases = sorted({*records, *labels})
    channels = _channel_names(lasting, [cubes[case] for case in cases])
    dataset.begin()
    ignored = np.uint8(len(lasting.classes) + 1)
    signatures = []
    for case in progress(cases, "cubes"):
        cube = cubes[case]
        spacing = _spacing(cube, lasting)
        if case in records:
            dataset.keep(case, len(channels), label=case not in labels)
            path, facts = dataset.image(case), records[case]["images"]
            first = to_intensities(open_volume(path).read(), str(path))
        else:
            first, facts = _write_images(dataset, case, cube, spacing)
        signatures.append(signature(case, first))
        if case in labels:
            values = labels[case].values
            values = np.where(values == NOT_ANNOTATED, ignored, values)
            dataset.write_label(case, values, spacing.size_zyx, in_um=spacing.unit == "µm")
            records[case] = _record(cube, labels[case], facts, spacing, lasting)
    return WrittenCases(channels, records, signatures)


def _channel_names(lasting: LastingSettings, cubes: Sequence[Cube]) -> list[str]:
    """Names of the input channels; raises `SelmaError` if cubes differ in number, or several have no names."""
    counts = sorted({len(cube.images) for cube in cubes})
    if len(counts) > 1:
        raise SelmaError(
            f"{cubes[0].folder.parent}: cubes have {counts[0]} and {counts[-1]} channels; keep those of one number"
        )
    names = list(lasting.stains) or ["light sheet"]
    if len(names) != counts[0]:
        raise SelmaError(
            f"{cubes[0].folder}: has {counted(counts[0], 'channel')}, and {counted(len(names), 'name')} "
            f"({', '.join(names)}); name all channels with --stains, in their order"
        )
    return names


def _write_images(
    dataset: GrowingDataset, case: str, cube: Cube, spacing: WrittenSpacing
) -> tuple[Array, list[dict[str, Any]]]:
    """Write the channels of a case; returns the first, and facts about all of them."""
    volumes = [open_volume(image) for image in cube.images]
    check_equal_shapes(volumes, "restore the images of the cube")
    images, facts = zip(*(read_image(volume, None) for volume in volumes), strict=True)
    dataset.write_images(case, images, spacing.size_zyx, in_um=spacing.unit == "µm")
    return images[0], [facts_as_json(of_image) for of_image in facts]


def _spacing(cube: Cube, lasting: LastingSettings) -> WrittenSpacing:
    header = open_volume(cube.images[0]).spacing_um_zyx
    sources = SpacingSources(
        name=str(cube.images[0]), structure=lasting.structure, in_layout=False, header_um_zyx=header
    )
    return spacing_of(sources, lasting.spacing)


def _record(
    cube: Cube,
    label: ReturnedLabel,
    images: Sequence[Mapping[str, Any]],
    spacing: WrittenSpacing,
    lasting: LastingSettings,
) -> dict[str, Any]:
    """Entry of a case in the manifest; `images` are the facts about its channels."""
    return {
        "structure": lasting.structure.prefix if lasting.structure else None,
        "cube": cube.name,
        "brain": cube.brain,
        "brain_path": cube.brain_path,
        "round": cube.round,
        "spacing_zyx": list(spacing.size_zyx),
        "spacing": str(spacing),
        "images_sha256": [file_hash(image) for image in cube.images],
        "label_sha256": label.sha256,
        "images": list(images),
        "label": facts_as_json(_label_facts(cube.label, label.values)),
    }


def _label_facts(file: Path, values: NDArray[np.uint8]) -> LabelFacts:
    counts = dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
    ignored = counts.get(NOT_ANNOTATED, 0)
    unknown = f"{ignored / values.size:.1%} of the voxels are not annotated"
    z, y, x = values.shape
    return LabelFacts(
        file=str(file),
        shape_zyx=(z, y, x),
        dtype=str(values.dtype),
        values={str(value): count for value, count in counts.items()},
        foreground_share=1 - (counts.get(0, 0) + ignored) / values.size,
        warnings=[unknown] if ignored else [],
    )

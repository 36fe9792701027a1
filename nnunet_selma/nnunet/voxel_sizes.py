"""Voxel sizes of plans and datasets: their unit, and whether they agree.

nnU-Net's plans and files hold numbers without a unit, which are voxels, µm or mm. Images of one network must be measured in the same unit:
nnU-Net resamples them to the voxel size of its plans, whatever the numbers mean.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import MANIFEST, Folders
from nnunet_selma.nnunet.raw_cases import raw_cases, raw_reader
from nnunet_selma.running.json_files import read_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import by_times
from nnunet_selma.volumes.units import VOXEL_UNITS, um_in_header_unit

Unit = Literal["voxel", "um", "mm"]
"""Unit of voxel sizes; in voxels each is 1, 1, 1."""

ORIGINAL = "original_median_spacing_after_transp"
"""Key of nnU-Net's plans: median voxel size of the data, along the network's axes."""
LARGEST_FACTOR = 8.0
"""Largest factor between two voxel sizes, along any axis, that may belong to the same kind of images."""
_LOOKED_AT = 64
"""Largest number of cases whose voxel size is read."""


def unit_of(spacing: Sequence[float]) -> Unit:
    """Unit of a voxel size without a unit, by its numbers (`um_in_header_unit`)."""
    scale = None if all(size == 1 for size in spacing) else um_in_header_unit(spacing)
    if scale is None:
        return "voxel"
    return "um" if scale == 1 else "mm"


def dataset_unit(dataset: str, folders: Folders, plans_name: str = "nnUNetPlans") -> Unit:
    """Unit of the voxel sizes of a dataset, from its plans or, where it has none, from the headers of its raw images.

    Args:
        dataset: folder name of the dataset.
        folders: nnU-Net's folders.
        plans_name: name of its plans.
    """
    path = folders.preprocessed / dataset / f"{plans_name}.json"
    if path.is_file():
        return unit_of(read_json(path)[ORIGINAL])
    return unit_of(median_spacing(raw_spacings(folders.raw / dataset)))


def in_unit(spacing_um_zyx: SpacingUm, unit: Unit) -> SpacingUm:
    """A voxel size in µm in the unit of a dataset; 1, 1, 1 in voxels."""
    if unit == "voxel":
        return VOXEL_UNITS
    z, y, x = (size / 1000 if unit == "mm" else size for size in spacing_um_zyx)
    return z, y, x


def largest_factor(first: Sequence[float], second: Sequence[float]) -> float:
    """The largest factor between two voxel sizes along any axis, at least 1; infinite if a size is not positive."""
    pairs = list(zip(first, second, strict=True))
    return math.inf if min(map(min, pairs)) <= 0 else max(max(a / b, b / a) for a, b in pairs)


def as_text(spacing: Sequence[float]) -> str:
    """A voxel size for a sentence, as in 5 × 1.6 × 1.6."""
    return by_times(f"{size:g}" for size in spacing)


def check_voxel_sizes(
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    spacings: Mapping[str, Sequence[float]],
    advice: str | None = None,
) -> None:
    """Raise `SelmaError` for the first image whose voxel size contradicts that of the plans.

    Args:
        plans: nnU-Net's plans.
        configuration: the configuration, with all that it inherits.
        spacings: image to its voxel size (z, y, x).
        advice: what to do then; None: to convert the volumes anew, with the option and the numbers to type.
    """
    planned = planned_spacing(plans, configuration)
    resampled = plans["transpose_forward"][-len(configuration["spacing"]) :]
    in_voxels = unit_of(plans[ORIGINAL]) == "voxel"
    for name, spacing in spacings.items():
        size = [float(edge) for edge in spacing]
        factor = largest_factor([planned[axis] for axis in resampled], [size[axis] for axis in resampled])
        if in_voxels != (unit_of(size) == "voxel") or factor > LARGEST_FACTOR:
            raise SelmaError(
                f"{name} has a voxel size of {as_text(size)}, and the plans {plans['plans_name']} are for {as_text(planned)}, so that nnU-Net "
                f"would resample it wrongly; {advice or _advice(plans, planned, size)}"
            )


def planned_spacing(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[float]:
    """Voxel size (z, y, x) of the images that a configuration is made for, in the unit of the plans.

    It is the voxel size of the configuration. Across the slices of a 2D configuration, and for the first stage of a cascade, which is
    coarser on purpose, it is that of the data.
    """
    original, target = plans[ORIGINAL], configuration["spacing"]
    spacing = original if configuration.get("next_stage") else [*original[: len(original) - len(target)], *target]
    order = list(plans["transpose_forward"])
    return [float(spacing[order.index(axis)]) for axis in range(len(spacing))]


def _advice(plans: Mapping[str, Any], planned: Sequence[float], spacing: Sequence[float]) -> str:
    """The command that gives unlabelled volumes a voxel size in the unit of the plans."""
    unit, present = unit_of(plans[ORIGINAL]), unit_of(spacing)
    command = "convert the volumes anew with nnunet-selma convert unannotated --spacing"
    if unit == "voxel":
        return f"{command} voxel, because the plans are in voxels"
    name = {"um": "µm", "mm": "mm"}[unit]
    correct = "or correct the headers of the annotated dataset and plan it anew"
    if present == "voxel":
        return f"{command} Z,Y,X: their voxel size in {name}, as in the annotated dataset; {correct}"
    if present != unit:
        scale = 1000 if present == "mm" else 1 / 1000
        typed = ",".join(f"{size * scale:g}" for size in spacing)
        return f"{command} {typed}: their voxel size in {name}, as in the annotated dataset; {correct}"
    return (
        f"both are in {name}: check them, {correct}; if they are right, take volumes, or a level of them, with voxels nearer to those of the "
        f"annotated dataset ({as_text(planned)} {name})"
    )


def raw_spacings(dataset_folder: Path) -> dict[str, Sequence[float]]:
    """Case of a raw dataset to its voxel size (z, y, x): from the manifest, or as nnU-Net reads it from the files of at most 64 cases.

    Raises:
        SelmaError: nnU-Net cannot read one of them, or there is none.
    """
    manifest = dataset_folder / MANIFEST
    if manifest.is_file():
        return {case: record["spacing_zyx"] for case, record in read_json(manifest)["cases"].items()}
    cases = raw_cases(dataset_folder)
    reader = raw_reader(dataset_folder, cases)()
    return {case: _spacing_of_files(reader, cases[case]["images"]) for case in _some(cases)}


def _spacing_of_files(reader: Any, files: Sequence[str]) -> Sequence[float]:
    """Voxel size of a case as nnU-Net's reader gives it; ITK reads the header alone."""
    import SimpleITK as sitk
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    try:
        if isinstance(reader, SimpleITKIO):
            header = sitk.ImageFileReader()
            header.SetFileName(files[0])
            header.ReadImageInformation()
            if header.GetDimension() == 3:
                return [float(size) for size in reversed(header.GetSpacing())]
        return [float(size) for size in reader.read_images(files)[1]["spacing"]]
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise SelmaError(f"{', '.join(files)}: nnU-Net cannot read the image ({error}); repair or remove it") from error


def preprocessed_spacings(folder: Path) -> dict[str, Sequence[float]]:
    """Preprocessed case to the voxel size (z, y, x) that it had before; of at most 64 cases."""
    sizes: dict[str, Sequence[float]] = {}
    for case in _some([path.stem for path in folder.glob("*.pkl")]):
        spacing = load_pickle(str(folder / f"{case}.pkl")).get("spacing")
        if spacing is not None:
            sizes[case] = [float(size) for size in spacing]
    return sizes


def median_spacing(spacings: Mapping[str, Sequence[float]]) -> list[float]:
    """The median over cases along each axis."""
    return [float(size) for size in np.median(list(spacings.values()), axis=0)]


def _some(cases: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """At most 64 cases, evenly spread over the sorted names."""
    names = sorted(cases)
    return names[:: math.ceil(len(names) / _LOOKED_AT)] if names else []

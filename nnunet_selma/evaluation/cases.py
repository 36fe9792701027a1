"""Which prediction belongs to which truth, and whether they can be compared; reads headers only."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import PREFIXES, SpacingUm, Structure, named, of_case
from nnunet_selma.volumes import is_volume, open_volume, stem
from nnunet_selma.volumes.itk import is_itk_file
from nnunet_selma.volumes.nifti import is_nifti

Missing = Literal["error", "empty", "leave out"]
"""What to do about a case that one side lacks: stop and name it, take an empty mask for it, or leave it out."""
_NAMED = 10
"""So many cases are named in a sentence; the rest is counted."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. A side without file is an empty mask."""

    name: str
    structure: Structure
    reference: Path | None
    prediction: Path | None
    image: Path | None
    """The raw image, for pictures."""
    spacing_um_zyx: SpacingUm | None
    """Voxel size, µm: what the user says, or the reference's header, or the structure table."""


def find_cases(
    reference: Path,
    prediction: Path,
    *,
    structure: str | None = None,
    missing: Missing = "error",
    images: Path | None = None,
    spacing_um_zyx: SpacingUm | None = None,
) -> tuple[list[Case], list[str]]:
    """Pair the files of two folders by their names without ending, or two files; returns the cases and warnings.

    Args:
        reference: folder of ground truths, or one file. NIfTI, NRRD, MHA, TIFF and OME-Zarr may be mixed.
        prediction: the same of predictions.
        structure: name of the structure, where the names of the cases do not begin with it.
        missing: what to do about cases that one side lacks.
        images: folder of raw images, `<case>.…` or `<case>_0000.…`.
        spacing_um_zyx: voxel size, where the headers are not to be believed.

    Raises:
        SelmaError: nothing to compare, a case without partner, an unknown structure, shapes that differ.
    """
    truths, guesses = _volumes(reference), _volumes(prediction)
    if not reference.is_dir() and not prediction.is_dir():
        guesses = dict(zip(truths, guesses.values(), strict=True))  # two files are a pair, whatever their names
    warnings = []
    lacking = {
        prediction: sorted(set(truths) - set(guesses)),
        reference: sorted(set(guesses) - set(truths)),
    }
    for folder, names in lacking.items():
        if names and missing == "error":
            raise SelmaError(
                f"{folder}: lacks {len(names)} of the cases that the other side has: {listed(names)}. --allow-missing scores "
                "what is missing as empty, --leave-out-missing compares the rest"
            )
        if names:
            done = "scored as empty" if missing == "empty" else "left out"
            warnings.append(
                f"{folder}: lacks {len(names)} of the cases that the other side has, {done}: {listed(names)}"
            )
    names = sorted(set(truths) & set(guesses) if missing == "leave out" else set(truths) | set(guesses))
    if not names:
        raise SelmaError(f"{reference} and {prediction}: no case has the same name on both sides")
    structures = _structures(names, structure)
    pictures = _volumes(images) if images is not None else {}
    cases = [
        Case(
            name=name, structure=structures[name], reference=truths.get(name), prediction=guesses.get(name),
            image=pictures.get(f"{name}_0000", pictures.get(name)),
            spacing_um_zyx=spacing_um_zyx or _spacing(truths.get(name)) or structures[name].spacing_um_zyx,
        )
        for name in names
    ]  # fmt: skip
    _demand_same_shapes(cases)
    return cases, [*warnings, *_geometry_warnings(cases)]


def _volumes(path: Path) -> dict[str, Path]:
    """Name without ending to path, of one volume or of all volumes that lie in a folder."""
    if not path.exists():
        raise SelmaError(f"{path}: there is no such file or folder")
    single = not path.is_dir() or path.suffix == ".zarr"
    files = [path] if single else sorted(entry for entry in path.iterdir() if is_volume(entry))
    if not files:
        hint = (
            "it holds nnU-Net's probabilities (.npz); give the folder of the segmentations"
            if any(path.glob("*.npz"))
            else "give a folder of NIfTI, NRRD, MHA, TIFF or OME-Zarr files"
        )
        raise SelmaError(f"{path}: no volume found; {hint}")
    found: dict[str, Path] = {}
    for file in files:
        name = stem(file)
        if name in found:
            raise SelmaError(f"{file} and {found[name].name} are one case; remove one of them")
        found[name] = file
    return found


def _structures(names: Iterable[str], structure: str | None) -> dict[str, Structure]:
    if structure is not None:
        return dict.fromkeys(names, named(structure))
    found = {name: of_case(name) for name in names}
    unknown = [name for name, one in found.items() if one is None]
    if unknown:
        raise SelmaError(
            f"names that begin with no known structure: {listed(unknown)}. Say what they show with --structure, "
            f"or name them <structure>_<number>; structures are {', '.join(PREFIXES)}"
        )
    return {name: one for name, one in found.items() if one is not None}


def _spacing(path: Path | None) -> SpacingUm | None:
    return None if path is None else open_volume(path).spacing_um_zyx


def _demand_same_shapes(cases: Iterable[Case]) -> None:
    different = []
    for case in cases:
        if case.reference is not None and case.prediction is not None:
            shapes = [open_volume(path).shape for path in (case.prediction, case.reference)]
            if shapes[0] != shapes[1]:
                predicted, true = ("×".join(map(str, shape)) for shape in shapes)
                different.append(f"{case.name} (prediction {predicted}, reference {true})")
    if different:
        raise SelmaError(
            f"another shape (z, y, x) than the reference has: {listed(different)}. Predict on the images that "
            "the references belong to, without resampling or cropping"
        )


def _geometry_warnings(cases: Iterable[Case]) -> list[str]:
    different = []
    for case in cases:
        true, predicted = _geometry(case.reference), _geometry(case.prediction)
        if true and predicted and not np.allclose(true, predicted, atol=1e-4):
            different.append(case.name)
    if not different:
        return []
    return [
        f"another spacing, origin or direction in the header than in the reference's; the arrays are compared as they are, as the official "
        f"evaluators do: {listed(different)}"
    ]


def _geometry(path: Path | None) -> list[float] | None:
    """Spacing, origin and direction of a file that has them."""
    if path is None or not (is_nifti(path) or is_itk_file(path)):
        return None
    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    try:
        file.ReadImageInformation()
    except RuntimeError:
        return None  # ITK refuses headers that nibabel reads
    # further axes of a file of more than three dimensions come last
    return [*file.GetSpacing()[:3], *file.GetOrigin()[:3], *file.GetDirection()] if file.GetDimension() == 3 else None


def listed(names: Iterable[str]) -> str:
    """Names for a sentence; of many only the first."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

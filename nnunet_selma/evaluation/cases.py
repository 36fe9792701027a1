"""Which prediction belongs to which truth, and whether they can be compared; reads headers only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import PREFIXES, SpacingUm, Structure, named, of_case
from nnunet_selma.volumes import is_volume, open_volume, stem
from nnunet_selma.volumes.itk import is_itk_file
from nnunet_selma.volumes.nifti import is_nifti
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.tiff import has_many_pages, tiff_slices

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
    """Pair the files of two folders by their names without ending, or two volumes; returns the cases and warnings.

    Args:
        reference: folder of ground truths, or one: a file, an OME-Zarr, a folder of TIFF slices. All formats may be mixed.
        prediction: the same of predictions.
        structure: name of the structure, where the names of the cases do not begin with it.
        missing: what to do about cases that one side lacks.
        images: folder of raw images, `<case>.…` or `<case>_0000.…`.
        spacing_um_zyx: voxel size, where the headers are not to be believed.

    Raises:
        SelmaError: nothing to compare, a case without partner, an unknown structure, shapes that differ.
    """
    truths, guesses = _volumes(reference), _volumes(prediction)
    if _is_one(reference) and _is_one(prediction):
        guesses = dict(zip(truths, guesses.values(), strict=True))  # a pair, whatever their names
    names, warnings = _paired((prediction, guesses), (reference, truths), missing)
    structures = _structures(names, structure)
    pictures, more = _pictures(images, names)
    cases = [
        Case(
            name=name, structure=structures[name], reference=truths.get(name), prediction=guesses.get(name), image=pictures.get(name),
            spacing_um_zyx=spacing_um_zyx or _spacing(truths.get(name)) or structures[name].spacing_um_zyx,
        )
        for name in names
    ]  # fmt: skip
    _demand_same_shapes(cases)
    cases, odd = _with_fitting_images(cases)
    return cases, [*warnings, *more, *odd, *_geometry_warnings(cases)]


def _paired(
    side: tuple[Path, Mapping[str, Path]], other_side: tuple[Path, Mapping[str, Path]], missing: Missing
) -> tuple[list[str], list[str]]:
    """Names of the cases to compare, and warnings."""
    warnings = []
    (folder, own), (other_folder, other) = side, other_side
    for place, lacking in ((folder, sorted(set(other) - set(own))), (other_folder, sorted(set(own) - set(other)))):
        if lacking and missing == "error":
            raise SelmaError(
                f"{place}: lacks {len(lacking)} of the cases that the other side has: {listed(lacking)}. --allow-missing scores "
                "what is missing as empty, --leave-out-missing compares the rest"
            )
        if lacking:
            done = "scored as empty" if missing == "empty" else "left out"
            warnings.append(
                f"{place}: lacks {len(lacking)} of the cases that the other side has, {done}: {listed(lacking)}"
            )
    names = sorted(set(own) & set(other) if missing == "leave out" else set(own) | set(other))
    if not names:
        raise SelmaError(f"{folder} and {other_folder}: no case has the same name on both sides")
    return names, warnings


def _is_one(path: Path) -> bool:
    """Whether it is one volume: a file, an OME-Zarr, or a folder of TIFF slices."""
    if not path.is_dir():
        return True
    tiffs = sorted(tiff_slices(path))
    return is_zarr(path) or (bool(tiffs) and not has_many_pages(tiffs[0]))


def _volumes(path: Path) -> dict[str, Path]:
    """Name without ending to path, of one volume or of all volumes that lie in a folder."""
    if not path.exists():
        raise SelmaError(f"{path}: there is no such file or folder")
    files = [path] if _is_one(path) else sorted(entry for entry in path.iterdir() if is_volume(entry))
    if path.suffix == ".npz" or (not files and any(path.glob("*.npz"))):
        raise SelmaError(f"{path}: holds nnU-Net's probabilities (.npz); give the segmentations")
    if not files:
        raise SelmaError(f"{path}: no volume found; give a folder of NIfTI, NRRD, MHA, TIFF or OME-Zarr files")
    found: dict[str, Path] = {}
    for file in files:
        name = stem(file)
        if name in found:
            raise SelmaError(f"{file} and {found[name].name} are one case; remove one of them")
        found[name] = file
    return found


def _pictures(images: Path | None, names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Case to its raw image, first channel, and warnings."""
    if images is None:
        return {}, []
    files = _volumes(images)
    found = {name: files.get(f"{name}_0000", files.get(name)) for name in names}
    if _is_one(images) and len(names) == 1:
        found = {names[0]: images}
    lacking = [name for name, path in found.items() if path is None]
    warnings = [f"{images}: no image, so none in the picture, of {listed(lacking)}"] if lacking else []
    return {name: path for name, path in found.items() if path is not None}, warnings


def _with_fitting_images(cases: Iterable[Case]) -> tuple[list[Case], list[str]]:
    """The cases, without images that cannot be shown beside them, and warnings."""
    fitting, odd = [], []
    for case in cases:
        labels = case.reference or case.prediction
        if case.image is not None and labels is not None:
            try:
                fits = open_volume(case.image).shape == open_volume(labels).shape
            except SelmaError:
                fits = False
            if not fits:
                odd.append(case.name)
                case = replace(case, image=None)
        fitting.append(case)
    return fitting, [
        f"images that are no single grey-value volume of the labels' shape are not shown: {listed(odd)}"
    ] if odd else []


def _structures(names: Iterable[str], structure: str | None) -> dict[str, Structure]:
    if structure is not None:
        return dict.fromkeys(names, named(structure))
    found = {name: of_case(name) or _of_part(name) for name in names}
    unknown = [name for name, one in found.items() if one is None]
    if unknown:
        raise SelmaError(
            f"names that begin with no known structure: {listed(unknown)}. Say what they show with --structure, "
            f"or name them <structure>_<number>; structures are {', '.join(PREFIXES)}"
        )
    return {name: one for name, one in found.items() if one is not None}


def _of_part(name: str) -> Structure | None:
    """By a part of the name, as the evaluator of 2024 has it."""
    parts = {"cfos": "cfos_neuron", "microglia": "microglia"}
    return next((named(prefix) for part, prefix in parts.items() if part in name), None)


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

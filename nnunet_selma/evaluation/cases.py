"""Files of predictions paired with files of ground truths, and checked; reads headers only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import PREFIXES, SpacingUm, Structure, of_case
from nnunet_selma.volumes import Volume, is_store, is_volume, open_volume, parts_of_others, stem
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.orientation import Placement, placement
from nnunet_selma.volumes.segmented import label_path
from nnunet_selma.volumes.tiff import is_stack_of_slices, is_tiff, tiff_slices

Missing = Literal["error", "empty", "leave out"]
"""Treatment of a case that one side lacks: raise an error, score it as empty, or leave it out."""
_MOST_NAMED = 10
"""Greatest number of cases that a sentence names; further ones are counted."""


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Files of one case of one method. A side without file is an empty mask."""

    name: str
    structure: Structure
    reference: Path | None
    prediction: Path | None
    image: Path | None
    """The raw image, for pictures."""
    spacing_um_zyx: SpacingUm | None
    """Voxel size, µm, (z, y, x): from the user, else from the reference's header, else from the structure table."""
    spacing_from_table: bool = False
    """True if only the structure table states the voxel size."""


def find_cases(
    reference: Path,
    predictions: Mapping[str, Path],
    *,
    structure: Structure | None = None,
    missing: Missing = "error",
    images: Path | None = None,
    spacing_um_zyx: SpacingUm | None = None,
) -> tuple[dict[str, list[CaseFiles]], list[str]]:
    """Pair files by their names without ending; two single volumes are a pair whatever their names.

    Args:
        reference: folder of ground truths, or one volume: a file, an OME-Zarr, a folder of TIFF slices. Formats may be mixed.
        predictions: method to its folder of predictions, or to one volume.
        structure: structure of all cases; None takes it from the name of each case.
        missing: treatment of cases that one side lacks.
        images: folder of raw images, `<case>.…` or `<case>_0000.…`.
        spacing_um_zyx: voxel size, µm, instead of that of headers and structure table.

    Returns:
        The cases of each method, the same for all methods, and warnings.

    Raises:
        SelmaError: nothing to compare, a case without partner, an unknown structure, shapes that differ.
    """
    truths = _volumes(reference)
    guesses = {method: _volumes(folder) for method, folder in predictions.items()}
    if is_single_volume(reference) and all(is_single_volume(folder) for folder in predictions.values()):
        guesses = {method: dict(zip(truths, files.values(), strict=True)) for method, files in guesses.items()}
    sides = {reference: truths, **{folder: guesses[method] for method, folder in predictions.items()}}
    names, warnings = _paired(list(sides.items()), missing)
    structures, contradicted = _structures(names, structure)
    pictures, lacking = _pictures(images, names)
    cases = {
        method: [
            CaseFiles(
                name=name,
                structure=structures[name],
                reference=truths.get(name),
                prediction=files.get(name),
                image=pictures.get(name),
                spacing_um_zyx=(header := spacing_um_zyx or _spacing(truths.get(name)))
                or structures[name].spacing_um_zyx,
                spacing_from_table=header is None and structures[name].spacing_um_zyx is not None,
            )
            for name in sorted(names, key=lambda name: (_order(structures[name]), name))
        ]
        for method, files in guesses.items()
    }
    every = [case for of_method in cases.values() for case in of_method]
    placements = [_placement(case) for case in every]
    _check_same_shapes(every, placements)
    odd = _with_unfitting_image(every)
    for method, of_method in cases.items():
        cases[method] = [replace(case, image=None) if case.name in odd else case for case in of_method]
    if odd:
        lacking.append(f"images that are no single grey-value volume of the labels' shape are not shown: {listed(odd)}")
    return cases, [*warnings, *contradicted, *lacking, *_orientation_warnings(every, placements)]


def _paired(sides: Sequence[tuple[Path, Mapping[str, Path]]], missing: Missing) -> tuple[list[str], list[str]]:
    """Names of the cases to compare, and warnings; the first side is the reference."""
    warnings = []
    every = set[str]().union(*(files for _, files in sides))
    for place, files in sides:
        lacking = sorted(every - set(files))
        if lacking and missing == "error":
            raise SelmaError(
                f"{place}: lacks {len(lacking)} of the cases that another side has: {listed(lacking)}. --allow-missing scores "
                "what is missing as empty, --leave-out-missing compares the cases that all have"
            )
        if lacking:
            done = "scored as empty" if missing == "empty" else "left out"
            warnings.append(
                f"{place}: lacks {len(lacking)} of the cases that another side has, {done}: {listed(lacking)}"
            )
    names = every.intersection(*(files for _, files in sides)) if missing == "leave out" else every
    if not names:
        raise SelmaError(f"{', '.join(str(place) for place, _ in sides)}: no case has the same name on all sides")
    return sorted(names), warnings


def is_single_volume(path: Path) -> bool:
    """True if the path is one volume: a file, an OME-Zarr, N5 of BigDataViewer, or a folder of TIFF slices."""
    if not path.is_dir() or is_store(path):
        return True
    others = any(is_volume(entry) and not is_tiff(entry) for entry in path.iterdir())
    return bool(tiff_slices(path)) and not others and is_stack_of_slices(path)


def _volumes(path: Path) -> dict[str, Path]:
    """The volume at a path, or all volumes in the folder there, each once though it lies in several files: name without ending to path."""
    if not path.exists():
        raise SelmaError(f"{path}: there is no such file or folder")
    files = [path] if is_single_volume(path) else sorted(entry for entry in path.iterdir() if is_volume(entry))
    if path.suffix == ".npz" or (not files and any(path.glob("*.npz"))):
        raise SelmaError(f"{path}: holds nnU-Net's probabilities (.npz); give the segmentations")
    if not files:
        raise SelmaError(f"{path}: no volume found; give a folder of NIfTI, NRRD, MHA, TIFF or OME-Zarr files")
    volumes: dict[str, Path] = {}
    parts = parts_of_others(files)
    for file in (file for file in files if file.resolve() not in parts):
        name = _name(file)
        if name in volumes:
            raise SelmaError(f"{file} and {volumes[name].name} are one case; remove one of them")
        volumes[name] = file
    return volumes


def _name(path: Path) -> str:
    """Name of a case: that of its file, for a label image that of the OME-Zarr around it."""
    around = path.resolve().parent.parent
    return stem(around if path.resolve().parent.name == "labels" and is_zarr(around) else path)


def _pictures(images: Path | None, names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Case to its raw image, first channel, and warnings."""
    if images is None:
        return {}, []
    files = _volumes(images)
    pictures = {name: files.get(f"{name}_0000", files.get(name)) for name in names}
    if is_single_volume(images) and len(names) == 1:
        pictures = {names[0]: images}
    lacking = [name for name, path in pictures.items() if path is None]
    warnings = [f"{images}: no image, so none in the picture, of {listed(lacking)}"] if lacking else []
    return {name: path for name, path in pictures.items() if path is not None}, warnings


def _with_unfitting_image(cases: Iterable[CaseFiles]) -> list[str]:
    """Names of cases whose image cannot be shown beside their labels."""
    odd = []
    for case in cases:
        labels = case.reference or case.prediction
        if case.image is not None and labels is not None and case.name not in odd:
            try:
                like = open_header(labels)
                fits = placement(open_volume(case.image), like).shape == like.shape
            except SelmaError:
                fits = False
            if not fits:
                odd.append(case.name)
    return odd


def _order(structure: Structure) -> int:
    """Row of the structure table; new structures come last."""
    return PREFIXES.index(structure.prefix) if structure.prefix in PREFIXES else len(PREFIXES)


def _structures(names: Sequence[str], chosen: Structure | None) -> tuple[dict[str, Structure], list[str]]:
    """Case to its structure, and warnings."""
    by_name = {name: of_case(name) for name in names}
    if chosen is not None:
        other = [name for name, known in by_name.items() if known not in (None, chosen)]
        warning = f"taken for {chosen.title}, as --structure says, though the name says otherwise: {listed(other)}"
        return dict.fromkeys(names, chosen), [warning] if other else []
    unknown = [name for name, known in by_name.items() if known is None]
    if unknown:
        raise SelmaError(
            f"names that begin with no known structure: {listed(unknown)}. Say what they show with --structure, "
            f"for a new one with --kind, or name them <structure>_<number>; structures are {', '.join(PREFIXES)}"
        )
    return {name: known for name, known in by_name.items() if known is not None}, []


def open_header(path: Path) -> Volume:
    """Open the labels at a path; reads no voxels, which are looked at when they are scored."""
    return open_volume(label_path(path))


def _spacing(path: Path | None) -> SpacingUm | None:
    return None if path is None else open_header(path).spacing_um_zyx


def _placement(case: CaseFiles) -> Placement | None:
    """Placement of the prediction against the reference; None where one of them is missing."""
    if case.reference is None or case.prediction is None:
        return None
    return placement(open_header(case.prediction), open_header(case.reference))


def _check_same_shapes(cases: Sequence[CaseFiles], placements: Sequence[Placement | None]) -> None:
    different: list[str] = []
    for case, placed in zip(cases, placements, strict=True):
        if placed is not None and case.reference is not None:
            shapes = placed.shape, open_header(case.reference).shape
            if shapes[0] != shapes[1]:
                predicted, true = ("×".join(map(str, shape)) for shape in shapes)
                different.append(f"{case.name} (prediction {predicted}, reference {true})")
    if different:
        raise SelmaError(
            f"another shape (z, y, x) than the reference has: {listed(different)}. Predict on the images that "
            "the references belong to, without resampling or cropping"
        )


def _orientation_warnings(cases: Sequence[CaseFiles], placements: Sequence[Placement | None]) -> list[str]:
    """Warnings of predictions that are turned to the reference, and of other differences between the headers."""
    names: dict[str, list[str]] = {}
    for case, placed in zip(cases, placements, strict=True):
        if placed is not None and placed.turns:
            sentence = f"another orientation in the header than in the reference's; the predictions were turned to the references ({placed.turns})"
            names.setdefault(sentence, []).append(case.name)
        if placed is not None and placed.difference:
            sentence = f"{placed.difference} in the header than in the reference's; the arrays are compared as they lie, as the official evaluators do"
            names.setdefault(sentence, []).append(case.name)
    return [f"{sentence}: {listed(dict.fromkeys(of_sentence))}" for sentence, of_sentence in names.items()]


def listed(names: Iterable[str]) -> str:
    """Names joined for a sentence; of many, the first ones and the number of the others."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more

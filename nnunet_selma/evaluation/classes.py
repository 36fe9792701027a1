"""Classes of label files, each of which is scored on its own: their names and values, and the mask of one of them."""

from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation.cases import CaseFiles, is_single_volume
from nnunet_selma.morphology.blocks import Mask
from nnunet_selma.running.json_files import read_json
from nnunet_selma.running.parallel import run_tasks
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.volumes.base import Volume
from nnunet_selma.volumes.labels import label_values
from nnunet_selma.volumes.ome_zarr import is_zarr
from nnunet_selma.volumes.segmented import class_names, label_path, open_labels

_MOST_CLASSES = 64
"""Greatest number of classes; label files of instances hold more values."""
_IGNORED = "ignore"
"""nnU-Net's name of the label of voxels that nobody annotated."""


@dataclass(frozen=True)
class LabelClass:
    """A class of label files."""

    name: str
    values: tuple[int, ...]
    """Values of its voxels; several for a region of nnU-Net, and where a file gives one name to several values. No other class has the same."""
    ignored: int | None = None
    """Value of voxels that nobody annotated, which are scored for no class; None if there is none."""

    @property
    def key(self) -> str:
        """Part of the names of its files."""
        return "-".join(map(str, self.values))


def find_classes(
    reference: Path,
    predictions: Iterable[Path],
    cases: Iterable[CaseFiles],
    *,
    workers: int = 1,
    progress: Progress[Any] = silent,
) -> tuple[LabelClass, ...]:
    """Classes of label files, in the order of their values, background and nnU-Net's `ignore` left out.

    They are those of the `dataset.json` of nnU-Net that lies beside the files, or above a folder `labels…`. Without one, every file is read:
    each value above 0 that occurs in any is a class, by the name that the metadata of an OME-Zarr give it, else by its number.

    Args:
        reference: folder or file of ground truths.
        predictions: folders or files of predictions.
        cases: the cases of all methods.
        workers: greatest number of processes that read files.
        progress: shows the files.

    Raises:
        SelmaError: two descriptions differ; a description gives two names to the same values; the files hold no class, or more values than classes can have.
    """
    described = {place: classes for side in (reference, *predictions) for place, classes in _description(side)}
    if described:
        ignored, _ = ignored_value(reference, ())
        for classes in described.values():
            classes.pop(_IGNORED, None)
        (place, first), *others = described.items()
        for other, classes in others:
            if classes != first:
                raise SelmaError(
                    f"{other}: names other classes or values ({_listed(classes)}) than {place} ({_listed(first)}); give predictions of "
                    "the same classes, or remove the file that is wrong"
                )
        return tuple(
            sorted((LabelClass(name, values, ignored) for name, values in first.items()), key=lambda c: c.values)
        )
    files = sorted({path for case in cases for path in (case.reference, case.prediction) if path is not None})
    values = sorted(
        set[int]().union(
            *run_tasks(
                values_of, files, steps=len(files), workers=workers, label="classes of the files", progress=progress
            )
        )
        - {0}
    )
    if not values:
        raise SelmaError(f"{reference}: no file holds a value above 0, so there is no class to score; check the labels")
    _check_few(values, reference)
    names: dict[int, str] = {}
    for file in files:
        for value, name in class_names(label_path(file)).items():
            if names.setdefault(value, name) != name:
                raise SelmaError(
                    f"{file}: calls the label {value} {name}, another file {names[value]}; correct one of them"
                )
    by_name: dict[str, list[int]] = {}
    for value in values:
        by_name.setdefault(names.get(value, str(value)), []).append(value)
    return tuple(LabelClass(name, tuple(of_name)) for name, of_name in by_name.items())


def ignored_value(reference: Path, predictions: Iterable[Path]) -> tuple[int | None, list[str]]:
    """Value of voxels that nobody annotated, as the `dataset.json` of the ground truths names it, or None; and sentences about what is not applied.

    That of predictions describes what a model learned from, not the ground truths here, in which the value may be an object.
    """
    value: int | None = None
    warnings = []
    for side in dict.fromkeys((reference, *predictions)):
        try:
            described = _description(side)
        except SelmaError as error:
            warnings.append(f"{error}; it is not used, and no voxels are left out as not annotated by it")
            continue
        for path, classes in described:
            if _IGNORED in classes and side == reference:
                value = classes[_IGNORED][0]
            elif _IGNORED in classes and value is None:
                warnings.append(
                    f"{path}: names the value {classes[_IGNORED][0]} for voxels that nobody annotated, and no dataset.json of the ground truths "
                    "does; it is not applied"
                )
    return value, warnings


def values_of(path: Path) -> Generator[int, None, set[int]]:
    """Values in a label file; the work of `run_tasks`, one step."""
    values = set(np.unique(label_values(open_labels(path).read(), path)).tolist())
    _check_few(values, path)
    yield 1
    return values


def _check_few(values: Collection[int], path: Path) -> None:
    if (count := len(values)) > _MOST_CLASSES:
        raise SelmaError(f"{path}: holds {count} values, as files of instances do; classes are {_MOST_CLASSES} at most")


def class_mask(volume: Volume, chosen: LabelClass, classes: Iterable[LabelClass]) -> Mask:
    """Mask of the voxels of one class, (z, y, x).

    Args:
        volume: a label file.
        chosen: the class.
        classes: all classes.

    Raises:
        SelmaError: the values are no labels, or one of them is of no class.
    """
    labels = label_values(volume.read(), volume.path)
    known = {0, *(value for label_class in classes for value in label_class.values)}
    known |= {chosen.ignored} if chosen.ignored is not None else set()
    unknown = np.setdiff1d(np.unique(labels), sorted(known))
    if len(unknown):
        more = ", …" if len(unknown) > 8 else ""
        raise SelmaError(
            f"{volume.path}: holds the values {', '.join(map(str, unknown[:8].tolist()))}{more}, which dataset.json gives to no class; "
            "give labels of the classes that it names"
        )
    return np.isin(labels, chosen.values)


def ignored_mask(volume: Volume, ignored: int | None) -> Mask | None:
    """Mask of the voxels of a label file that nobody annotated, (z, y, x); None where no value says so."""
    if ignored is None:
        return None
    return np.asarray(label_values(volume.read(), volume.path) == ignored)


def _description(side: Path) -> list[tuple[Path, dict[str, tuple[int, ...]]]]:
    """The `dataset.json` for a folder or file of labels, and the classes and ignored voxels that it names; empty where it names no class."""
    folder = _folder(side)
    for place in (folder, *([folder.parent] if folder.name.startswith("labels") else [])):
        path = place / "dataset.json"
        if path.is_file() and (classes := _classes(read_json(path), path)).keys() - {_IGNORED}:
            return [(path, classes)]
    return []


def _folder(side: Path) -> Path:
    """The folder in which the files of a side lie; for labels in an OME-Zarr that of the OME-Zarr."""
    side = side.resolve()
    if side.is_dir() and not is_single_volume(side):
        return side
    around = side.parent.parent
    return (around if side.parent.name == "labels" and is_zarr(around) else side).parent


def _classes(content: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Class, or `ignore`, to its values in the content of a `dataset.json`, without background; raises `SelmaError` if two have the same."""
    try:
        named = {str(name): _numbers(values) for name, values in (content.get("labels") or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise SelmaError(f"{path}: its labels are not those of nnU-Net v2 ({error}); correct them") from error
    classes = {name: values for name, values in named.items() if any(values)}
    names: dict[tuple[int, ...], str] = {}
    for name, values in classes.items():
        if names.setdefault(values, name) != name:
            raise SelmaError(
                f"{path}: gives the values {', '.join(map(str, values))} to {names[values]} and to {name}; give each class values of its own"
            )
    return classes


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(sorted(map(int, values))) if isinstance(values, list) else (int(values),)


def _listed(classes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {' and '.join(map(str, values))}" for name, values in classes.items())

"""Cubes that `propose` handed over, and the labels that people painted in them; label files are only read.

A label holds 0 for background, 1 and above for classes, and 255 where nobody annotated. A label is questioned, not interpreted, where it may be
unfinished: it is as it was handed over, it is empty, or the painted planes stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.annotation.layout import (
    CUBE,
    LABEL,
    NOT_ANNOTATED,
    RECORD,
    file_hash,
    unsaved_files,
    values_hash,
)
from nnunet_selma.conversion.checks import open_label
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import by_times
from nnunet_selma.volumes.labels import label_values
from nnunet_selma.volumes.orientation import placement

_LEAST_GAP = 0.25
"""Share of the planes along an axis, in a row and without any label, from which on they may have been forgotten."""
_FEWEST_PLANES = 4
"""Planes in a row below which nothing is questioned."""
_ABRUPT = 0.5
"""Voxels in the last painted plane, as a share of their mean over painted planes, from which on the labels stop abruptly: objects taper."""


@dataclass(frozen=True, kw_only=True)
class Cube:
    """A cube of a folder of cubes."""

    name: str
    folder: Path
    brain: str
    """Name of the brain."""
    brain_path: str
    """Path of the brain when the cube was cut."""
    round: int
    suggestion: str
    """Content of the label as it was handed over: "empty", or "model"."""
    handed_over: str
    """`label_hash` of the label as it was handed over."""
    images: tuple[Path, ...]
    """Files of the image, one for each channel."""

    @property
    def label(self) -> Path:
        """File of the label."""
        return self.folder / LABEL

    @property
    def other_labels(self) -> list[str]:
        """Names of files beside the label that a person may take for it."""
        beside = {path.name for pattern in ("*label*", "unsaved*") for path in self.folder.glob(pattern)}
        return sorted(beside - {LABEL})

    @property
    def unsaved(self) -> list[Path]:
        """Files that hold what was painted in napari and not saved; they are not read as labels."""
        return unsaved_files(self.folder)


def is_folder_of_cubes(folder: Path | None) -> bool:
    """True for a folder that `propose` wrote."""
    return folder is not None and (folder / RECORD).is_file()


def read_cubes(folder: Path) -> list[Cube]:
    """The cubes of a folder, by name; raises `SelmaError` if there are none, one lacks its label, or one is a copy."""
    if not is_folder_of_cubes(folder):
        raise SelmaError(f"{folder}: holds no {RECORD}; give a folder that nnunet-selma propose wrote")
    cubes = [_read_cube(path) for path in sorted(folder.glob(f"*/{CUBE}"))]
    if not cubes:
        raise SelmaError(f"{folder}: holds no cubes; run nnunet-selma propose again")
    return cubes


def _read_cube(path: Path) -> Cube:
    content, folder = read_json(path), path.parent
    try:
        cube = Cube(
            name=folder.name,
            folder=folder,
            brain=str(content["brain"]),
            brain_path=str(content["path"]),
            round=int(content["round"]),
            suggestion=str(content["suggestion"]),
            handed_over=str(content["label_sha256"]),
            images=tuple(folder / str(name) for name in content["images"]),
        )
        name = str(content["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise SelmaError(f"{path}: is no record of a cube ({error}); restore it") from error
    if name != folder.name:
        raise SelmaError(
            f"{folder}: holds {name}, so it is a copy or was renamed; move a copy out of {folder.parent}, or give the folder the name {name} again"
        )
    for file in (*cube.images, cube.label):
        if not file.is_file():
            raise SelmaError(f"{file}: is missing; put it back")
    return cube


class ReturnedLabel(NamedTuple):
    """A label as it was read."""

    values: NDArray[np.uint8]
    """0, classes and `NOT_ANNOTATED`, (z, y, x)."""
    sha256: str
    """`label_hash` of it."""


def read_label(cube: Cube) -> ReturnedLabel:
    """Read the label of a cube.

    Raises:
        SelmaError: the file is damaged or changes meanwhile; it does not lie on the image; its values are no labels.
    """
    before, volume = file_hash(cube.label), open_label(cube.label)
    _check_place(volume, open_volume(cube.images[0]))
    labels = label_values(volume.read(), cube.label)
    if file_hash(cube.label) != before:
        raise SelmaError(f"{cube.label}: was saved while it was read; run the command again")
    if labels.max(initial=0) > NOT_ANNOTATED:
        raise SelmaError(
            f"{cube.label}: holds the value {labels.max()}; classes are 1 and above, and {NOT_ANNOTATED} marks what nobody annotated"
        )
    return ReturnedLabel(labels.astype(np.uint8), values_hash(labels))


def _check_place(label: Volume, image: Volume) -> None:
    """Raise `SelmaError` if a label does not lie on its image voxel by voxel."""
    remedy = "open the label over the image, without resampling or cropping, and save it there"
    if label.shape != image.shape:
        raise SelmaError(
            f"{label.path}: has {by_times(label.shape)} voxels, the image {by_times(image.shape)} (z, y, x); {remedy}"
        )
    if image.affine is not None and label.affine is None:
        raise SelmaError(f"{label.path}: states no place and no voxel size, as {image.path.name} does; {remedy}")
    placed = placement(label, image)
    if placed.turns or placed.difference:
        lies = f"another orientation ({placed.turns})" if placed.turns else placed.difference
        raise SelmaError(f"{label.path}: has {lies} than {image.path.name}; {remedy}")


def doubts(cube: Cube, labels: NDArray[np.uint8]) -> str | None:
    """Words for what makes a changed label look unfinished; None if nothing does.

    A label with voxels marked as not annotated says by them what is finished. Of labels that a model suggested, only empty ones are doubted.
    """
    marked = labels == NOT_ANNOTATED
    painted = (labels > 0) & ~marked
    if not painted.any() and not marked.any():
        return "was saved, and is empty"
    if not painted.any() and not marked.all():
        return f"holds only 0 and {NOT_ANNOTATED}, so nothing is there and the rest was not annotated; the structure itself is 1"
    if marked.any():
        return None
    if cube.suggestion != "empty":
        return None
    return next((words for axis in range(3) if (words := _stop(painted, axis))), None)


def _stop(painted: NDArray[np.bool_], axis: int) -> str | None:
    """Words for painted planes that stop abruptly along an axis, before or after many planes without label; None if they do not."""
    counts = np.moveaxis(painted, axis, 0).reshape(painted.shape[axis], -1).sum(1)
    mean = counts[counts > 0].mean()
    for first, last in _runs(counts == 0):
        if last - first + 1 < max(_FEWEST_PLANES, _LEAST_GAP * len(counts)):
            continue
        for edge in (first - 1, last + 1):
            if 0 <= edge < len(counts) and counts[edge] >= _ABRUPT * mean:
                return (
                    f"has no label in the {counted(last - first + 1, 'plane')} {first} to {last} along {'zyx'[axis]}, of {len(counts)}, and plane "
                    f"{edge} beside them has {counted(int(counts[edge]), 'labelled voxel')} (on average {mean:.0f} in planes with labels)"
                )
    return None


def _runs(flags: NDArray[np.bool_]) -> Sequence[tuple[int, int]]:
    """First and last place of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return [(int(start), int(end) - 1) for start, end in zip(edges[::2], edges[1::2], strict=True)]

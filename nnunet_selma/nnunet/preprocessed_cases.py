"""Checks of preprocessed cases: shapes that would be mostly padding, damaged files, numbers that are not finite."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle

from nnunet_selma.errors import SelmaError

_LOOKED_AT = 64
"""Largest number of cases whose shape is read."""
_SOME_PADDING, _MOSTLY_PADDING = 0.1, 0.5
"""Shares of padding in a patch above which a user is warned, or the training is refused."""
_NOT_FINITE = "holds numbers that are not finite"
_SLAB = 16
"""Slices of a case that are read together."""


def shapes_of_cases(folder: Path, kind: Any) -> list[tuple[int, ...]]:
    """Shapes of preprocessed cases along the axes of their plans; of at most 64 cases, evenly spread over the sorted names.

    Args:
        folder: folder of the preprocessed cases.
        kind: nnU-Net's dataset class, or `TileStore`.
    """
    names = sorted(kind.get_identifiers(str(folder)))
    chosen = names[:: math.ceil(len(names) / _LOOKED_AT)] if names else []
    dataset = kind(str(folder), chosen)
    return [tuple(int(edge) for edge in dataset.load_case(name)[0].shape[1:]) for name in chosen]


def padding_sentence(shapes: Sequence[Sequence[int]], patch: Sequence[int]) -> str:
    """A warning if cases are so thin that much of the patches is padding; else empty.

    Args:
        shapes: shapes of the preprocessed cases, along the axes of the patch.
        patch: patch size of the plans.

    Raises:
        SelmaError: on average more than half of a patch is padding, from which a pretext learns nothing.
    """
    filled = [
        math.prod(min(edge, size) / size for edge, size in zip(shape[-len(patch) :], patch, strict=True))
        for shape in shapes
    ]
    padding = 1 - sum(filled) / len(filled) if filled else 0.0
    if padding <= _SOME_PADDING:
        return ""
    smallest = "×".join(map(str, min(shapes, key=math.prod)))
    sentence = (
        f"{padding:.0%} of a patch of {'×'.join(map(str, patch))} is padding, because cases are as small as {smallest} voxels; convert larger "
        "tiles (nnunet-selma convert unannotated --tile), or plan a smaller patch (nnunet-selma plan-small --patch) for both datasets"
    )
    if padding > _MOSTLY_PADDING:
        raise SelmaError(sentence)
    return sentence


def faults_of_cases(folder: Path, cases: Iterable[str], *, damaged_only: bool = False) -> Iterator[str]:
    """Sentences about files that cannot be read whole, and images that hold NaN or infinite numbers.

    All files are read, some slices at a time. That takes long, and is done only after a training has failed.

    Args:
        folder: folder of the cases, blosc2 files of nnU-Net or of a tile store.
        cases: names of the cases.
        damaged_only: leave out numbers that are not finite.
    """
    for case in cases:
        for path in (folder / f"{case}.b2nd", folder / f"{case}_seg.b2nd", folder / f"{case}.pkl"):
            fault = _fault(path)
            if fault and not (damaged_only and fault == _NOT_FINITE):
                yield f"{path}, which {fault}"


def _fault(path: Path) -> str:
    """The fault of a file of a case; empty if it is good, or does not exist, because a tile store has no labels."""
    if not path.is_file():
        return ""
    try:
        if path.suffix == ".pkl":
            load_pickle(str(path))
            return ""
        stored = blosc2.open(str(path), mode="r")
        finite = all(np.isfinite(stored[:, first : first + _SLAB]).all() for first in range(0, stored.shape[1], _SLAB))
    except Exception as error:  # noqa: BLE001 - blosc2 and pickle raise all kinds, and each means the same here
        return f"is damaged ({type(error).__name__}: {error})"
    return "" if finite else _NOT_FINITE

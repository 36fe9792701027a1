"""Cubes whose labels are new or changed, or that are taken out of a dataset, and the question about those that may be unfinished.

Cubes that a person left out stay so, without being asked about again, until their label changes, or what was painted and not saved beside it.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunet_selma.annotation.cube_settings import CubeSettings
from nnunet_selma.annotation.layout import NOT_ANNOTATED, file_hash, label_hash
from nnunet_selma.annotation.returned import Cube, ReturnedLabel, doubts, read_label
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.running.progress import Progress

_MOST_NAMED = 12
"""Greatest number of cubes or questions that an error prints; further ones are counted."""


class Changes(NamedTuple):
    """Labels that a dataset does not hold yet, and the cubes that it goes without."""

    taken: dict[str, ReturnedLabel]
    """Case to its label, where it is new or changed."""
    left_out: dict[str, dict[str, Any]]
    """Name of a cube to the reason why it is left out, and the hashes of its label and of files not saved, as in the manifest."""
    removed: list[str]
    """Cases that the dataset holds, and whose cubes are to be left out."""

    @property
    def need_a_version(self) -> bool:
        """True if the dataset is to hold other cases or labels than before."""
        return bool(self.taken or self.removed)


@dataclass(frozen=True, kw_only=True)
class _Judgement:
    """The label of a cube, or the reason for doing without it, or words of a question; nothing where the dataset holds the label."""

    label: ReturnedLabel | None = None
    left_out: str | None = None
    unchanged: str | None = None
    doubtful: str | None = None


def read_changes(
    source: Path,
    cubes: Mapping[str, Cube],
    manifest: Mapping[str, Any] | None,
    answers: CubeSettings,
    progress: Progress[Any],
) -> Changes:
    """Read the labels that are new or changed since the last version of a dataset.

    Args:
        source: the folder of cubes.
        cubes: case to its cube.
        manifest: that of the last version; None before the first.
        answers: cubes to leave out, and cubes that are right as they are.
        progress: shows the cubes.

    Raises:
        SelmaError: labels cannot be used, or may be unfinished; the message asks about all of them.
    """
    cases = manifest["cases"] if manifest else {}
    earlier = manifest["left_out_cubes"] if manifest else {}
    judgements: dict[str, _Judgement] = {}
    left_out: dict[str, dict[str, Any]] = {}
    for case, cube in progress(list(cubes.items()), "reading labels"):
        digest = label_hash(cube.label)
        held = cases[case]["label_sha256"] if case in cases else None
        reason = reason_left_out(cube, digest, earlier)
        judgement = judgements[case] = _judged(cube, digest, held, reason, answers)
        if judgement.left_out:
            left_out[cube.name] = {**_files(cube, digest), "reason": judgement.left_out}
    unchanged = [judgement.unchanged for judgement in judgements.values() if judgement.unchanged]
    doubtful = [judgement.doubtful for judgement in judgements.values() if judgement.doubtful]
    if unchanged or doubtful:
        raise SelmaError(_question(source, unchanged, doubtful))
    taken = {case: judgement.label for case, judgement in judgements.items() if judgement.label}
    return Changes(taken, left_out, [case for case, record in cases.items() if record["cube"] in answers.without])


def reason_left_out(cube: Cube, digest: str, left_out: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The reason for which a cube was left out of a dataset; None if it was not, or its files have changed since.

    Args:
        cube: the cube.
        digest: `label_hash` of its label.
        left_out: entries of the manifest about cubes that are left out.
    """
    entry = dict(left_out.get(cube.name, {}))
    reason: str | None = entry.pop("reason", None)
    return reason if entry == _files(cube, digest) else None


def _files(cube: Cube, digest: str) -> dict[str, Any]:
    """Hashes of what an answer about a cube is about: its label, and what was painted and not saved."""
    unsaved = {path.name: file_hash(path) for path in cube.unsaved}
    return {"label_sha256": digest, **({"unsaved_sha256": unsaved} if unsaved else {})}


def _judged(cube: Cube, digest: str, held: str | None, reason: str | None, answers: CubeSettings) -> _Judgement:
    """Judge a label.

    Args:
        cube: the cube.
        digest: `label_hash` of its label.
        held: that of its label in the dataset; None for a cube that is not in it.
        reason: the reason for which the label as it is was left out before; None if it was not.
        answers: cubes to leave out, and cubes that are right as they are.
    """
    as_is = cube.name in answers.as_is
    if cube.name in answers.without:
        return _Judgement(left_out="as asked for")
    if digest == held:
        return _Judgement()
    if reason and not as_is:
        return _Judgement(left_out=reason)
    judgement = _judged_label(cube, digest, held, answers)
    if not cube.unsaved or as_is:
        return judgement
    files = ", ".join(path.name for path in cube.unsaved)
    start = f"{judgement.doubtful}, and" if judgement.doubtful else f"{cube.name}:"
    view = shlex.join(["nnunet-selma", "view", str(cube.folder)])
    return _Judgement(
        doubtful=f"{start} what was painted and not saved lies in {files} ({view} says how to take it; --as-is takes {cube.label.name} without it)"
    )


def _judged_label(cube: Cube, digest: str, held: str | None, answers: CubeSettings) -> _Judgement:
    """Judge a label that is new or changed by its voxels."""
    as_is = cube.name in answers.as_is
    if digest == cube.handed_over and not as_is:
        if held is not None:
            return _Judgement(
                doubtful=f"{cube.name} is as it was handed over, though an annotation of it is in the dataset"
            )
        if answers.without_unchanged:
            return _Judgement(left_out="its label is as it was handed over")
        beside = f" (beside it lies {cube.other_labels[0]}, which is not read)" if cube.other_labels else ""
        return _Judgement(unchanged=cube.name + beside)
    label = read_label(cube)
    words = None if as_is else doubts(cube, label.values)
    if (label.values == NOT_ANNOTATED).all():
        if held is not None:
            return _Judgement(
                doubtful=f"{cube.name} is marked as not annotated, though an annotation of it is in the dataset"
            )
        return _Judgement(left_out="all of it is marked as not annotated")
    return _Judgement(doubtful=f"{cube.name} {words}") if words else _Judgement(label=label)


def _question(source: Path, unchanged: Sequence[str], doubtful: Sequence[str]) -> str:
    """A sentence that asks about all labels that may be unfinished."""
    parts = []
    if unchanged:
        parts.append(
            f"{counted(len(unchanged), 'cube')} as handed over: {listed(unchanged)}; leave them out for now with --without-unchanged"
        )
    if doubtful:
        parts.append(
            f"{counted(len(doubtful), 'label')} that may be unfinished: {listed(doubtful, '; ')}. Finish them, fill what nobody annotated with "
            f"{NOT_ANNOTATED}, or leave them out with --without CUBE …, which also takes them out of the dataset"
        )
    return f"{source}: {'. '.join(parts)}. Labels that are right as they are: name their cubes with --as-is CUBE …"


def listed(words: Sequence[str], between: str = ", ") -> str:
    """Words joined for a sentence; of many, the first ones and the number of the others."""
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return between.join(words[:_MOST_NAMED]) + more


def check_classes(labels: Mapping[str, ReturnedLabel], cubes: Mapping[str, Cube], classes: Sequence[str]) -> None:
    """Raise `SelmaError` if a label holds a value of no class."""
    for case, label in labels.items():
        values = np.setdiff1d(np.unique(label.values), [0, NOT_ANNOTATED]).tolist()
        if values and values[-1] > len(classes):
            raise SelmaError(
                f"{cubes[case].label}: holds the values {', '.join(map(str, values))}, and the dataset has {counted(len(classes), 'class', 'classes')} "
                f"({', '.join(classes)}); correct the label, or name all classes with --classes when the dataset is begun"
            )

"""Preprocessed cases and trainings of a dataset that grows, as the times of nnU-Net's files tell.

A training counts for the version of the dataset that was there when it began: nnU-Net writes `debug.json` then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training of a fold, in nnUNet_results."""

    model: str
    """Trainer, plans and configuration, as in the name of its folder."""
    fold: str
    begun: datetime
    version: int
    """Number of the version of the dataset, from 1, that was there when the training began."""
    finished: bool


def changed_at(path: Path) -> datetime:
    """Time of the last change of a file, in whole seconds, as dates in the manifest are."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), tz=timezone.utc)


def stale_cases(preprocessed: Path, history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Cases that a configuration which nnU-Net has preprocessed lacks, holds from before their last change, or holds though they were taken out."""
    written: dict[str, datetime] = {}
    removed: set[str] = set()
    for entry in history:
        written |= dict.fromkeys((*entry["added"], *entry["changed"]), datetime.fromisoformat(entry["date"]))
        removed = (removed - written.keys()) | entry["removed"].keys()
        written = {case: date for case, date in written.items() if case not in removed}
    folders = {path.parent for path in preprocessed.glob("*/*.pkl")}
    if not folders:
        return sorted(written)
    newest = max(folders, key=lambda folder: max(path.stat().st_mtime for path in folder.glob("*.pkl")))
    files = {path.stem: path for path in newest.glob("*.pkl")}
    old = {case for case, date in written.items() if case not in files or changed_at(files[case]) < date}
    return sorted(old | (removed & files.keys()))


def folds_to_train(splits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Folds that hold out different cases."""
    different: dict[tuple[str, ...], str] = {}
    for number, split in enumerate(splits):
        different.setdefault(tuple(split["val"]), str(number))
    return list(different.values()) if len(different) > 1 else ["all"]


def read_trainings(results: Path, versions: Sequence[datetime]) -> Iterator[Training]:
    """Trainings that began after the first version of the dataset; `versions` are the dates of its versions, the oldest first."""
    for begin in sorted(results.glob("*__*__*/fold_*/debug.json")):
        fold, begun = begin.parent, changed_at(begin)
        final = fold / "checkpoint_final.pth"
        version = sum(date <= begun for date in versions)
        if version:
            yield Training(
                model=fold.parent.name,
                fold=fold.name.removeprefix("fold_"),
                begun=begun,
                version=version,
                finished=final.is_file() and changed_at(final) >= begun,
            )

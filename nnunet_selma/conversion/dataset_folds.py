"""Folds for a raw nnU-Net dataset that was made elsewhere: related cases share a fold, so that no validation case leaks into training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.groups import given_groups
from nnunet_selma.conversion.relatives import find_relations, signature
from nnunet_selma.conversion.splits import Split, joined_groups, make_splits
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.raw_cases import raw_cases
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import of_case
from nnunet_selma.volumes import open_volume, to_intensities


@dataclass(frozen=True, kw_only=True)
class FoldSettings:
    """Options for the folds of a dataset."""

    dataset_id: int
    """Dataset id of nnU-Net; the dataset lies in nnUNet_raw."""
    group: str | None = None
    """Cases that share a fold: a CSV file with the columns case and group, or a regular expression that finds the group in the name of a case, as in 'mouse[0-9]+'; None: cases that show the same tissue."""
    folds: int = 5
    """Number of folds; with fewer groups, one for each group."""
    seed: int = 0
    """Seed of the order of the groups."""
    overwrite: bool = False
    """Replace folds that are there."""


def write_folds(settings: FoldSettings, folders: Folders, progress: Progress[Any] = silent) -> list[Split]:
    """Write `splits_final.json`, which nnU-Net trains with, into the preprocessed folder of a dataset; returns the folds.

    Raises:
        SelmaError: there is no such dataset, the groups are not known for every case, all cases are one group, or other folds are there.
    """
    name = folders.dataset(settings.dataset_id)
    raw, target = folders.raw / name, folders.preprocessed / name / "splits_final.json"
    if not (raw / "dataset.json").is_file():
        raise SelmaError(f"{raw / 'dataset.json'} is missing; give a raw dataset of nnU-Net")
    files = {case: parts for case, parts in raw_cases(raw).items() if Path(parts["label"] or "").is_file()}
    cases = sorted(case for case in files if not case.startswith("."))
    if not cases:
        raise SelmaError(f"{raw / 'labelsTr'}: holds no label of the images in {raw / 'imagesTr'}")
    if settings.group is None:
        images = {case: Path(files[case]["images"][0]) for case in cases}
        groups = _groups_by_tissue(images, progress)
    else:
        groups = given_groups(settings.group, {case: [case] for case in cases})
    count = len(set(groups.values()))
    if count < 2:
        raise SelmaError(f"dataset {settings.dataset_id}: all {len(cases)} cases are one group, which no fold may part")
    structures = {case: structure.prefix if (structure := of_case(case)) else "" for case in cases}
    splits = make_splits(structures, groups, min(settings.folds, count), settings.seed)
    existing: Any = read_json(target) if target.is_file() else splits
    if existing != splits and not settings.overwrite:
        raise SelmaError(f"{target}: holds other folds; add --overwrite to replace them, and train all folds anew")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, splits)
    return splits


def _groups_by_tissue(images: Mapping[str, Path], progress: Progress[Any]) -> dict[str, str]:
    """Case to group, from the first channel of each case; copies, overlapping cases and neighbours are one group."""
    signatures = [
        signature(case, to_intensities(open_volume(path).read(), str(path)))
        for case, path in progress(list(images.items()), "comparing cases")
    ]
    relations = find_relations(signatures)
    return joined_groups({case: case for case in images}, [(r.first, r.second) for r in relations])

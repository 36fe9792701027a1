"""Folds of a dataset of cubes, which part no brain; cases keep their fold as the dataset grows."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.channel_files import volume_path
from nnunet_selma.conversion.groups import given_groups
from nnunet_selma.conversion.relatives import Relation, Signature, find_relations
from nnunet_selma.conversion.splits import (
    Split,
    dealt_folds,
    folds_of_splits,
    grown_splits,
    is_dealt,
    joined_groups,
    splits_of_folds,
)
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json


def fold_facts(
    cases: Mapping[str, Any],
    signatures: Sequence[Signature],
    settings: Mapping[str, Any],
    earlier: Mapping[str, Any],
    splits_file: Path,
) -> dict[str, Any]:
    """Entries of the manifest about groups and folds: `groups`, `parted`, `related_patches` and `folds`.

    Args:
        cases: case to its entry in the manifest.
        signatures: signature of each case.
        settings: `group`, `folds` and `seed`.
        earlier: manifest of the version before; empty for the first.
        splits_file: the folds as nnU-Net reads them, which a user may have changed.
    """
    groups, related = _groups(cases, earlier.get("groups", {}), settings["group"], signatures)
    there = _read_splits(splits_file)
    known = {**earlier.get("folds", {}), **folds_of_splits(there)}
    folds = dealt_folds(groups, known, len(there) or settings["folds"], settings["seed"])
    return {
        "groups": groups,
        "parted": _parted(groups, folds),
        "related_patches": [vars(relation) for relation in related],
        "folds": folds,
    }


def _groups(
    cases: Mapping[str, Any], earlier: Mapping[str, str], group: str | None, signatures: Sequence[Signature]
) -> tuple[dict[str, str], list[Relation]]:
    """Case to its group: its brain, or as the user gives it; groups that show the same tissue are joined. And the relations between groups.

    Cubes of one path, of one name, or of files that are channels of one volume, are of one brain: it may have been called otherwise, or moved,
    between rounds.
    """
    together: list[tuple[str, str]] = []
    if group is None:
        first: dict[str, str] = {}
        for case, record in cases.items():
            identities = record["brain"], volume_path(record["brain_path"])
            together += [(first.setdefault(identity, case), case) for identity in identities]
        names = {case: record["brain_path"] for case, record in cases.items()}
    else:
        names = given_groups(group, {case: [case, record["cube"], record["brain"]] for case, record in cases.items()})
    names |= {case: earlier[case] for case in cases if case in earlier}
    related = [r for r in find_relations(signatures) if names[r.first] != names[r.second]]
    return joined_groups(names, [*together, *((r.first, r.second) for r in related)]), related


def _parted(groups: Mapping[str, str], folds: Mapping[str, int]) -> list[str]:
    """Sentences about groups whose cases are in several folds, because they were known as related too late."""
    places: dict[str, set[int]] = {}
    for case, group in groups.items():
        places.setdefault(group, set()).add(folds[case])
    return [
        f"{group}: its cubes are in the folds {', '.join(map(str, sorted(of_group)))}, as they were before they were known to show the same tissue; "
        "their validation is too good"
        for group, of_group in places.items()
        if len(of_group) > 1
    ]


def _read_splits(splits_file: Path) -> list[Split]:
    """The folds that are there; empty where there are none."""
    content: Any = read_json(splits_file) if splits_file.is_file() else []
    return list(content)


def check_folds_without(splits_file: Path, removed: Collection[str], added: Collection[str]) -> None:
    """Raise `SelmaError` if no fold, or one that a user made, would have cases to train on and to hold out.

    Args:
        splits_file: the folds that are there.
        removed: cases that are taken out of the dataset.
        added: cases that are new in the dataset.
    """
    splits = _read_splits(splits_file)
    placed = folds_of_splits(splits).keys()
    if is_dealt(splits) and not {*placed, *added} - {*removed}:
        raise SelmaError(
            f"{splits_file}: its folds hold nothing but {', '.join(sorted(placed))}; put another case there, or remove the file to deal all folds anew"
        )
    for number, split in enumerate([] if is_dealt(splits) else splits):
        for part, use in (("train", "trains on"), ("val", "holds out")):
            if split[part] and not {*split[part]} - {*removed}:
                raise SelmaError(
                    f"{splits_file}: fold {number} {use} nothing but {', '.join(split[part])}; put another case there, or remove the file to deal "
                    "all folds anew"
                )


def write_splits(splits_file: Path, manifest: Mapping[str, Any]) -> None:
    """Write the folds, or take the last version into those that are there; cases that a user took out of the folds stay out."""
    there = _read_splits(splits_file)
    if not there:
        splits_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(splits_file, splits_of_folds(manifest["folds"], int(manifest["settings"]["folds"])))
        return
    placed = {case for split in there for case in (*split["train"], *split["val"])}
    new = sorted({*manifest["history"][-1]["added"]} - placed)
    removed = {case for version in manifest["history"] for case in version["removed"]} - manifest["cases"].keys()
    if new or removed & placed:
        write_json(splits_file, grown_splits(there, new, manifest["groups"], manifest["folds"], removed))

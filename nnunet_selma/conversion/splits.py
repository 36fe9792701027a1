"""Cross-validation folds that do not part related cases."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

Split = dict[str, list[str]]


def joined_groups(groups: Mapping[str, str], together: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Case to group, after the groups of each pair of cases were joined, because the two must share a fold."""
    parent = {group: group for group in groups.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for a, b in together:
        first, second = sorted((root(groups[a]), root(groups[b])))
        parent[second] = first
    return {case: root(group) for case, group in groups.items()}


def make_splits(structures: Mapping[str, str], groups: Mapping[str, str], folds: int = 5, seed: int = 0) -> list[Split]:
    """Cross-validation folds in the form of nnU-Net's `splits_final.json`.

    The groups of each structure are dealt to the folds in turn, in random order, and the next structure continues at the next fold: folds are
    stratified by structure and differ by one group of a structure at most. With fewer groups than folds some folds repeat; a single group
    is both trained on and validated on.

    Args:
        structures: case to structure.
        groups: case to its group; cases of a group share a fold.
        folds: number of folds.
        seed: seed of the random order.
    """
    rng = np.random.default_rng(seed)
    structure_of = {groups[case]: structure for case, structure in sorted(structures.items())}
    dealt: list[str] = []
    for structure in sorted(set(structure_of.values())):
        members = sorted(group for group, prefix in structure_of.items() if prefix == structure)
        dealt += [members[i] for i in rng.permutation(len(members))]
    splits = []
    for fold in range(folds):
        held_out = set(dealt[fold::folds]) or {dealt[fold % len(dealt)]}
        val = sorted(case for case, group in groups.items() if group in held_out)
        train = sorted(case for case, group in groups.items() if group not in held_out)
        splits.append({"train": train or val, "val": val})
    return splits


def dealt_folds(groups: Mapping[str, str], known: Mapping[str, int], folds: int, seed: int = 0) -> dict[str, int]:
    """Case to the fold that holds it out, as a dataset grows: cases keep their fold, and new cases follow their group.

    New groups are dealt to the fold with the fewest cases, the largest group first, and groups of a size in random order.

    Args:
        groups: case to its group.
        known: fold of the cases that have one.
        folds: number of folds.
        seed: seed of the random order.
    """
    members: dict[str, list[str]] = {}
    for case, group in sorted(groups.items()):
        members.setdefault(group, []).append(case)
    dealt = {case: known[case] for case in groups if case in known}
    sizes = [sum(fold == number for fold in dealt.values()) for number in range(folds)]
    order = np.random.default_rng(seed).permutation(len(members))
    names = [sorted(members)[place] for place in order]
    for name in sorted(names, key=lambda name: -len(members[name])):
        before = [dealt[case] for case in members[name] if case in dealt]
        fold = max(sorted(set(before)), key=before.count) if before else sizes.index(min(sizes))
        for case in members[name]:
            if case not in dealt:
                dealt[case] = fold
                sizes[fold] += 1
    return dealt


def splits_of_folds(held_out: Mapping[str, int], folds: int) -> list[Split]:
    """The content of nnU-Net's `splits_final.json`, from the fold that holds out each case.

    Folds without cases repeat others; a single fold with cases is both trained on and validated on.
    """
    filled = sorted(set(held_out.values()))
    splits = []
    for number in range(folds):
        fold = number if number in filled else filled[number % len(filled)]
        val = sorted(case for case, place in held_out.items() if place == fold)
        train = sorted(case for case, place in held_out.items() if place != fold)
        splits.append({"train": train or val, "val": val})
    return splits


def folds_of_splits(splits: Sequence[Split]) -> dict[str, int]:
    """Case to the first fold that holds it out."""
    return {case: fold for fold, split in reversed(list(enumerate(splits))) for case in split["val"]}


def is_dealt(splits: Sequence[Split]) -> bool:
    """True for splits as `splits_of_folds` makes them; a user made others."""
    held_out = folds_of_splits(splits)
    return bool(held_out) and splits_of_folds(held_out, len(splits)) == list(splits)


def grown_splits(
    splits: Sequence[Split],
    new: Sequence[str],
    groups: Mapping[str, str],
    held_out: Mapping[str, int],
    removed: Collection[str] = (),
) -> list[Split]:
    """The same splits with new cases, and without those that are removed.

    Splits as `splits_of_folds` makes them are made anew, so that folds without cases are filled. In others, which a user made, every case that is
    there keeps its place, and a new one goes where its group is.

    Args:
        splits: the splits that are there.
        new: cases that none of them holds.
        groups: case to its group.
        held_out: case to the fold that holds it out.
        removed: cases to take out.
    """
    if is_dealt(splits):
        before = {case: fold for case, fold in folds_of_splits(splits).items() if case not in removed}
        return splits_of_folds({**before, **{case: held_out[case] for case in new}}, len(splits))
    grown: list[Split] = []
    for number, split in enumerate(splits):
        places = {part: {groups.get(case) for case in split[part]} for part in ("train", "val")}
        added: Split = {"train": [], "val": []}
        for case in new:
            trained, validated = (groups[case] in places[part] for part in ("train", "val"))
            in_val = validated if trained != validated else held_out[case] == number
            added["val" if in_val else "train"].append(case)
        kept = {part: [case for case in split[part] if case not in removed] for part in added}
        grown.append({part: [*kept[part], *added[part]] for part in added})
    return grown

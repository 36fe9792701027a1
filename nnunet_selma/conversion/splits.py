"""Cross-validation folds that do not part related cases."""

from collections.abc import Mapping, Sequence

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

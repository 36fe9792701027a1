from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.conversion.splits import joined_groups, make_splits

cases = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=6),
    st.tuples(st.sampled_from(["vessel", "spot", "tree"]), st.integers(0, 9)),
    min_size=1,
    max_size=40,
)


@given(cases, st.integers(0, 5))
def test_folds_part_no_group_and_hold_every_case_out_once(drawn, seed):
    structures = {case: structure for case, (structure, _) in drawn.items()}
    groups = {case: f"{structure}_{number}" for case, (structure, number) in drawn.items()}
    splits = make_splits(structures, groups, seed=seed)
    assert len(splits) == 5
    count = len(set(groups.values()))
    for split in splits:
        assert split["train"]
        assert split["val"]
        assert {*split["train"], *split["val"]} == set(drawn)
        if count > 1:
            assert not {groups[c] for c in split["train"]} & {groups[c] for c in split["val"]}
    held_out = Counter(case for split in splits for case in split["val"])
    if count >= 5:
        assert set(held_out.values()) == {1}
    assert set(held_out) == set(drawn)


@given(st.lists(st.integers(5, 30), min_size=1, max_size=3))
def test_folds_are_stratified_by_structure(counts):
    groups = {f"s{s}_{i}": f"s{s}_{i}" for s, count in enumerate(counts) for i in range(count)}
    structures = {case: case.split("_")[0] for case in groups}
    for split in make_splits(structures, groups):
        held_out = Counter(structures[case] for case in split["val"])
        for s, count in enumerate(counts):
            assert abs(held_out[f"s{s}"] - count / 5) < 1


def test_related_cases_are_joined_through_a_third():
    groups = {"a": "1", "b": "2", "c": "3", "d": "4"}
    joined = joined_groups(groups, [("a", "b"), ("b", "c")])
    assert joined["a"] == joined["b"] == joined["c"] != joined["d"]


def test_another_seed_gives_another_split():
    groups = {f"c{i}": f"c{i}" for i in range(20)}
    structures = dict.fromkeys(groups, "one")
    assert make_splits(structures, groups, seed=1) == make_splits(structures, groups, seed=1)
    assert make_splits(structures, groups, seed=1) != make_splits(structures, groups, seed=2)

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.conversion.splits import dealt_folds, joined_groups, make_splits, splits_of_folds

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


def test_dealt_folds_are_even_and_part_no_group():
    groups = {f"c{number:02d}": f"g{number // 3}" for number in range(24)}
    folds = dealt_folds(groups, {}, 5)
    assert {case: folds[case] for case in groups} == {
        case: folds[f"c{3 * (int(case[1:]) // 3):02d}"] for case in groups
    }
    sizes = [list(folds.values()).count(fold) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 3
    grown = dealt_folds({**groups, "c24": "g0", "c25": "g9"}, {**folds, "c24": 2}, 5)
    assert {case: grown[case] for case in groups} == folds
    assert grown["c24"] == 2  # where it was, though its group is elsewhere
    sizes[2] += 1
    assert grown["c25"] == sizes.index(min(sizes))
    assert dealt_folds({**groups, "c24": "g0"}, folds, 5)["c24"] == folds["c00"]
    splits = splits_of_folds(folds, 5)
    assert sorted(case for split in splits for case in split["val"]) == sorted(groups)
    assert splits_of_folds({"a": 0, "b": 1}, 3)[2] == {"train": ["b"], "val": ["a"]}
    assert splits_of_folds({"a": 0}, 2) == [{"train": ["a"], "val": ["a"]}] * 2

from pathlib import Path

import pytest

from nnunet_selma.conversion.pairs import labels_beside, paired_by_name, without_label_word
from nnunet_selma.structures import chosen_structure

TH = chosen_structure("TH", "spot")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mouse07_left_mask", "mouse07_left"),
        ("mask_mouse07", "mouse07"),
        ("mouse07-seg", "mouse07"),
        ("mouse07.labels", "mouse07"),
        ("Mouse07_GT", "Mouse07"),
        ("mouse07_ground_truth", "mouse07"),
        ("mouse07", "mouse07"),
        ("mask", "mask"),
        ("unmasked", "unmasked"),
        ("damask_1", "damask_1"),
    ],
)
def test_words_that_mark_labels(name, expected):
    assert without_label_word(name) == expected


def pairs(images, labels, structure=None):
    named = [{Path(f"{folder}/{name}.tif"): name for name in names} for folder, names in (("i", images), ("l", labels))]
    result = paired_by_name(*named, dict.fromkeys(named[0], structure))
    return result, {p.name: ([f.stem for f in p.images.values()], p.label.stem) for p in result.patches}


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (["a", "b"], ["b", "a"], {"a": (["a"], "a"), "b": (["b"], "b")}),
        (["a_0000"], ["a"], {"a": (["a_0000"], "a")}),
        (["a_0001", "a_0000"], ["a"], {"a": (["a_0000", "a_0001"], "a")}),
        (["a_0000"], ["a_0000"], {"a_0000": (["a_0000"], "a_0000")}),
        (
            ["cube_0001", "cube_0002"],
            ["cube_0001_mask", "cube_0002_mask"],
            {f"cube_000{n}": ([f"cube_000{n}"], f"cube_000{n}_mask") for n in (1, 2)},
        ),
        (["m_left"], ["m_left_mask"], {"m_left": (["m_left"], "m_left_mask")}),
        (["m_left_raw"], ["m_left_seg"], {"m_left_raw": (["m_left_raw"], "m_left_seg")}),
        (
            ["patch_1", "patch_01"],
            ["patch_1", "patch_01"],
            {"patch_1": (["patch_1"], "patch_1"), "patch_01": (["patch_01"], "patch_01")},
        ),
        (["mouse 1"], ["mouse 1"], {"mouse-1": (["mouse 1"], "mouse 1")}),
    ],
)
def test_pairs(images, labels, expected):
    result, found_pairs = pairs(images, labels)
    assert (found_pairs, result.problems, result.unpaired) == (expected, [], [])


def test_the_structure_is_the_beginning_of_the_name_once():
    assert list(pairs(["m1", "TH_2"], ["m1", "TH_2"], TH)[1]) == ["TH_m1", "TH_2"]


def test_what_has_no_partner_and_what_has_two_are_named():
    result, _ = pairs(["a", "b", "c", "c_0000"], ["a", "a_mask", "d"])
    assert result.unpaired == [
        "i/b.tif: no label of this name",
        "i/c_0000.tif: no label of this name",
        "l/d.tif: no image of this name",
    ]
    assert result.problems == [
        "i/c_0000.tif and i/c.tif are one image and channel; keep one of them",
        "l/a_mask.tif and l/a.tif label one image; keep one of them",
    ]


def test_labels_in_the_folder_of_their_images():
    images = [Path("x/m7_left.tif"), Path("x/m7_right_0000.tif"), Path("y/m7_left.tif")]
    masks = [Path("x/m7_left_mask.tif"), Path("x/m7_right_gt.tif"), Path("z/m7_left_mask.tif")]
    assert labels_beside(images, masks) == {masks[0]: images[0], masks[1]: images[1]}


@pytest.mark.parametrize("names", [("Maus_ä", "Maus_ö"), ("a b", "a-b"), ("TH_a", "a"), ("脑", "心")])
def test_names_that_become_the_same_case_are_problems(names):
    (problem,) = pairs(names, names, TH)[0].problems
    assert "would both become the case TH_" in problem


def test_numbers_of_four_digits_are_no_channels_beside_their_labels():
    images = [Path(f"x/cube_000{n}.tif") for n in (1, 2)]
    masks = [Path(f"x/cube_000{n}_mask.tif") for n in (1, 2)]
    assert labels_beside(images, masks) == dict(zip(masks, images, strict=True))

"""Cases that nnU-Net has to preprocess again, and folds that it has to train."""

from nnunet_selma.annotation.rounds import standing
from nnunet_selma.annotation.rounds_text import as_text
from nnunet_selma.annotation.trainings import folds_to_train
from tests.annotation.datasets import DATASET, convert
from tests.annotation.loops import Clock, annotate


def test_a_corrected_label_must_be_converted_and_preprocessed_again(cubes, folders, rng):
    annotate(cubes, rng, 1, 2, 3)
    convert(cubes, folders)
    clock = Clock(folders)
    clock.preprocess()
    annotate(cubes, rng, 2)
    assert "changed since they were converted: cube_0002" in as_text(standing(510, folders))
    convert(cubes, folders)
    clock.convert_again()
    assert standing(510, folders).stale == ["cube_0002"]


def test_folds_that_repeat_others_are_not_trained():
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    assert folds_to_train(splits) == ["0", "1"]
    assert folds_to_train([{"train": ["a"], "val": ["a"]}] * 5) == ["all"]


def test_a_cube_that_was_taken_out_must_leave_what_is_preprocessed(cubes, folders, rng):
    annotate(cubes, rng, 1, 2, 3)
    convert(cubes, folders)
    clock = Clock(folders)
    clock.preprocess()
    convert(cubes, folders, {"without": ("cube_0002",)})
    state = standing(510, folders)
    assert state.stale == ["cube_0002"]
    assert "not preprocessed as the dataset is: cube_0002" in as_text(state)
    (folders.preprocessed / DATASET / "nnUNetPlans_3d_fullres" / "cube_0002.pkl").unlink()  # as nnU-Net does
    assert standing(510, folders).stale == []
    convert(cubes, folders, {"as_is": ("cube_0002",)})
    assert standing(510, folders).stale == ["cube_0002"]

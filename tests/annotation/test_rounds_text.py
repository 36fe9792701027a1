"""`nnunet-selma round`: the state of a loop in words."""

from nnunet_selma.annotation.rounds import standing
from nnunet_selma.annotation.rounds_text import as_text
from tests.annotation.datasets import convert
from tests.annotation.folders import write_cubes
from tests.annotation.loops import Clock, annotate, commands


def test_validation_on_training_cases_is_called_so(tmp_path, folders, rng):
    source = tmp_path / "cubes"
    write_cubes(source, rng, ["a", "a"])
    annotate(source, rng, 1, 2)
    convert(source, folders)
    clock = Clock(folders)
    clock.preprocess()
    assert commands(None, folders)[0].startswith("nnUNetv2_train 510 3d_fullres all ")
    clock.train("all", {"cube_0001": 0.5, "cube_0002": 0.75})
    text = as_text(standing(510, folders))
    assert "0.625 (no interval), n 2 cubes of 1 brain; trained on the same cubes" in text
    assert text.endswith("-f all")

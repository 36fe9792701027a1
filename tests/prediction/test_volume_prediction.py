from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.prediction.settings import GB, MemoryPlan, VolumePrediction

BRAIN = (733, 6656, 5616)
PLAN = MemoryPlan(channels=1, voxel_bytes=2, heads=2, tile=(128, 128, 128), features=32)


@pytest.mark.parametrize("memory", [6.0, 16.0, 64.0])
def test_the_largest_block_that_fits(memory):
    block = PLAN.block(BRAIN, 64, memory)
    assert PLAN.bytes(block) <= memory * GB
    larger = tuple(edge + 64 for edge in block)
    assert PLAN.bytes(larger) > memory * GB or max(block) == 1024
    assert all(edge % 64 == 0 for edge in block)


def test_a_block_is_no_longer_than_the_volume():
    assert PLAN.block((10, 300, 65), 64, 16.0) == (64, 320, 128)


def test_memory_for_not_even_one_block_is_an_error_that_says_how_much_is_needed():
    with pytest.raises(SelmaError, match=r"takes about \d+\.\d GB"):
        PLAN.block(BRAIN, 64, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 2},
        {"heads": 5},
        {"folds": 5},
        {"weights": 10**8},
        {"probabilities": True},
        {"scale": (1.0, 2.0, 2.0)},
    ],
)
def test_what_costs_more_gets_smaller_blocks(change):
    dearer = replace(PLAN, **change)
    assert dearer.bytes((512, 512, 512)) > 1.01 * PLAN.bytes((512, 512, 512))
    assert np.prod(dearer.block(BRAIN, 64, 12.0)) <= np.prod(PLAN.block(BRAIN, 64, 12.0))


def test_settings_come_back_from_json(tmp_path):
    settings = VolumePrediction(
        inputs=(tmp_path / "a", tmp_path / "b"),
        output=tmp_path / "c.ome.zarr",
        model=ModelSettings(folder=tmp_path, folds=("0", "all")),
        spacing_um_zyx=(4.0, 1.0, 1.0),
        mask=Path(tmp_path / "m.tif"),
    )
    assert VolumePrediction.from_json(settings.as_json()) == settings

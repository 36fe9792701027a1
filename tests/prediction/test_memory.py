"""The memory plan against measured peaks; memory is bounded by --max-memory and not by the volume."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.memory import GB, MemoryPlan
from nnunet_selma.prediction.model import Model
from nnunet_selma.prediction.tiling import Tiling
from nnunet_selma.running.json_files import read_json
from tests.limited import peak_within
from tests.prediction.models import pointwise_plans, write_model

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")

BRAIN = (733, 6656, 5616)
PLAN = MemoryPlan(channels=1, voxel_bytes=2, heads=2, tile=(128, 128, 128), features=32)


@pytest.mark.parametrize("memory", [6.0, 16.0])
def test_the_widest_block_that_fits(memory):
    block = PLAN.widest_block(BRAIN, 64, memory)
    assert PLAN.bytes(block) <= memory * GB
    assert block[0] == 128
    wider = (block[0], *(edge + 512 for edge in block[1:]))
    assert PLAN.bytes(wider) > memory * GB
    assert all(edge % 64 == 0 for edge in block)


def test_columns_share_the_volume_evenly():
    """The last of four columns of 5616 voxels is hardly narrower than the others."""
    _, height, width = PLAN.widest_block(BRAIN, 64, 16.0)
    for whole, edge in zip(BRAIN[1:], (height, width), strict=True):
        parts = -(-whole // edge)
        assert edge - (whole - (parts - 1) * edge) < 64 * parts


def test_a_block_is_no_longer_than_the_volume():
    assert PLAN.widest_block((10, 300, 65), 64, 16.0) == (64, 320, 128)


def test_a_column_runs_along_the_axis_of_the_slowest_tiles():
    block = replace(PLAN, along=2).widest_block(BRAIN, 64, 16.0)
    assert block[2] == 128
    assert min(block[:2]) > 128


@pytest.mark.parametrize(
    ("patch", "memory", "factor"),
    [
        ((128, 128, 128), 8.0, 1.38),
        ((128, 128, 128), 12.0, 1.24),
        ((128, 128, 128), 16.0, 1.17),
        ((128, 128, 128), 32.0, 1.09),
        ((96, 160, 160), 8.0, 1.38),
        ((96, 160, 160), 12.0, 1.30),
        ((96, 160, 160), 16.0, 1.22),
        ((96, 160, 160), 32.0, 1.11),
        ((64, 192, 192), 16.0, 1.22),
    ],
)
def test_few_tiles_are_computed_twice(patch, memory, factor):
    """The factors of docs/whole-brains.md for a brain of 1500 × 5000 × 4000, from nnU-Net's own steps, which are stretched to the volume."""
    shape = (1500, 5000, 4000)
    block, _ = replace(PLAN, tile=patch, weights=120_000_000).choose_block(shape, None, memory)
    starts = Tiling(shape=shape, tile=patch, step=0.5).starts
    touched = 1.0
    for along, edge, length, tile in zip(starts[1:], block[1:], shape[1:], patch[1:], strict=True):
        columns = range(0, length, edge)
        touched *= sum(sum(a - tile < start < a + edge for start in along) for a in columns) / len(along)
    assert touched == pytest.approx(factor, abs=0.006)


def test_memory_for_not_even_one_block_is_an_error_that_says_how_much_is_needed():
    with pytest.raises(SelmaError, match=r"takes about \d+\.\d GB"):
        PLAN.widest_block(BRAIN, 64, 1.0)


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
    assert np.prod(dearer.widest_block(BRAIN, 64, 12.0)[1:]) <= np.prod(PLAN.widest_block(BRAIN, 64, 12.0)[1:])


@on_linux
@pytest.mark.parametrize(
    ("spacing", "model_options"),
    [
        (1.0, {}),
        pytest.param(2.0, {}, marks=pytest.mark.slow),
        pytest.param(1.0, {"channels": 2}, marks=pytest.mark.slow),
        pytest.param(1.0, {"folds": 2, "labels": {"background": 0, "a": 1, "b": 2}}, marks=pytest.mark.slow),
    ],
    ids=["one channel", "resampled", "two channels", "folds, classes and probabilities"],
)
def test_the_plan_is_an_upper_bound_of_the_measured_peak(spacing, model_options, tmp_path, rng):
    """Three blocks in a row: one is read, one predicted and one written at a time. The plan is at most 3 times too careful.

    On a busy machine fewer blocks are held at a time: resampled, the plan was 2.3 times too careful alone, and 2.6 times beside other tests.
    """
    settings = write_model(tmp_path / "model", pointwise_plans(spacing), **model_options)
    probabilities = model_options.get("folds", 1) > 1
    plan = MemoryPlan.for_model(Model(settings, "cpu"), (0, 1, 2), 2, probabilities, (1 / spacing,) * 3)
    peaks = []
    for edge in (64, 256):
        inputs = [tmp_path / f"{edge}_{channel}.tif" for channel in range(model_options.get("channels", 1))]
        for path in inputs:
            tifffile.imwrite(path, rng.integers(500, 3000, (edge, edge, 3 * edge), dtype=np.uint16))
        options = ["-o", tmp_path / f"{edge}.ome.zarr", "-m", settings.folder, "--spacing", "1,1,1", "--everything"]
        options += ["--block", edge, "-step_size", "1", *(["--probabilities"] if probabilities else [])]
        peaks.append(peak_within(16 * GB, "predict-volume", *inputs, *options))
    planned = [plan.bytes((edge,) * 3) for edge in (64, 256)]
    assert peaks[1] < planned[1]
    assert peaks[1] - peaks[0] < planned[1] - planned[0] < 3 * (peaks[1] - peaks[0])


SHAPE = (704, 1536, 1536)
LIMIT = 0.8 * 10**9
"""Bytes that the process may take beyond what it has after its imports."""
SPOT = (slice(200, 264), slice(300, 396), slice(700, 796))


def slices(folder):
    """3.3 GB in memory, little on disk: planes without the spot are one file under many names."""
    folder.mkdir()
    spot = np.random.default_rng(0).integers(500, 3000, (64, 96, 96), dtype=np.uint16)
    for z in range(SHAPE[0]):
        path = folder / f"z{z:04d}.tif"
        if SPOT[0].start <= z < SPOT[0].stop:
            plane = np.full(SHAPE[1:], 3, np.uint16)
            plane[SPOT[1:]] = spot[z - SPOT[0].start]
            tifffile.imwrite(path, plane, compression="zlib")
        elif z == 0:
            tifffile.imwrite(path, np.full(SHAPE[1:], 3, np.uint16), compression="zlib")
        else:
            path.hardlink_to(folder / "z0000.tif")
    return folder


@pytest.mark.slow
@on_linux
def test_a_volume_four_times_as_large_as_the_limit(tmp_path):
    """Copied from slices with its coarser levels, predicted by two folds, probabilities included."""
    zarr = pytest.importorskip("zarr")
    assert np.prod(SHAPE) * 2 > 4 * LIMIT
    model = write_model(tmp_path / "model", folds=2)
    mask = np.zeros([length // 32 for length in SHAPE], np.uint8)
    mask[tuple(slice(bounds.start // 32, bounds.stop // 32 + 1) for bounds in SPOT)] = 1
    zarr.create_array(str(tmp_path / "mask.zarr"), shape=mask.shape, chunks=mask.shape, dtype="u1")[:] = mask
    peak = peak_within(
        LIMIT,
        "predict-volume",
        slices(tmp_path / "slices"),
        "-o",
        tmp_path / "out.ome.zarr",
        "-m",
        model.folder,
        "--max-memory",
        "1.3",
        "--mask",
        tmp_path / "mask.zarr",
        "--probabilities",
    )
    record = read_json(tmp_path / "out_segmentation.json")
    assert record["result"]["foreground"] > 0
    assert record["result"]["blocks"] > record["result"]["blocks without tissue"] > 0
    assert peak < 1.3 * 10**9

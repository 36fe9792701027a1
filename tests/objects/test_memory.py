"""Tables, instances and pictures of labels twice as large as the memory they are given, under a limit that the system enforces."""

import csv
import sys

import numpy as np
import pytest

from tests.limited import peak_within

SHAPE = (704, 1088, 1088)
LIMIT = 0.4 * 10**9
"""Bytes that the process may take beyond what it has after its imports."""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_labels_larger_than_the_limit(tmp_path, rng):
    zarr = pytest.importorskip("zarr")
    assert np.prod(SHAPE) > 2 * LIMIT
    labels = zarr.create_array(str(tmp_path / "labels.zarr"), shape=SHAPE, chunks=(64, 256, 256), dtype="u1")
    for z, y, x in zip(*(rng.permutation(np.arange(8, n - 8, 16))[:40] for n in SHAPE), strict=True):
        labels[z : z + 5, y : y + 5, x : x + 5] = 1
    arguments = ["--spacing", "4,2,2"]
    table = tmp_path / "cells.csv"
    peak_within(
        LIMIT,
        "objects",
        tmp_path / "labels.zarr",
        "-o",
        table,
        *arguments,
        "--instances",
        tmp_path / "instances.ome.zarr",
        "--trees",
    )
    with table.open(newline="") as file:
        assert [int(row["voxels"]) for row in csv.DictReader(file)] == [125] * 40
    numbers = zarr.open_array(str(tmp_path / "instances.ome.zarr" / "0"), mode="r")
    assert numbers.shape == SHAPE
    peak_within(
        LIMIT, "overview", tmp_path / "labels.zarr", "-o", tmp_path / "brain.png", "--objects", table, *arguments
    )
    assert (tmp_path / "brain.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_touching_objects_in_labels_larger_than_the_limit(tmp_path, rng):
    zarr = pytest.importorskip("zarr")
    labels = zarr.create_array(str(tmp_path / "labels.zarr"), shape=SHAPE, chunks=(64, 256, 256), dtype="u1")
    for z, y, x in zip(*(rng.permutation(np.arange(8, n - 16, 16))[:40] for n in SHAPE), strict=True):
        labels[z : z + 5, y : y + 5, x : x + 5] = labels[z : z + 5, y : y + 5, x + 6 : x + 11] = 1
        labels[z + 2, y + 2, x + 5] = 1
    table, instances = tmp_path / "cells.csv", tmp_path / "instances.ome.zarr"
    arguments = ["-o", table, "--spacing", "4,2,2", "--split-touching", "--instances", instances]
    peak_within(LIMIT, "objects", tmp_path / "labels.zarr", *arguments)
    with table.open(newline="") as file:
        sizes = [int(row["voxels"]) for row in csv.DictReader(file)]
    assert sorted(sizes) == [125] * 40 + [126] * 40
    numbers = zarr.open_array(str(instances / "0"), mode="r")
    counted = sum(np.bincount(numbers[z : z + 64].ravel(), minlength=81) for z in range(0, SHAPE[0], 64))
    assert counted[1:].tolist() == sizes

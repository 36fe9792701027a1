"""Folders of cubes."""

import pytest

from tests.annotation.folders import blobs, paint, write_cubes


@pytest.fixture
def source(tmp_path, rng):
    """Four painted cubes of three brains, the last painted in part."""
    folder = tmp_path / "cubes"
    names = write_cubes(folder, rng, ["a", "b", "a", "c"])
    for name in names[:3]:
        paint(folder, name, blobs(rng))
    labels = blobs(rng)
    labels[5:] = 255
    paint(folder, names[3], labels)
    return folder


@pytest.fixture
def cubes(tmp_path, rng):
    """Three cubes of three brains, as they were handed over."""
    write_cubes(tmp_path / "cubes", rng, ["a", "b", "c"])
    return tmp_path / "cubes"

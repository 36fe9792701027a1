"""Folders of cubes."""

import shutil

import pytest

from nnunet_selma.annotation.proposal import propose
from nnunet_selma.annotation.settings import ProposalSettings
from tests.annotation.brains import write_brain
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


@pytest.fixture(scope="session")
def proposed(tmp_path_factory):
    """A folder of one cube of 20 × 20 × 20 voxels, with its image and its surroundings, as `propose` writes it."""
    pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    folder = tmp_path_factory.mktemp("proposed")
    brain = write_brain(folder / "mouse.nii.gz")
    propose([brain], folder / "cubes", ProposalSettings(count=1, size=20, pool=2))
    return folder / "cubes"


@pytest.fixture
def cube(proposed, tmp_path):
    """The cube, whose label may be painted."""
    return shutil.copytree(proposed, tmp_path / "cubes") / "cube_0001"

"""Shared fixtures: small volumes on disk, and the real data where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("SELMA_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

# a machine that others use too is slow at times
settings.register_profile("selma", deadline=None)
settings.load_profile("selma")

# one compute thread a test process, one worker a pool: two cores are shared by everything
for name, value in {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0"}.items():
    os.environ.setdefault(name, value)
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items):
    """Begin with the slow tests, those of the pipeline first, so that two processes end at about the same time."""
    items.sort(key=lambda item: ("pipeline" not in item.path.parts, item.get_closest_marker("slow") is None))


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real light-sheet volumes are not at {REAL_DATA} (set SELMA_TEST_DATA)")
    return REAL_DATA


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's three folders, also in the environment."""
    from nnunet_selma.nnunet.folders import Folders

    paths = {name: tmp_path / "workspace" / f"nnUNet_{name}" for name in ("raw", "preprocessed", "results")}
    for name, path in paths.items():
        path.mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(path))
    return Folders(**paths)


def write_image(path: Path, voxels: np.ndarray, spacing_zyx=None) -> Path:
    """Write a (z, y, x) or (t, z, y, x) array with SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels, isVector=False)
    if spacing_zyx is not None:
        image.SetSpacing(tuple(reversed(spacing_zyx)))
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def write_patch(
    root: Path,
    structure: str,
    number: int,
    rng: np.random.Generator,
    *,
    shape=(12, 14, 16),
    channels=1,
    tops=("", ""),
    image=None,
    label=None,
):
    """One annotated patch in the tree of the download: raw below tops[0], gt below tops[1]."""
    raw, gt = root / tops[0] / structure / "raw", root / tops[1] / structure / "gt"
    for channel in range(channels):
        voxels = rng.integers(100, 65535, shape, dtype=np.uint16, endpoint=True) if image is None else image
        write_image(raw / f"patchvolume_{number:03d}_{channel:04d}.nii.gz", voxels)
    mask = (rng.random(shape) < 0.2).astype(np.uint8) if label is None else label
    write_image(gt / f"patchvolume_{number:03d}.nii.gz", mask)
    return root

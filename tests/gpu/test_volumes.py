"""A whole volume on a GPU: as stock nnU-Net's, within a limited memory, killed and continued, with two folds."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image
from tests.gpu.steps import gpu_plans
from tests.prediction.models import stock, texture, write_model

pytestmark = pytest.mark.gpu
MOST = {"cuda": 1e-3, "cpu": 1e-5}
"""Share of voxels that may differ; half precision rounds otherwise for another number of tiles at once."""


@pytest.fixture(scope="module", params=[1, 2], ids=["a fold", "two folds"])
def predicted(request, tmp_path_factory, device, size):
    """A prediction of a volume in blocks, and what stock nnU-Net makes of it."""
    root = tmp_path_factory.mktemp("volume")
    model = write_model(root / "model", gpu_plans(size), folds=request.param)
    image = texture(np.random.default_rng(0), (size.volume,) * 3)
    settings = VolumePrediction(
        inputs=(write_image(root / "brain.nii.gz", image[0]),),
        output=root / "brain.ome.zarr",
        model=model,
        tissue_only=False,
        block=128 if device.type == "cuda" else 32,
    )
    predict_volume(settings, Execution(device=device.type))
    return settings, stock(model, image, (1.0, 1.0, 1.0), device=device)


def labels_of(settings):
    return open_volume(settings.output / "labels" / settings.name).read()


def test_a_volume_is_segmented_as_by_nnunet(predicted, device, size, row):
    settings, expected = predicted
    share = float(np.mean(labels_of(settings) != expected))
    folds = len(settings.model.folds)
    row(
        f"whole volume of {size.volume}³, {folds} fold(s), against nnU-Net",
        f"{share:.2g} of the voxels differ",
        f"at most {MOST[device.type]}",
    )
    assert len(np.unique(expected)) > 1
    assert share <= MOST[device.type]


def test_a_killed_prediction_goes_on_to_the_same(predicted, device, row, tmp_path):
    settings, _ = predicted
    again = replace(settings, output=tmp_path / "killed.ome.zarr")
    command = [
        sys.executable,
        "-m",
        "nnunet_selma.cli",
        "predict-volume",
        str(settings.inputs[0]),
        "-o",
        str(again.output),
        "-m",
        str(settings.model.folder),
        "-f",
        *settings.model.folds,
        "--block",
        str(settings.block),
        "--everything",
        "--device",
        device.type,
    ]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    while running.poll() is None and not list(again.staging.glob("blocks/*.json")):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    interrupted = again.staging.is_dir()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    differ = int((labels_of(again) != labels_of(settings)).sum())
    row("whole volume, killed and continued", f"{differ} voxels differ", "0")
    assert interrupted
    assert differ == 0


def test_a_gpu_that_is_nearly_full_gives_the_same(predicted, device, row, tmp_path):
    if device.type != "cuda":
        pytest.skip("a CPU has no memory of its own to limit")
    settings, expected = predicted
    full = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.5e9) / full)
    try:
        limited = replace(settings, output=tmp_path / "limited.ome.zarr")
        predict_volume(limited, Execution(device="cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    share = float(np.mean(labels_of(limited) != expected))
    row(
        "whole volume with 1.5 GB of the GPU",
        f"{share:.2g} of the voxels differ from nnU-Net",
        f"at most {MOST['cuda']}",
    )
    assert share <= MOST["cuda"]

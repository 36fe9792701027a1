"""Whole volumes: against `nnUNetv2_predict`, and components across blocks against those of a whole array.

A side runs one command in a process of its own and returns its seconds, the most memory it had at a time, or its tiles.
"""

import atexit
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.commands import peak_megabytes, seconds
from benchmarks.pairs import Comparison, Measure, Side
from benchmarks.workspace import DATASET, Plan
from nnunet_selma.conversion.raw_dataset import write_nifti
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes.base import Array

_PINNED = {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "0"}
_PATCH = (64, 64, 64)
_BLOBS = 192
"""Edge of the cube that volumes repeat."""
_EMPTY = 0.6
"""Share of a volume with empty space that is empty."""
_MEMORY = "2.5"
"""GB that predict-volume is given."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cube to segment, and what of it is measured."""

    edge: int
    cost: str = "seconds"
    """seconds, memory (MB) or tiles."""
    empty: bool = False
    step: str = "0.5"
    """From tile to tile, in patches; whole steps where tiles are not what is asked."""

    def plans(self) -> dict[str, Any]:
        """A small network; for memory, which is not its own here, one of 1×1×1 convolutions, which takes next to no time."""
        content = Plan(patch=_PATCH, features=(4, 8, 16), batch=2).content()
        if self.cost == "memory":
            (configuration,) = content["configurations"].values()
            configuration["architecture"]["arch_kwargs"]["kernel_sizes"] = [[1, 1, 1]] * 3
        return content

    @property
    def words(self) -> str:
        """What is measured."""
        what = {"seconds": "segmenting", "memory": "peak memory of segmenting", "tiles": "tiles computed for"}[
            self.cost
        ]
        space = f", {_EMPTY:.0%} of it empty" if self.empty else ""
        return f"{what} a volume of {self.edge}³{space}, steps of {self.step} patches of {_PATCH[0]}³"


def comparisons(quick: bool = False) -> list[Comparison]:
    """Time, memory and tiles with volume size and empty space, and components; `quick` takes volumes of 96³."""
    found = [
        _prediction("volume_dense", Task(edge=192), quick, target=1.0),
        _prediction("volume_empty", Task(edge=256, empty=True), quick, target=2.0),
        _prediction("volume_tiles_dense", Task(edge=256, cost="tiles"), quick, repetitions=1),
        _prediction("volume_tiles_empty", Task(edge=256, cost="tiles", empty=True), quick, target=2.0, repetitions=1),
        _prediction(
            "volume_memory_empty",
            Task(edge=576, cost="memory", empty=True, step="1"),
            quick,
            target=1.0,
            repetitions=1,
        ),
    ]
    for times, edge in {1: 192, 8: 384, 27: 576, "largest": 896}.items():
        if times != "largest":  # it takes long, and tells nothing more about time
            found.append(_prediction(f"volume_seconds_{times}", Task(edge=edge, step="1"), quick, repetitions=1))
        memory = Task(edge=edge, cost="memory", step="1")
        found.append(_prediction(f"volume_memory_{times}", memory, quick, target=1.0, repetitions=1))
    edge = 64 if quick else 384
    for other, label in ((start_cc3d, "cc3d on the array in memory"), (start_dask, "dask_image.ndmeasure.label")):
        found.append(
            Comparison(
                name=f"objects_{other.__name__.removeprefix('start_')}",
                what=f"labelling {edge}³ voxels of spots, file to count",
                ours=Side(
                    label="components by blocks of 128³",
                    start=start_blocks,
                    arguments={"edge": edge},
                    environment=_PINNED,
                ),
                other=Side(label=label, start=other, arguments={"edge": edge}, environment=_PINNED),
                target=0.5 if other is start_cc3d else 1.0,
                repetitions=1 if quick else 3,
            )
        )
    return found


def _prediction(name: str, task: Task, quick: bool, *, target: float = 0.0, repetitions: int = 3) -> Comparison:
    task = replace(task, edge=96, step="1") if quick else task
    ours, other = (
        Side(label=label, start=start, arguments={"task": task}, environment=_PINNED)
        for label, start in ((f"predict-volume --max-memory {_MEMORY}", start_ours), ("nnUNetv2_predict", start_stock))
    )
    return Comparison(
        name=name,
        what=task.words,
        ours=ours,
        other=other,
        unit={"seconds": "s", "memory": "MB", "tiles": "tiles"}[task.cost],
        target=target,
        repetitions=1 if quick else repetitions,
    )


def volume(edge: int, *, empty: bool) -> Array:
    """Blobs, uint16, (z, y, x); dark along x beyond what is tissue."""
    rng = np.random.default_rng(0)
    own = min(edge, _BLOBS)
    blobs = gaussian_filter(rng.random((own,) * 3, np.float32), 2.0, mode="wrap")
    block = (300 + 3000 * (blobs - blobs.min()) / np.ptp(blobs)).astype(np.uint16)
    times = -(-edge // own)
    image = np.tile(block, (times,) * 3)[:edge, :edge, :edge]
    if empty:
        first = round(edge * (1 - _EMPTY))
        image[:, :, first:] = rng.integers(2, 12, (edge, edge - first), np.uint16)
    return image


def write_model(folder: Path, content: dict[str, Any]) -> None:
    """A model of random weights."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(content)
    torch.manual_seed(0)
    network = nnUNetTrainer.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 1, 2, enable_deep_supervision=False
    )
    (folder / "fold_0").mkdir(parents=True)
    write_json(folder / "plans.json", content)
    write_json(folder / "dataset.json", DATASET)
    torch.save(
        {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        folder / "fold_0" / "checkpoint_final.pth",
    )


def start_ours(task: Task) -> Measure:
    """predict-volume, from one NIfTI, image and pyramid included."""
    root = _prepared(task)
    command = [
        "-m",
        "nnunet_selma.cli",
        "predict-volume",
        str(root / "in" / "brain_0000.nii.gz"),
        "-o",
        str(root / "ours.ome.zarr"),
        "-m",
        str(root / "model"),
        "--overwrite",
        "--max-memory",
        _MEMORY,
        "-step_size",
        task.step,
    ]

    def tiles() -> float:
        seconds(command)
        return float(read_json(root / "ours_segmentation.json")["result"]["tiles"])

    return tiles if task.cost == "tiles" else _measured(command, task.cost)


def start_stock(task: Task) -> Measure:
    """What nnUNetv2_predict does with -npp 0 -nps 0: everything in one process."""
    if task.cost == "tiles":
        from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

        steps = compute_steps_for_sliding_window((task.edge,) * 3, _PATCH, float(task.step))
        return lambda: float(math.prod(map(len, steps)))
    root = _prepared(task)
    return _measured(["-c", _STOCK, str(root / "in"), str(root / "out"), str(root / "model"), task.step], task.cost)


_STOCK = """
import os, sys, torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
source, target, model, step = sys.argv[1:]
os.makedirs(target, exist_ok=True)
predictor = nnUNetPredictor(
    tile_step_size=float(step), use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False
)
predictor.initialize_from_trained_model_folder(model, ("0",), "checkpoint_final.pth")
predictor.predict_from_files_sequential(source, target)
"""


def _prepared(task: Task) -> Path:
    root = scratch()
    (root / "in").mkdir()
    write_nifti(root / "in" / "brain_0000.nii.gz", volume(task.edge, empty=task.empty), (1.0, 1.0, 1.0))
    write_model(root / "model", task.plans())
    return root


def scratch() -> Path:
    """A folder that is removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="selma_benchmark_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def _measured(command: Sequence[str], cost: str) -> Measure:
    """Run a command of Python; what it cost."""
    return partial(peak_megabytes if cost == "memory" else seconds, command)


def _spots(edge: int) -> Path:
    """A mask with spots as an array in chunks of 64³."""
    import zarr

    path = scratch() / "spots.zarr"
    noise = gaussian_filter(np.random.default_rng(0).random((edge,) * 3, np.float32), 1.5)
    mask = (noise > np.percentile(noise, 97)).astype(np.uint8)
    array: Any = zarr.create_array(str(path), shape=mask.shape, chunks=(64, 64, 64), dtype="u1")
    array[:] = mask
    return path


def _timed(count: Callable[[], int], path: Path) -> Measure:
    def measure() -> float:
        started = time.monotonic()
        if count() < 1:
            raise RuntimeError(f"{path}: no components")
        return time.monotonic() - started

    return measure


def start_blocks(edge: int) -> Measure:
    """Components, with their sizes and boxes, block by block from the file."""
    from nnunet_selma.morphology.components import components_by_blocks
    from nnunet_selma.volumes import open_volume

    path = _spots(edge)
    spots = open_volume(path)
    return _timed(lambda: len(components_by_blocks(spots.read, spots.shape, (128, 128, 128)).sizes), path)


def start_cc3d(edge: int) -> Measure:
    """Components of the array, read whole, with their sizes and boxes."""
    import cc3d

    from nnunet_selma.volumes import open_volume

    path = _spots(edge)

    def count() -> int:
        labels, n = cc3d.connected_components(open_volume(path).read(), connectivity=26, return_N=True)
        cc3d.statistics(labels)
        return int(n)

    return _timed(count, path)


def start_dask(edge: int) -> Measure:
    """Labels alone, in chunks of 128³."""
    # without types
    dask, array, ndmeasure = (import_module(name) for name in ("dask", "dask.array", "dask_image.ndmeasure"))
    path = _spots(edge)

    def count() -> int:
        labels, n = ndmeasure.label(array.from_zarr(str(path), chunks=(128, 128, 128)), structure=np.ones((3, 3, 3)))
        _, found = dask.compute(labels.max(), n, scheduler="single-threaded")
        return int(found)

    return _timed(count, path)

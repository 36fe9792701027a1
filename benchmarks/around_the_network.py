"""Everything around the network: a whole prediction with a network that costs nothing, as on a device that is never waited for.

Costs are nanoseconds a voxel of the volume; parts that threads do at once are added up, so that theirs are nanoseconds of a core.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tifffile
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.pairs import Comparison, Measure, Side
from benchmarks.whole_volume import scratch, volume, write_model
from benchmarks.workspace import Plan
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import ShapeZYX

_SHAPE: ShapeZYX = (400, 600, 600)
_QUICK: ShapeZYX = (40, 60, 60)
_KINDS = {"slices": "TIFF slices", "zarr": "an OME-Zarr", "resampled": "TIFF slices, resampled 1.5 times coarser"}
_TARGETS = {"slices": 12e6, "zarr": 12e6, "resampled": 6e6}
"""Voxels a second on two cores that the project set itself."""
_PARTS = {
    "reading": [("nnunet_selma.prediction.slab_reading", "_read")],
    "statistics": [
        ("nnunet_selma.prediction.slab_reading.Intensities", "measure"),
        ("nnunet_selma.prediction.slab_reading", "grid_means"),
    ],
    "copying": [("nnunet_selma.prediction.slab_reading", "write_box")],
    "resampling": [("nnunet_selma.prediction.resampling.Resampling", "apply")],
    "blending": [("nnunet_selma.prediction.sums.Sums", "add"), ("nnunet_selma.prediction.sums.Sums", "move")],
    "argmax": [("nnunet_selma.prediction.model.Model", "labels")],
    "writing": [("nnunet_selma.prediction.block_prediction", "write_box")],
    "pyramids": [("nnunet_selma.prediction.finishing", "fill_pyramid")],
}
"""Part of a prediction to the functions that do it."""


class FreeNetwork(torch.nn.Module):
    """A network whose logits are blobs that were made once, whatever the input."""

    def __init__(self, *, num_classes: int, patch: list[int], **_options: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        noise = np.random.default_rng(0).random((num_classes, *patch), np.float32)
        blobs = gaussian_filter(noise, (0, 2, 2, 2), mode="wrap")
        self.register_buffer("logits", torch.from_numpy(blobs)[None])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """A view of the logits for each image of the batch."""
        logits = self.logits
        assert isinstance(logits, torch.Tensor)
        return logits.expand(len(image), -1, -1, -1, -1)


def comparisons(quick: bool = False) -> list[Comparison]:
    """End to end for each kind of input on one core and two, against the target and against reading alone; then each part."""
    shape = _QUICK if quick else _SHAPE
    rows = []
    for kind, words in _KINDS.items():
        for cores in (1, 2):
            ours = _side(kind, shape, cores)
            on = f"{words}, {cores} core{'s' if cores > 1 else ''}"
            reading = Side(label="cat the files, then decode them", start=start_reading, arguments=ours.arguments)
            rows.append(_row(f"volume_around_{kind}_{cores}", f"around the network: {on}", ours, reading, quick))
        target = Side(label="the rate that was set", start=start_target, arguments={"kind": kind})
        rows.append(_row(f"volume_around_{kind}_rate", f"around the network: {on}", ours, target, quick, 1.0))
    for part in _PARTS:
        kind = "resampled" if part == "resampling" else "slices"
        ours = _side(kind, shape, 1, part)
        rows.append(
            _row(f"volume_around_{part}", f"share of {part}, {_KINDS[kind]}", ours, _side(kind, shape, 1), quick)
        )
    return rows


def _side(kind: str, shape: ShapeZYX, cores: int, part: str = "") -> Side:
    return Side(
        label=part or "predict-volume, network for nothing",
        start=start_ours,
        arguments={"kind": kind, "shape": shape, "part": part},
        environment={"OMP_NUM_THREADS": str(cores)},
    )


def _row(name: str, what: str, ours: Side, other: Side, quick: bool, target: float = 0.0) -> Comparison:
    repetitions = 1 if quick or ours.arguments["part"] else 3
    return Comparison(name=name, what=what, ours=ours, other=other, unit="ns", target=target, repetitions=repetitions)


def start_ours(kind: str, shape: ShapeZYX, part: str) -> Measure:
    """Nanoseconds a voxel of a whole prediction, or of one part of it."""
    root, source = scratch(), _input(kind, shape)
    patch_edge = 32 if shape == _QUICK else 128
    content = Plan(patch=(patch_edge,) * 3, features=(4, 8), batch=2).content()
    (configuration,) = content["configurations"].values()
    configuration["architecture"] |= {
        "network_class_name": f"{FreeNetwork.__module__}.{FreeNetwork.__name__}",
        "arch_kwargs": {"patch": [patch_edge] * 3, "features_per_stage": [4, 8]},
        "_kw_requires_import": [],
    }
    configuration["spacing"] = [1.5 if kind == "resampled" else 1.0] * 3
    content["original_median_spacing_after_transp"] = [1.0] * 3
    write_model(root / "model", content)
    settings = VolumePrediction(
        inputs=(source,),
        output=root / "out.ome.zarr",
        model=ModelSettings(folder=root / "model", folds=("0",)),
        spacing_um_zyx=(1.0, 1.0, 1.0),
        tissue_only=False,
    )

    def measure() -> float:
        seconds: list[float] = []
        started = time.perf_counter()
        with ExitStack() as stack:
            for place, name in _PARTS.get(part, []):
                stack.enter_context(_timed(place, name, seconds))
            predict_volume(settings, Execution(overwrite=True))
        return (sum(seconds) if part else time.perf_counter() - started) / prod(shape) * 1e9

    return measure


@contextmanager
def _timed(place: str, name: str, seconds: list[float]) -> Iterator[None]:
    """Replace a function by itself with a clock."""
    holder, _, inner = place.rpartition(".")
    owner = getattr(import_module(holder), inner) if inner[0].isupper() else import_module(place)
    function: Callable[..., Any] = getattr(owner, name)

    @wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - started)

    static = isinstance(vars(owner)[name], staticmethod)
    with patch.object(owner, name, staticmethod(timed) if static else timed):
        yield


def start_reading(kind: str, shape: ShapeZYX, part: str) -> Measure:
    """Nanoseconds a voxel of reading every file to nowhere, and then of decoding it."""
    del part
    source = _input(kind, shape)

    def measure() -> float:
        started = time.perf_counter()
        for file in source.rglob("*"):
            if file.is_file():
                file.read_bytes()
        whole = open_volume(source)
        for z in range(0, shape[0], 64):
            whole.read(slice(z, z + 64))
        return (time.perf_counter() - started) / prod(shape) * 1e9

    return measure


def start_target(kind: str) -> Measure:
    """Nanoseconds a voxel at the rate that was set."""
    return lambda: 1e9 / _TARGETS[kind]


def _input(kind: str, shape: ShapeZYX) -> Path:
    """Blobs as TIFF slices or in chunks of 64³."""
    root = scratch()
    image = volume(max(shape), empty=False)[: shape[0], : shape[1], : shape[2]]
    if kind != "zarr":
        (root / "slices").mkdir()
        for z, plane in enumerate(image):
            tifffile.imwrite(root / "slices" / f"z{z:04d}.tif", plane)
        return root / "slices"
    import zarr

    array: Any = zarr.create_array(str(root / "image.zarr"), shape=shape, chunks=(64, 64, 64), dtype="u2")
    array[:] = image
    return root / "image.zarr"

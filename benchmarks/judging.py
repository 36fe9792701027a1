"""The metrics against the official formulation, on masks of 200³ voxels."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from skimage.morphology import skeletonize

from benchmarks import official
from benchmarks.pairs import Comparison, Measure, Side
from nnunet_selma.demo.phantom import draw
from nnunet_selma.evaluation.metrics.editions import edition
from nnunet_selma.evaluation.metrics.pair import Pair, Segmentation
from nnunet_selma.morphology.topology import betti_numbers
from nnunet_selma.structures import named
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array

REAL = Path(os.environ.get("SELMA_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "delivr"
_CUBES = {"cfos_neuron": ("cFos", 1147), "microglia": ("microglia", 3941)}
_EDGE = 200
_PINNED = {"OMP_NUM_THREADS": "1"}


_WHAT = {
    "betti": ("β0 and β1", 10.0),
    "cldice": ("clDice of a mask and its shifted copy", 1.0),
    "case": ("all metrics of 2024 of a mask and its shifted copy", 1.0),
}
"""Metric to what is compared, and the wanted ratio."""


def comparisons(quick: bool = False) -> list[Comparison]:
    """Betti numbers, clDice, a whole case, and what thinning takes of it; `quick` takes phantoms of 40³."""
    found = [_comparison("betti", "cfos_neuron", quick)]
    found += [_comparison(metric, "microglia", quick) for metric in _WHAT]
    share = replace(
        found[-1],
        name="judge_skeleton_microglia",
        what=f"how much of a case is thinning, {source('microglia', quick)}",
        target=0.0,
        ours=replace(
            found[-1].ours, label="thinning both masks", arguments={**found[-1].ours.arguments, "metric": "skeleton"}
        ),
        other=replace(found[-1].ours, label="our whole case"),
    )
    return [*found, share]


def _comparison(metric: str, structure: str, quick: bool) -> Comparison:
    what, target = _WHAT[metric]
    ours, other = (
        Side(
            label=label,
            start=start,
            arguments={"structure": structure, "metric": metric, "quick": quick},
            environment=_PINNED,
        )
        for label, start in (("ours", start_ours), ("scikit-image, as the official evaluator has it", start_official))
    )
    return Comparison(
        name=f"judge_{metric}_{structure}",
        what=f"{what}, {source(structure, quick)}",
        ours=ours,
        other=other,
        target=target,
        repetitions=1 if quick else 9,
    )


def source(structure: str, quick: bool) -> str:
    """What the mask is: a real cube where the real data are, or else a phantom."""
    folder, number = _CUBES[structure]
    if quick or not (REAL / folder).is_dir():
        return f"phantom of {structure}, {40 if quick else _EDGE}³"
    return f"DELiVR's {folder} cube {number}, {_EDGE}³"


def mask(structure: str, quick: bool) -> Array:
    """The 0/1 mask, (z, y, x), uint8."""
    folder, number = _CUBES[structure]
    if quick or not (REAL / folder).is_dir():
        edge = 40 if quick else _EDGE
        return (draw(structure, (edge,) * 3, np.random.default_rng(0)).label > 0).astype(np.uint8)
    whole = np.zeros((_EDGE,) * 3, np.uint8)
    half = _EDGE // 2
    for octant in range(8):
        # octant = 4·axis1 + 2·axis0 + axis2 of the file, whose axes are (x, y, z)
        y, x, z = octant // 4, octant // 2 % 2, octant % 2
        patch = open_volume(REAL / folder / "gt" / f"patchvolume_{number}_{octant}.nii.gz").read() > 0
        whole[z * half : (z + 1) * half, y * half : (y + 1) * half, x * half : (x + 1) * half] = patch
    return whole


def start_ours(structure: str, metric: str, quick: bool) -> Measure:
    """Our metric."""

    def case(reference: Array, prediction: Array) -> list[float]:
        return list(edition(2024).score(Pair(prediction, reference), named("microglia")).values())

    def cldice(reference: Array, prediction: Array) -> float:
        return Pair(prediction, reference).centrelines.cldice_2024

    def thinned(reference: Array, prediction: Array) -> list[int]:
        return [int(Segmentation(mask).skeleton.sum()) for mask in (reference, prediction)]

    ours: dict[str, Callable[..., Any]] = {
        "betti": lambda mask: betti_numbers(mask)[:2],
        "cldice": cldice,
        "case": case,
        "skeleton": thinned,
    }
    return _start(structure, metric, quick, ours)


def start_official(structure: str, metric: str, quick: bool) -> Measure:
    """The same in the official formulation."""
    return _start(structure, metric, quick, _OFFICIAL)


def _official_case(reference: Array, prediction: Array) -> list[float]:
    dice = 2 * np.sum(prediction * reference) / (np.sum(prediction) + np.sum(reference))
    betti = [official.betti_2024(mask) for mask in (reference, prediction)]
    errors = [abs(r - p) for r, p in zip(*betti, strict=True)]
    return [dice, official.cldice_2024(reference, prediction), *errors]


def _official_skeletons(reference: Array, prediction: Array) -> list[int]:
    return [int(skeletonize(mask).sum()) for mask in (reference, prediction)]


_OFFICIAL: dict[str, Callable[..., Any]] = {
    "betti": official.betti_2024,
    "cldice": official.cldice_2024,
    "case": _official_case,
    "skeleton": _official_skeletons,
}


def _start(structure: str, metric: str, quick: bool, metrics: Mapping[str, Callable[..., Any]]) -> Measure:
    reference = mask(structure, quick)
    arguments = (reference,) if metric == "betti" else (reference, np.roll(reference, 2, 2))
    expected = _OFFICIAL[metric](*arguments)

    def measure() -> float:
        started = time.perf_counter()
        found = metrics[metric](*arguments)
        took = time.perf_counter() - started
        if not np.allclose(found, expected, rtol=0, atol=1e-12):
            raise RuntimeError(f"{found} is not {expected}: only equal results are compared")
        return took

    measure()  # the first call loads what it needs
    return measure

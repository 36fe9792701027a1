"""Summary of all objects together: how many, how much of the volume, topology, and length of trees."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from nnunet_selma.morphology.blocks import Read, blocks
from nnunet_selma.morphology.centreline import branch_points, centreline_length, skeletons_by_blocks
from nnunet_selma.morphology.topology import Betti, betti_numbers_by_blocks
from nnunet_selma.objects.table import Objects
from nnunet_selma.running.progress import Progress
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX

_MOST_LABELS = 256
"""Greatest number of classes of a segmentation that are listed; numbers of instances are not classes."""
_UM3_OF_MM3 = 1e9
MOST_THINNED, HALO = 2**27, 64
"""Voxels of the largest box that a component is thinned in whole (about 1.5 GB); of larger ones, voxels around each piece."""


def topology(read: Read, shape: ShapeZYX, edge: ShapeZYX, progress: Progress[Any]) -> Betti:
    """Components, loops and cavities of everything above 0, whatever its labels and sizes, read block by block."""
    z, y, x = (n + 2 for n in shape)  # an empty voxel around it
    with _shown(read, progress, sum(1 for _ in blocks((z, y, x), edge)), "topology") as shown:
        return betti_numbers_by_blocks(shown, shape, edge)


def trees(
    read: Read, shape: ShapeZYX, edge: ShapeZYX, spacing_um_zyx: SpacingUm | None, progress: Progress[Any]
) -> dict[str, Any]:
    """Length in µm (None where the voxel size is not known), voxels and branch points of the skeleton of everything above 0.

    A component is thinned in its own box; one that spans much of the volume, as a network of vessels, in pieces.
    """
    length, voxels, branches, pieces = 0.0, 0, 0, 0
    with _shown(read, progress, sum(1 for _ in blocks(shape, edge)), "skeletons") as shown:
        for piece in skeletons_by_blocks(shown, shape, edge, most=MOST_THINNED, halo=HALO):
            length += centreline_length(piece.thin, spacing_um_zyx or (1.0, 1.0, 1.0), piece.own)
            voxels += int(np.count_nonzero(piece.thin[piece.own]))
            branches += branch_points(piece.thin, piece.own)
            pieces += not piece.whole
    return {
        "skeleton_length_um": length if spacing_um_zyx else None,
        "skeleton_voxels": voxels,
        "branch_points": branches,
        "pieces": pieces,
    }


@contextmanager
def _shown(read: Read, progress: Progress[Any], steps: int, label: str) -> Iterator[Read]:
    """The same boxes, each of which is a step of the progress, up to so many."""
    bar = iter(progress(range(steps), label))

    def shown(z: slice, y: slice, x: slice) -> Array:
        next(bar, None)
        return read(z, y, x)

    yield shown
    for _ in bar:
        pass


def counts(
    objects: Objects, left_out: int, shape: ShapeZYX, spacing_um_zyx: SpacingUm | None, names: Mapping[int, str]
) -> dict[str, Any]:
    """Number and volume of the objects of each label and of all, and their share of the volume; None for µm of unknown voxels."""
    um3 = prod(spacing_um_zyx) if spacing_um_zyx else None
    voxels, mm3 = int(objects.voxels.sum()), um3 and um3 * prod(shape) / _UM3_OF_MM3
    classes = np.unique(objects.label)
    return {
        "objects": len(objects),
        "left_out_by_size": left_out,
        "objects_at_border": int(objects.touches_border(shape).sum()),
        "classes": [_of_label(objects, int(c), um3, names) for c in classes] if len(classes) <= _MOST_LABELS else None,
        "voxels": voxels,
        "volume_um3": um3 and um3 * voxels,
        "share_of_volume": voxels / prod(shape),
        "objects_per_mm3": mm3 and len(objects) / mm3,
    }


def _of_label(objects: Objects, number: int, um3: float | None, names: Mapping[int, str]) -> dict[str, Any]:
    voxels = objects.voxels[objects.label == number]
    return {
        "label": number,
        "name": names.get(number),
        "objects": len(voxels),
        "voxels": int(voxels.sum()),
        "volume_um3": um3 and um3 * int(voxels.sum()),
    }


def sentences(summary: Mapping[str, Any]) -> Sequence[str]:
    """The summary in lines that are read by people."""
    classes = summary["classes"] or []
    apart = ", ".join(f"{one['name'] or 'label ' + str(one['label'])} {one['objects']}" for one in classes)
    left = f"; {summary['left_out_by_size']} left out by their size" if summary["left_out_by_size"] else ""
    lines = [
        f"objects: {summary['objects']}{f' ({apart})' if len(classes) > 1 else ''}, {summary['objects_at_border']} at the border{left}"
    ]
    share = f"{100 * summary['share_of_volume']:.4g} % of the volume"
    if summary["volume_um3"] is None:
        lines.append(f"together {summary['voxels']} voxels, {share}")
    else:
        lines.append(
            f"together {summary['volume_um3']:.6g} µm³, {share}; {summary['objects_per_mm3']:.6g} objects per mm³ of it"
        )
    b0, b1, b2 = (summary["betti"][name] for name in ("b0", "b1", "b2"))
    lines.append(f"topology of everything above 0: β0 {b0} components, β1 {b1} loops, β2 {b2} cavities")
    if summary["trees"] is not None:
        length, branches = summary["trees"]["skeleton_length_um"], summary["trees"]["branch_points"]
        long = f"{summary['trees']['skeleton_voxels']} voxels" if length is None else f"{length:.6g} µm"
        lines.append(f"skeleton: {long} long, {branches} branch points")
    return [*lines, *(f"note: {note}" for note in summary["notes"])]

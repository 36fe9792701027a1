"""Summary of all objects together: number, share of the volume, topology, and length of trees."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from nnunet_selma.morphology.blocks import Read, blocks
from nnunet_selma.morphology.centreline import branch_points, centreline_length, skeletons_by_blocks
from nnunet_selma.morphology.topology import Betti, betti_numbers_by_blocks
from nnunet_selma.objects.table import MOST_CLASSES, UM3_PER_MM3, Objects
from nnunet_selma.running.progress import Progress
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX

MOST_THINNED, HALO = 2**27, 64
"""Voxels of the largest box in which a component is thinned whole (about 1.5 GB); voxels around each piece of a larger one."""


def topology(read: Read, shape: ShapeZYX, edge: ShapeZYX, progress: Progress[Any]) -> Betti:
    """Components, loops and cavities of everything above 0, regardless of labels and sizes, read block by block."""
    z, y, x = (n + 2 for n in shape)  # an empty voxel around it
    with _with_progress(read, progress, sum(1 for _ in blocks((z, y, x), edge)), "topology") as read_and_show:
        return betti_numbers_by_blocks(read_and_show, shape, edge)


def trees(
    read: Read, shape: ShapeZYX, edge: ShapeZYX, spacing_um_zyx: SpacingUm | None, progress: Progress[Any]
) -> dict[str, Any]:
    """Length in µm (None if the voxel size is not known), voxels and branch points of the skeleton of everything above 0.

    A component is thinned in its box; one that spans much of the volume, such as a network of vessels, in pieces.
    """
    length, voxels, branches, pieces = 0.0, 0, 0, 0
    with _with_progress(read, progress, sum(1 for _ in blocks(shape, edge)), "skeletons") as read_and_show:
        for piece in skeletons_by_blocks(read_and_show, shape, edge, most=MOST_THINNED, halo=HALO):
            length += centreline_length(piece.thin, spacing_um_zyx or (1.0, 1.0, 1.0), piece.core)
            voxels += int(np.count_nonzero(piece.thin[piece.core]))
            branches += branch_points(piece.thin, piece.core)
            pieces += not piece.whole
    return {
        "skeleton_length_um": length if spacing_um_zyx else None,
        "skeleton_voxels": voxels,
        "branch_points": branches,
        "pieces": pieces,
    }


@contextmanager
def _with_progress(read: Read, progress: Progress[Any], steps: int, label: str) -> Iterator[Read]:
    """A reader of the same boxes that counts each box as one step of the progress, up to `steps`."""
    bar = iter(progress(range(steps), label))

    def read_and_show(z: slice, y: slice, x: slice) -> Array:
        next(bar, None)
        return read(z, y, x)

    yield read_and_show
    for _ in bar:
        pass


def counts(
    objects: Objects, left_out: int, shape: ShapeZYX, spacing_um_zyx: SpacingUm | None, names: Mapping[int, str]
) -> dict[str, Any]:
    """Number and volume of the objects of each label and of all, and their share of the volume; µm are None for voxels of unknown size."""
    um3 = prod(spacing_um_zyx) if spacing_um_zyx else None
    voxels, mm3 = int(objects.voxels.sum()), um3 and um3 * prod(shape) / UM3_PER_MM3
    classes = np.unique(objects.label)
    listed = [_count_class(objects, int(c), um3, names) for c in classes] if len(classes) <= MOST_CLASSES else None
    return {
        "objects": len(objects),
        "left_out_by_size": left_out,
        "objects_at_border": int(objects.touches_border(shape).sum()),
        "classes": listed,
        "voxels": voxels,
        "volume_um3": um3 and um3 * voxels,
        "share_of_volume": voxels / prod(shape),
        "objects_per_mm3": mm3 and len(objects) / mm3,
    }


def _count_class(objects: Objects, number: int, um3: float | None, names: Mapping[int, str]) -> dict[str, Any]:
    voxels = objects.voxels[objects.label == number]
    return {
        "label": number,
        "name": names.get(number),
        "objects": len(voxels),
        "voxels": int(voxels.sum()),
        "volume_um3": um3 and um3 * int(voxels.sum()),
    }


def sentences(summary: Mapping[str, Any]) -> Sequence[str]:
    """The summary in lines for people to read; only what was measured."""
    classes = summary["classes"] or []
    by_class = ", ".join(f"{each['name'] or 'label ' + str(each['label'])} {each['objects']}" for each in classes)
    left = f"; {summary['left_out_by_size']} left out by their size" if summary["left_out_by_size"] else ""
    lines = [
        f"objects: {summary['objects']}{f' ({by_class})' if len(classes) > 1 else ''}, {summary['objects_at_border']} at the border{left}"
    ]
    if summary["touching"] is not None:
        touching = summary["touching"]
        whole = f"; {touching['components_left_whole']} left whole" if touching["components_left_whole"] else ""
        lines.append(
            f"touching objects: {touching['components']} components before, {touching['objects']} objects after; "
            f"{touching['components_split']} components were split{whole}"
        )
    share = f"{100 * summary['share_of_volume']:.4g} % of the volume"
    if summary["volume_um3"] is None:
        lines.append(f"together {summary['voxels']} voxels, {share}")
    else:
        lines.append(
            f"together {summary['volume_um3']:.6g} µm³, {share}; {summary['objects_per_mm3']:.6g} objects per mm³ of it"
        )
    if summary["betti"] is not None:
        b0, b1, b2 = (summary["betti"][name] for name in ("b0", "b1", "b2"))
        lines.append(f"topology of everything above 0: β0 {b0} components, β1 {b1} loops, β2 {b2} cavities")
    if summary["trees"] is not None:
        length, branches = summary["trees"]["skeleton_length_um"], summary["trees"]["branch_points"]
        long = f"{summary['trees']['skeleton_voxels']} voxels" if length is None else f"{length:.6g} µm"
        lines.append(f"skeleton: {long} long, {branches} branch points")
    return [*lines, *(f"note: {note}" for note in summary["notes"])]

"""Components that consist of several touching bodies, split at the necks between them by a seeded watershed.

The height of a voxel is its distance to the nearest voxel outside of the component, in µm; where a probability is known, it is multiplied by
that. Every maximum of the height is a seed, and the watershed (Meyer 1994) gives each seed a basin. Two basins become one again, highest pass
first, where the pass between them is higher than a share of the lower summit: that is an uneven surface, not a neck. The share has no unit,
so that one number serves large and small bodies.

Everything outside of the component counts as outside, also voxels of another class that adjoin it: each class is split as if the others were
empty. The nearest voxel outside touches the component, and components of one class do not touch. Therefore a component is split alone, in its box
and one layer around it, with the same result as in a whole volume. Memory: about 110 bytes for each voxel of the box.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.morphology import local_maxima
from skimage.segmentation import watershed

from nnunet_selma.morphology.blocks import Mask
from nnunet_selma.morphology.components import Connectivity, label
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array

NECK = 0.85
"""Share of the lower summit below which a pass is a neck; docs/whole-brains.md has the study behind it."""
MOST_PROBABLE = 255
"""Value of a probability of 1."""
_STEPS = 256
"""Steps of the height in the shortest edge of a voxel. Whole steps make equal what rounding sets apart, wherever the component lies."""
_Integers = NDArray[np.int64]


def split_component(
    component: Mask,
    spacing_um_zyx: SpacingUm,
    *,
    neck: float = NECK,
    connectivity: Connectivity = 26,
    probability: Array | None = None,
) -> tuple[NDArray[np.int32], int]:
    """Split one component into its bodies.

    Args:
        component: its box (z, y, x) and one layer of voxels around it, except where the volume ends.
        spacing_um_zyx: voxel size; only ratios between axes change the result.
        neck: two bodies are parted where the pass between them is at most this share of the lower summit, 0 to 1.
        connectivity: neighbours of a voxel, those by which the component was found.
        probability: 0 to 255 for each voxel of the box; None: only the distance counts.

    Returns:
        Numbers of the bodies, from 1 in raster order of first voxels, 0 outside; and how many there are.
    """
    bodies = component.astype(np.int32)
    if component.all():  # no voxel outside, to which there would be a distance
        return bodies, 1
    rank = 1 if connectivity == 6 else 3
    height = distance_transform_edt(component, spacing_um_zyx) * (_STEPS / min(spacing_um_zyx))
    if probability is not None:
        height *= np.maximum(probability, 1) / MOST_PROBABLE  # above 0 in the whole component
    height = np.rint(height).astype(np.int32)
    seeds, n = label(local_maxima(height, connectivity=rank) & component, connectivity)
    if n < 2:
        return bodies, 1
    depth, at = -height.astype(np.float64), seeds > 0
    depth[at] += np.linspace(
        -0.5, -0.25, np.count_nonzero(at)
    )  # scikit-image leaves open in which order equal seeds grow
    basins = watershed(depth, seeds.astype(np.int32), mask=component, connectivity=rank)
    summits = np.zeros(n + 1, np.int64)
    summits[seeds] = height  # equal in all voxels of a seed
    joined = _join(*_passes(basins, height, n, connectivity), summits, neck)[basins[component]]
    _, first, number = np.unique(joined, return_index=True, return_inverse=True)
    bodies[component] = np.argsort(np.argsort(first))[number] + 1
    return bodies, len(first)


def _passes(
    basins: NDArray[np.int32], height: NDArray[np.int32], n: int, connectivity: Connectivity
) -> tuple[_Integers, _Integers]:
    """Neighbouring basins (m, 2) and the height (m,) of the highest pass between them, highest first."""
    pairs, levels = [], []
    for step in product((-1, 0, 1), repeat=3):
        if step <= (0, 0, 0) or (connectivity == 6 and np.count_nonzero(step) > 1):
            continue
        here = tuple(slice(max(-s, 0), min(-s, 0) or None) for s in step)
        there = tuple(slice(max(s, 0), min(s, 0) or None) for s in step)
        a, b = basins[here], basins[there]
        at = np.nonzero((a != b) & (a > 0) & (b > 0))
        pairs.append(np.minimum(a[at], b[at]) * np.int64(n + 1) + np.maximum(a[at], b[at]))
        levels.append(np.minimum(height[here][at], height[there][at]).astype(np.int64))
    pair, level = np.concatenate(pairs), np.concatenate(levels)
    order = np.lexsort((pair, -level))
    highest = np.sort(np.unique(pair[order], return_index=True)[1])
    return np.stack(np.divmod(pair[order][highest], n + 1), axis=1), level[order][highest]


def _join(pairs: _Integers, levels: _Integers, summits: _Integers, neck: float) -> _Integers:
    """For each basin the number of a basin that stands for all that are joined with it."""
    leader, summit = list(range(len(summits))), summits.tolist()

    def leader_of(basin: int) -> int:
        while leader[basin] != basin:
            leader[basin] = leader[leader[basin]]
            basin = leader[basin]
        return basin

    for (first, second), level in zip(pairs.tolist(), levels.tolist(), strict=True):
        a, b = leader_of(first), leader_of(second)
        if a != b and level > neck * min(summit[a], summit[b]):
            leader[b] = a
            summit[a] = max(summit[a], summit[b])
    return np.array([leader_of(basin) for basin in range(len(summits))])

"""Layers of labels that a person or a plugin adds to the window of a cube, beside the layer that is saved."""

from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array


def layers_with_voxels(viewer: Any, label_layer: Any) -> list[Any]:
    """Layers of labels that hold any voxel, without that of the label."""
    others = [layer for layer in viewer.layers if layer is not label_layer]
    return [layer for layer in others if layer.as_layer_data_tuple()[2] == "labels" and _voxels(layer).any()]


def part_in_cube(layer: Any, label_layer: Any, shape: tuple[int, ...]) -> tuple[Array, int]:
    """The part of a layer that lies in the cube, as napari's new layers cover the surroundings too.

    Args:
        layer: a layer of labels.
        label_layer: the layer of the label, whose first voxel is that of the cube.
        shape: of the cube, (z, y, x).

    Returns:
        Voxels of the cube (z, y, x), 0 where the layer does not reach; and the number of voxels in objects outside the cube.

    Raises:
        SelmaError: the voxels of the layer are not those of the cube: they have other axes, another size, or lie between them.
    """
    voxels = _voxels(layer)
    if not voxels.ndim == label_layer.ndim == 3:
        raise SelmaError(f"it has {voxels.ndim} axes, the cube 3")
    first, *ends = (np.asarray(label_layer.world_to_data(layer.data_to_world(at))) for at in (np.zeros(3), *np.eye(3)))
    start = np.rint(first).astype(int)
    if not np.allclose([first, *(end - first for end in ends)], [start, *np.eye(3)], atol=1e-2):
        raise SelmaError("its voxels do not lie on those of the cube")
    lowest, highest = np.maximum(start, 0), np.minimum(start + voxels.shape, shape)
    inside = np.zeros(shape, voxels.dtype)
    if (lowest < highest).all():
        inside[_box(lowest, highest)] = voxels[_box(lowest - start, highest - start)]
    return inside, int(np.count_nonzero(voxels) - np.count_nonzero(inside))


def _voxels(layer: Any) -> Array:
    """The voxels at full resolution."""
    return np.asarray(layer.data[0] if layer.multiscale else layer.data)


def _box(lowest: Array, highest: Array) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(lowest.tolist(), highest.tolist(), strict=True))

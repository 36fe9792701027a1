"""Layers for napari: an image and its segmentation at every resolution, of which only the visible part is read."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.pictures.overview.sheet import CLASS_COLOURS
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.segmented import Levels, Segmented

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]
"""A layer of napari: data, options, and `image` or `labels`."""
_QT = ("PyQt6", "PySide6", "PyQt5", "PySide2")
_CONTRAST_EDGE = 512
"""Edge, voxels, of the square in the middle plane that sets the contrast."""
_LOW, _HIGH = 1.0, 99.9
"""Percentiles of the grey values that are black and white."""


class LazyArray:
    """A volume on disk as an array (z, y, x); indexing reads the voxels.

    Args:
        volume: the volume.
        dtype: type of the voxels that are returned; by default that of the file.
    """

    def __init__(self, volume: Volume, dtype: type[np.generic] | None = None) -> None:
        self._volume = volume
        self.shape = volume.shape
        self.ndim = len(volume.shape)
        self.size = int(np.prod(volume.shape))
        self.dtype = np.dtype(dtype or volume.dtype)

    def __getitem__(self, index: Any) -> Array:
        keys = index if isinstance(index, tuple) else (index,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = (*keys[:at], *(slice(None),) * (self.ndim + 1 - len(keys)), *keys[at + 1 :])
        keys = (*keys, *(slice(None),) * (self.ndim - len(keys)))
        bounds, within = zip(*(_bounds(key, length) for key, length in zip(keys, self.shape, strict=True)), strict=True)
        return np.asarray(self._volume.read(*bounds)[within], self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The whole volume."""
        return np.asarray(self[...], dtype)


def _bounds(key: Any, length: int) -> tuple[slice, Any]:
    """Slice to read along an axis, and the index within it: 0 drops the axis, a slice may leave out voxels."""
    if not isinstance(key, slice):
        place = range(length)[int(key)]
        return slice(place, place + 1), 0
    start, stop, step = key.indices(length)
    if step < 1:
        raise IndexError(f"step {step}: a volume is read forward only")
    return slice(start, max(start, stop)), slice(None, None, step)


def layers(segmented: Segmented, spacing_um_zyx: SpacingUm | None = None) -> list[LayerData]:
    """Layers for napari: one for each channel of the image, and the segmentation above them; only a part of one plane is read.

    Args:
        segmented: an image, a segmentation, or both.
        spacing_um_zyx: voxel size, µm, of the first volume, instead of that of the files.
    """
    volumes = [levels[0] for levels in (*segmented.channels, segmented.labels) if levels]
    spacings = [(spacing_um_zyx, volumes[0])] + [(volume.spacing_um_zyx, volume) for volume in volumes]
    extent = next((np.multiply(spacing, volume.shape) for spacing, volume in spacings if spacing), None)
    layers: list[LayerData] = []
    for number, levels in enumerate(segmented.channels):
        name = "image" if len(segmented.channels) == 1 else f"image, channel {number}"
        if segmented.channel_names:
            name = f"image, {segmented.channel_names[number]}"
        options = {"name": name, "colormap": "gray", "blending": "additive", **_place(levels, extent)}
        if limits := _contrast(levels[-1]):
            options["contrast_limits"] = limits
        layers.append((_arrays(levels), options, "image"))
    if segmented.labels:
        options = {"name": "segmentation", "opacity": 0.6, **_place(segmented.labels, extent)}
        # napari chooses the colours of numbered objects
        if segmented.classes or segmented.labels[0].dtype.itemsize == 1:
            options["colormap"] = {None: CLASS_COLOURS[0], 0: "transparent", **dict(enumerate(CLASS_COLOURS, 1))}
        if segmented.classes:
            options["features"] = {"index": [0, *segmented.classes], "class": ["", *segmented.classes.values()]}
        dtype = None if segmented.labels[0].dtype.kind in "bui" else np.int32
        layers.append((_arrays(segmented.labels, dtype), options, "labels"))
    return layers


def show(title: str, layers: list[LayerData], prepare: Callable[[Any], None] = lambda viewer: None) -> None:
    """Open a window of napari and wait until it is closed.

    Args:
        title: title of the window.
        layers: the layers.
        prepare: called with the viewer when all layers are in it.

    Raises:
        SelmaError: napari, or the Qt that it needs, is not installed.
    """
    check_napari()
    import napari  # type: ignore[import-untyped]

    viewer = napari.Viewer(title=title)
    for data, options, kind in layers:
        viewer.add_layer(napari.layers.Layer.create(data, options, kind))
    viewer.dims.axis_labels = ("z", "y", "x")
    # napari 0.9 has it in another place
    bar = viewer.canvas.overlays.scale_bar if hasattr(viewer, "canvas") else viewer.scale_bar
    bar.visible = True
    prepare(viewer)
    napari.run()


def notify(sentence: str) -> None:
    """Show a sentence in the window of napari for some seconds, and in the terminal."""
    from napari.utils.notifications import show_info  # type: ignore[import-untyped]

    show_info(sentence)


def check_napari() -> None:
    """Raise `SelmaError` that says how to install napari, if napari or the Qt that it needs is not installed."""
    if find_spec("napari") is None or not any(find_spec(name) for name in _QT):
        raise SelmaError(
            'napari is not installed, or has no windows; run: pip install "napari[all]" napari-ome-zarr, and this command again. Other viewers of '
            "OME-Zarr open the folder too: Fiji (with MoBIE), neuroglancer, or napari on another computer, which it is dragged onto"
        )


def _arrays(levels: Levels, dtype: type[np.generic] | None = None) -> Any:
    """A list of arrays, one for each resolution; a single array if there is only one."""
    arrays = [LazyArray(level, dtype) for level in levels]
    return arrays if len(arrays) > 1 else arrays[0]


def _place(levels: Levels, extent: NDArray[np.float64] | None) -> dict[str, Any]:
    """Scale and place of a layer: the first corner of the volume is at 0 µm; no scale if the voxel size is not known."""
    options: dict[str, Any] = {"multiscale": len(levels) > 1}
    if extent is not None:
        scale = tuple(float(s) for s in extent / levels[0].shape)
        # napari's translate is the centre of the first voxel
        options |= {"scale": scale, "translate": tuple(s / 2 for s in scale), "units": ("um", "um", "um")}
    return options


def _contrast(volume: Volume) -> tuple[float, float] | None:
    """Grey values that are black and white, from the middle of the middle plane; None if it is uniform."""
    z, y, x = (length // 2 for length in volume.shape)
    half = _CONTRAST_EDGE // 2
    plane = volume.read(slice(z, z + 1), slice(max(0, y - half), y + half), slice(max(0, x - half), x + half))
    values = plane[np.isfinite(plane)]
    low, high = np.percentile(values, (_LOW, _HIGH)) if values.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else None

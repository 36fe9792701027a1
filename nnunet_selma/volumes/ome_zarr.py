"""OME-Zarr 0.4 and 0.5, read with zarr (an extra: `pip install nnunet-selma[zarr]`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, Volume
from nnunet_selma.volumes.units import spacing_in_um

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""Exceptions of zarr and of missing metadata."""
_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")


def is_zarr(path: Path) -> bool:
    """True for a folder that holds zarr metadata of version 2 or 3."""
    return any((path / name).is_file() for name in _METADATA)


def zarr_library() -> Any:
    """The zarr module; raises `SelmaError` that says how to install it."""
    try:
        import zarr
    except ImportError as error:
        raise SelmaError(
            "OME-Zarr needs zarr; install it with: pip install 'nnunet-selma[brains]', or 'nnunet-selma[zarr]' to read only"
        ) from error
    return zarr


def zarr_node(path: Path) -> Any:
    """The zarr group or array at a path, to read; raises `SelmaError` where zarr is not installed or the metadata are damaged."""
    library = zarr_library()
    try:
        return library.open(str(path), mode="r")
    except _DAMAGE as error:
        raise _damaged_metadata(path, error) from error


def _damaged_metadata(path: Path, error: Exception) -> SelmaError:
    return SelmaError(f"{path}: the OME-Zarr's metadata cannot be read ({error}); copy it again")


def ome_metadata(node: Any) -> dict[str, Any]:
    """OME-Zarr's metadata of a zarr group, of version 0.4 or 0.5; empty for an array."""
    if hasattr(node, "shape"):
        return {}
    attributes = dict(node.attrs)
    content: dict[str, Any] = attributes.get("ome", attributes)
    return content


def axis_names(multiscale: Mapping[str, Any]) -> list[str]:
    """Names of the axes of a multiscale image, the slowest first."""
    return [axis["name"] if isinstance(axis, dict) else str(axis) for axis in multiscale.get("axes", "tczyx")]


class OmeZarrVolume(Volume):
    """One resolution level and one channel of an OME-Zarr image, or a bare zarr array of three axes.

    Raises:
        SelmaError: zarr is not installed, no such level or channel, several time points, or several channels and no choice.
    """

    plane_wise = False

    def __init__(self, path: Path, *, channel: int | None = None, level: int = 0) -> None:
        self.path = path
        node = zarr_node(path)
        try:
            array, axes, self.spacing_um_zyx = self._level(node, level)
        except SelmaError:
            raise
        except _DAMAGE as error:
            raise _damaged_metadata(path, error) from error
        leading: list[int] = []
        for name, length in zip(axes[:-3], array.shape[:-3], strict=True):
            if name == "c" and channel is not None and 0 <= channel < length:
                leading.append(channel)
            elif length == 1:
                leading.append(0)
            else:
                raise SelmaError(
                    f"{path}: axis {name!r} has {length} entries; save one three-dimensional image of it",
                    option=f"choose one of 0 to {length - 1} with --channel" if name == "c" else "",
                )
        if len(array.shape) < 3 or axes[-3:] != ["z", "y", "x"]:
            raise SelmaError(
                f"{path}: has the axes {', '.join(axes)}; an image with z, y, x as its last axes is needed"
            )
        self._array, self._leading = array, tuple(leading)
        z, y, x = (int(length) for length in array.shape[-3:])
        self.shape = (z, y, x)
        self.dtype = np.dtype(array.dtype)
        z, y, x = (int(length) for length in array.chunks[-3:])
        self.chunk_zyx = (z, y, x)

    def _level(self, node: Any, level: int) -> tuple[Any, list[str], SpacingUm | None]:
        """Array, axis names and spacing (µm, zyx) of a resolution level."""
        if hasattr(node, "shape"):  # a bare array: no axes, no scale
            return node, ["t", "c", "z", "y", "x"][-len(node.shape) :], None
        multiscales = ome_metadata(node).get("multiscales")
        if not multiscales:
            raise SelmaError(f"{self.path}: is a zarr group without OME-Zarr's multiscales; give the image inside it")
        datasets = multiscales[0]["datasets"]
        if not 0 <= level < len(datasets):
            raise SelmaError(f"{self.path}: has {len(datasets)} resolution levels, level {level} is not among them")
        axes = axis_names(multiscales[0])
        units = [axis.get("unit") if isinstance(axis, dict) else None for axis in multiscales[0].get("axes", "tczyx")]
        scale = np.ones(len(axes))
        for holder in (datasets[level], multiscales[0]):
            for transform in holder.get("coordinateTransformations", []):
                if transform.get("type") == "scale":
                    scale = scale * np.asarray(transform["scale"], float)
        return node[datasets[level]["path"]], axes, spacing_in_um(scale[-3:].tolist(), units[-3:])

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        try:
            return np.asarray(self._array[(*self._leading, z, y, x)])
        except (OSError, RuntimeError, ValueError) as error:
            raise SelmaError(f"{self.path}: a chunk cannot be read ({error}); copy the OME-Zarr again") from error

"""A plugin of BioIO for tests: it reads NumPy's `.npz`, with the axes, sizes and chunks that are stored in it."""

from typing import Any, ClassVar

import dask.array as da
import numpy as np
import xarray as xr
from bioio_base import types
from bioio_base.dimensions import Dimensions
from bioio_base.reader import Reader as BaseReader


class Reader(BaseReader):
    """Reads whole chunks."""

    computed: ClassVar[list[tuple[int, ...]]] = []
    """Shapes of the chunks that were read."""

    def __init__(self, image: str, **_: Any) -> None:
        with np.load(image) as file:
            self.stored = {name: file[name] for name in file.files}

    @staticmethod
    def _is_supported_image(fs: Any, path: str, **_: Any) -> bool:
        return True

    @property
    def scenes(self) -> tuple[str, ...]:
        return tuple(self.stored["scenes"].tolist())

    @property
    def resolution_levels(self) -> tuple[int, ...]:
        return tuple(range(int(self.stored["levels"])))

    def _image(self) -> np.ndarray:
        """The image of this scene and level: each level holds every second voxel along y and x."""
        axes, step = str(self.stored["axes"]), 2**self.current_resolution_level
        image = self.stored["data"][self.current_scene_index]
        return image[tuple(slice(None, None, step if axis in "YX" else 1) for axis in axes)]

    def _read_delayed(self) -> xr.DataArray:
        chunks = tuple(self.stored["chunks"].tolist())
        lazy = da.from_array(self._image(), chunks=chunks).map_blocks(_counted, meta=self._image()[:0])
        axes = str(self.stored["axes"])
        names = {"C": self.stored["names"].tolist()} if "C" in axes else {}
        return xr.DataArray(lazy, dims=list(axes), coords=names)

    def _read_immediate(self) -> xr.DataArray:
        return self.xarray_dask_data.compute()

    @property
    def physical_pixel_sizes(self) -> types.PhysicalPixelSizes:
        return types.PhysicalPixelSizes(*[size or None for size in self.stored["sizes"].tolist()])

    @property
    def dimension_properties(self) -> types.DimensionProperties:
        unit = types.ureg(str(self.stored["unit"])).units if self.stored["unit"] else None
        space = types.DimensionProperty("space", unit)
        none = types.DimensionProperty(None, None)
        return types.DimensionProperties(T=none, C=none, Z=space, Y=space, X=space)


def _counted(block: np.ndarray) -> np.ndarray:
    Reader.computed.append(block.shape)
    return block


class PartReader(Reader):
    """Reads parts, as the plugins of CZI and ND2 do, and never builds the lazy array."""

    def _read_delayed(self) -> xr.DataArray:
        raise AssertionError("parts are read")

    @property
    def dims(self) -> Dimensions:
        return Dimensions(str(self.stored["axes"]), self._image().shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._image().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stored["data"].dtype

    @property
    def channel_names(self) -> list[str]:
        return self.stored["names"].tolist()

    def _read_indexed(self, given_dims: str, dim_specs: list[Any]) -> np.ndarray:
        return _counted(self._image()[tuple(dim_specs)])

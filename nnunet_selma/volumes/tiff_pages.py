"""TIFF files of many pages: the pages that form the image, and a volume that reads them."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, Volume, by_times, cut_short, damaged_file
from nnunet_selma.volumes.choice import Choice, Inventory, check_level, chosen_channel, chosen_scene, chosen_time
from nnunet_selma.volumes.ome_xml import OmeImage, ome_image, ome_images
from nnunet_selma.volumes.stated_names import distinct_names
from nnunet_selma.volumes.units import spacing_in_um

# what tifffile and the decoders behind it raise for a damaged file
DAMAGE = (tifffile.TiffFileError, OSError, ValueError, IndexError, KeyError, RuntimeError, TypeError, AttributeError)
_SIGNS_OF_DAMAGE = re.compile(
    r"invalid page offset|invalid offset to page|corrupted file|TiffTag (270|273|279|324|325) .*invalid value offset"
)
"""Warnings of tifffile about a file that breaks off; the tags are description, offsets and sizes of the voxels."""
_REDUCED = 1.5
"""A page that is smaller by this factor along both axes is a thumbnail, or a level of a pyramid."""


class PageLayout(NamedTuple):
    """The image of a TIFF file."""

    axes: str
    """Axes before y and x, in tifffile's letters."""
    shape: tuple[int, ...]
    """Length of each of these axes, then y and x."""
    dtype: np.dtype[Any]
    pages: tuple[int, ...]
    """Number of the page of each plane, in order; empty for planes that lie one behind another."""
    offset: int
    """Bytes before the first voxel, for planes that lie one behind another."""
    spacing_um_zyx: SpacingUm | None
    scenes: tuple[str, ...]
    """Names of the images in an OME-TIFF with several; empty otherwise."""
    channel_names: tuple[str, ...]
    """Names of the channels that OME-XML lists; empty unless all have one."""

    @property
    def lengths(self) -> dict[str, int]:
        """Letter of each axis before y and x to its length."""
        return dict(zip(self.axes, self.shape, strict=False))

    @property
    def times(self) -> int:
        """Number of time points; 1 where time is the only axis besides channels, as in stacks whose slices were saved as time points."""
        others = [name for name, length in self.lengths.items() if length > 1 and name not in "CT"]
        return self.lengths.get("T", 1) if others else 1


def page_layout(path: Path, scene: str | None = None) -> PageLayout:
    """Decide which pages of a file form its image, or the chosen one of several.

    Only pages of this file count, also where OME-XML names other files. Pages of equal size and type are joined to one stack, as programs
    write it page by page; thumbnails and levels of a pyramid are left out.

    Raises:
        SelmaError: no TIFF, cut short, several images and no choice, no such image, or pages that differ in size or type.
    """
    with _noticing_damage(path), tifffile.TiffFile(path, _multifile=False) as tif:
        scenes = _ome_images(tif)
        several = [image.name or f"image {number}" for number, image in enumerate(scenes)] if len(scenes) > 1 else []
        names = distinct_names(several)
        chosen = chosen_scene(path, scene, names)
        series = [scenes[chosen]] if names else _image_series(tif, path)
        first = series[0]
        numbers = [page.index for part in series for page in part.pages if page is not None]
        y_x = (first.keyframe.imagelength, first.keyframe.imagewidth)
        if first.keyframe.samplesperpixel != 1:
            raise SelmaError(
                f"{path}: is a colour image, grey values are needed; save one channel as a grey-value TIFF"
            )
        image = ome_image(_described(tif), numbers, path)
        axes, leading = _stated_axes(tif, first, image, path) if len(series) == 1 else ("Z", (len(numbers),))
        contiguous = len(series) == 1 and first.dataoffset is not None
        dtype = np.dtype(first.dtype)
        if contiguous:
            complete = first.dataoffset + prod((*leading, *y_x)) * dtype.itemsize <= tif.filehandle.size
            if not complete:
                raise cut_short(path)
            dtype = dtype.newbyteorder(tif.byteorder)
        elif len(numbers) < prod(leading):
            raise SelmaError(
                f"{path}: {len(numbers)} of {prod(leading)} pages are there, the file is cut short; copy it again"
            )
        return PageLayout(
            axes=axes,
            shape=(*leading, *y_x),
            dtype=dtype,
            pages=() if contiguous else tuple(numbers),
            offset=first.dataoffset if contiguous else 0,
            spacing_um_zyx=_spacing(tif, image),
            scenes=names,
            channel_names=image.channel_names if image else (),
        )


@contextmanager
def _noticing_damage(path: Path) -> Iterator[None]:
    """Turn tifffile's errors, and its warnings of a file that breaks off, into a `SelmaError`."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield
    except SelmaError:
        raise
    except DAMAGE as error:
        raise damaged_file(path) from error
    finally:
        logger.removeHandler(handler)
        broken = any(_SIGNS_OF_DAMAGE.search(message) for message in messages)
    if broken:
        raise cut_short(path)


def full_pages(tif: tifffile.TiffFile) -> int:
    """Number of pages that are no thumbnails of the first or largest one."""
    sizes = [page.shape[:2] for page in tif.pages]
    largest = max(sizes, key=prod)
    return sum(not _is_reduced(size, largest) for size in sizes)


def _is_reduced(size: Sequence[int], full: Sequence[int]) -> bool:
    """True for a page of the same proportions as a full one, and much smaller."""
    factors = [whole / max(edge, 1) for whole, edge in zip(full, size, strict=True)]
    return min(factors) >= _REDUCED and max(factors) <= 1.1 * min(factors)


def _size(series: Any) -> tuple[int, int]:
    """Height and width of the pages of a series, as tifffile groups them."""
    return series.keyframe.imagelength, series.keyframe.imagewidth


def _ome_images(tif: tifffile.TiffFile) -> list[Any]:
    """The images of an OME-TIFF without thumbnails; empty for other files."""
    series = list(tif.series) if tif.is_ome else []
    largest = max((_size(image) for image in series), key=prod, default=(0, 0))
    return [image for image in series if not _is_reduced(_size(image), largest)]


def _image_series(tif: tifffile.TiffFile, path: Path) -> list[Any]:
    """The series of pages (as tifffile groups them) that form the only image."""
    everything = list(tif.series)
    full = max(everything, key=lambda series: prod(_size(series)))
    equal = [s for s in everything if (_size(s), s.dtype) == (_size(full), full.dtype)]
    for series in everything:
        if series not in equal and not _is_reduced(_size(series), _size(full)):
            raise SelmaError(
                f"{path}: page {series.keyframe.index + 1} is {by_times(_size(series))} (y, x) of {series.dtype}, other pages are "
                f"{by_times(_size(full))} of {full.dtype}; save the stack again with equal pages"
            )
    return equal


def _described(tif: tifffile.TiffFile) -> list[OmeImage]:
    """The images in this file that OME-XML describes; empty for other files."""
    return ome_images(tif.ome_metadata, tif.filename, len(tif.pages)) if tif.is_ome and tif.ome_metadata else []


def _stated_axes(
    tif: tifffile.TiffFile, series: Any, image: OmeImage | None, path: Path
) -> tuple[str, tuple[int, ...]]:
    """Axes before y and x, and their lengths; compared with what ImageJ and OME say about the file."""
    dimensions = dict(zip(series.axes, series.shape, strict=True))
    axes = "".join(axis for axis in series.axes if axis not in "YXS")
    leading = tuple(int(dimensions[axis]) for axis in axes)
    stated = int((tif.imagej_metadata or {}).get("images", 1))
    if image is not None and series.kind != "ome":
        if prod(image.lengths) == prod(leading):
            return image.order, image.lengths
        stated = prod(image.lengths) if image.files <= {tif.filename} else 1
    if stated > prod(leading):
        raise SelmaError(f"{path}: {prod(leading)} of {stated} pages are there, the file is cut short; copy it again")
    return axes, leading


class TiffPages(Volume):
    """One TIFF file of many pages, also OME-TIFF and ImageJ; a page is read at a time, uncompressed files by memory map.

    Raises:
        SelmaError: not a TIFF, colour, pages that do not form one image, or several scenes, channels or time points and no choice.
    """

    read_in_threads = True

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path = path
        check_level(path, choice.level, 1)
        layout = page_layout(path, choice.scene)
        *leading, height, width = layout.shape
        channel = chosen_channel(path, choice.channel, layout.lengths.get("C", 1))
        time = chosen_time(path, choice.time, layout.times)
        chosen: list[int | slice] = []
        for name, length in zip(layout.axes, leading, strict=True):
            if name == "C" or (name == "T" and layout.times > 1):
                chosen.append(channel if name == "C" else time)
            elif length == 1 and name in "CTSHVLPMRE":
                chosen.append(0)
            else:
                chosen.append(slice(None))
        depth = [
            length for length, choice in zip(leading, chosen, strict=True) if isinstance(choice, slice) and length > 1
        ]
        if len(depth) > 1:
            raise SelmaError(
                f"{path}: has the axes {layout.axes}YX with {layout.shape} entries; one three-dimensional image is needed"
            )
        self.shape = (depth[0] if depth else 1, height, width)
        self.dtype = layout.dtype
        self.spacing_um_zyx = layout.spacing_um_zyx
        self.plane_wise = bool(layout.pages)
        self._layout, self._chosen = layout, tuple(chosen)
        planes = np.arange(prod(leading)).reshape(leading)[self._chosen].reshape(-1)
        self._pages = [layout.pages[plane] for plane in planes] if layout.pages else []

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        try:
            if not self._pages:
                layout = self._layout
                stored = np.memmap(self.path, layout.dtype, "r", layout.offset, layout.shape)
                return np.array(stored[self._chosen].reshape(self.shape)[z, y, x])
            box = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
            with tifffile.TiffFile(self.path, _multifile=False) as tif:
                for plane, page in zip(box, self._pages[z], strict=True):
                    plane[...] = tif.pages[page].asarray().reshape(self.shape[1:])[y, x]
        except DAMAGE as error:
            raise cut_short(self.path) from error
        return box


def tiff_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The scenes, channels and time points of a TIFF file; of a file with several scenes, the channels of the chosen or first one.

    Raises:
        SelmaError: no TIFF, cut short, no such scene, or pages that do not form one image.
    """
    with _noticing_damage(path), tifffile.TiffFile(path, _multifile=False) as tif:
        several = len(_ome_images(tif)) > 1
    layout = page_layout(path, scene or ("0" if several else None))
    channels, names = layout.lengths.get("C", 1), layout.channel_names
    return Inventory(
        scenes=layout.scenes,
        channels=channels,
        channel_names=names if len(names) == channels else (),
        times=layout.times,
    )


def _spacing(tif: tifffile.TiffFile, image: OmeImage | None) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) from OME or ImageJ metadata; None unless all three axes are stated in a unit of length."""
    if tif.is_ome and tif.ome_metadata:
        return image.spacing_um_zyx if image else None
    metadata: dict[str, Any] = tif.imagej_metadata or {}
    tags = tif.pages.first.tags
    resolution = [tags[f"{axis}Resolution"].value for axis in "YX" if f"{axis}Resolution" in tags]
    if "spacing" not in metadata or len(resolution) < 2 or not all(count for count, _ in resolution):
        return None
    unit = metadata.get("unit")
    units = [metadata.get("zunit", unit), metadata.get("yunit", unit), unit]
    try:
        depth = abs(float(metadata["spacing"]))  # ImageJ counts some stacks from the top
    except (TypeError, ValueError):
        return None
    return spacing_in_um([depth, *(length / count for count, length in resolution)], units)

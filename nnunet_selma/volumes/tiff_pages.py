"""TIFF files of many pages: the pages that form the image, and a volume that reads them."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, Volume, by_times, chosen_channel, cut_short, damaged_file
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


def page_layout(path: Path) -> PageLayout:
    """Decide which pages of a file form its image.

    Only pages of this file count, also where OME-XML names other files. Pages of equal size and type are joined to one stack, as programs
    write it page by page; thumbnails and levels of a pyramid are left out.

    Raises:
        SelmaError: no TIFF, cut short, several images, or pages that differ in size or type.
    """
    with _noticing_damage(path), tifffile.TiffFile(path, _multifile=False) as tif:
        series = _image_series(tif, path)
        first = series[0]
        numbers = [page.index for part in series for page in part.pages if page is not None]
        y_x = (first.keyframe.imagelength, first.keyframe.imagewidth)
        if first.keyframe.samplesperpixel != 1:
            raise SelmaError(
                f"{path}: is a colour image, grey values are needed; save one channel as a grey-value TIFF"
            )
        axes, leading = _stated_axes(tif, first, path) if len(series) == 1 else ("Z", (len(numbers),))
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
            spacing_um_zyx=_spacing(tif),
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


def _image_series(tif: tifffile.TiffFile, path: Path) -> list[Any]:
    """The series of pages (as tifffile groups them) that form the image."""

    def size(series: Any) -> tuple[int, int]:
        return series.keyframe.imagelength, series.keyframe.imagewidth

    everything = list(tif.series)
    full = max(everything, key=lambda series: prod(size(series)))
    equal = [s for s in everything if (size(s), s.dtype) == (size(full), full.dtype)]
    for series in everything:
        if series not in equal and not _is_reduced(size(series), size(full)):
            raise SelmaError(
                f"{path}: page {series.keyframe.index + 1} is {by_times(size(series))} (y, x) of {series.dtype}, other pages are "
                f"{by_times(size(full))} of {full.dtype}; save the stack again with equal pages"
            )
    if len(equal) > 1 and tif.is_ome:
        names = ", ".join(repr(series.name) for series in equal)
        raise SelmaError(f"{path}: holds {len(equal)} images ({names}); save each as a file of its own")
    return equal


def _stated_axes(tif: tifffile.TiffFile, series: Any, path: Path) -> tuple[str, tuple[int, ...]]:
    """Axes before y and x, and their lengths; compared with what ImageJ and OME say about the file."""
    dimensions = dict(zip(series.axes, series.shape, strict=True))
    axes = "".join(axis for axis in series.axes if axis not in "YXS")
    leading = tuple(int(dimensions[axis]) for axis in axes)
    stated = int((tif.imagej_metadata or {}).get("images", 1))
    image = _ome_image(tif.ome_metadata, tif.filename) if tif.is_ome and tif.ome_metadata else None
    if image is not None and series.kind != "ome":
        order = image.get("DimensionOrder", "XYZCT")[:1:-1]
        lengths = tuple(int(image.get(f"Size{axis}", 1)) for axis in order)
        files = {name for element in image.iter() if (name := element.get("FileName"))}
        if prod(lengths) == prod(leading):
            return order, lengths
        stated = prod(lengths) if files <= {tif.filename} else 1
    if stated > prod(leading):
        raise SelmaError(f"{path}: {prod(leading)} of {stated} pages are there, the file is cut short; copy it again")
    return axes, leading


class TiffPages(Volume):
    """One TIFF file of many pages, also OME-TIFF and ImageJ; a page is read at a time, uncompressed files by memory map.

    Raises:
        SelmaError: not a TIFF, colour, pages that do not form one image, or several channels or time points and no choice.
    """

    read_in_threads = True

    def __init__(self, path: Path, *, channel: int | None = None) -> None:
        self.path = path
        layout = page_layout(path)
        *leading, height, width = layout.shape
        chosen: list[int | slice] = []
        for name, length in zip(layout.axes, leading, strict=True):
            if name == "C" and length > 1:
                chosen.append(chosen_channel(path, channel, length))
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


def tiff_channels(path: Path) -> int:
    """Channels of a TIFF file of many pages; 1 where the file states none, or cannot be read."""
    try:
        layout = page_layout(path)
    except SelmaError:  # opening the file names it
        return 1
    return dict(zip(layout.axes, layout.shape, strict=False)).get("C", 1)


def _spacing(tif: tifffile.TiffFile) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) from OME or ImageJ metadata; None unless all three axes are stated in a unit of length."""
    if tif.is_ome and tif.ome_metadata:
        return ome_spacing(tif.ome_metadata, tif.filename)
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


def ome_spacing(xml: str, file_name: str) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) in OME-XML, of the image that lies in this file.

    A size without unit is in µm, as OME defines; a size that is no number is none.
    """
    pixels = _ome_image(xml, file_name)
    if pixels is None:
        return None
    try:
        sizes = [float(pixels.get(f"PhysicalSize{axis}", "").replace(",", ".")) for axis in "ZYX"]
    except ValueError:
        return None
    return spacing_in_um(sizes, [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"])


def _ome_image(xml: str, file_name: str) -> ElementTree.Element | None:
    """The `Pixels` of the image in OME-XML that names this file, or of the first image; None if the XML is damaged."""
    try:
        # the text is decoded already, whatever encoding its declaration names
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", xml, flags=re.DOTALL).encode())
    except ElementTree.ParseError:
        return None
    images = [element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"]
    in_file = [image for image in images if any(e.get("FileName") == file_name for e in image.iter())]
    return next(iter(in_file or images), None)

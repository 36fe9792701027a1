"""TIFF: folders with one slice a file; files with many pages are in `tiff_pages`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume
from nnunet_selma.volumes.choice import chosen_channel
from nnunet_selma.volumes.ome_xml import ome_images
from nnunet_selma.volumes.progressions import Progression
from nnunet_selma.volumes.slices import most_interpolated, slice_numbers
from nnunet_selma.volumes.tiff_pages import DAMAGE, full_pages

_MOST_CHANNELS = 4
"""Pages up to which a file may be a slice with channels."""
_MOST_LEVELS = 16
"""Pages up to which a file may be one image with thumbnails."""


def is_tiff(path: Path) -> bool:
    """True for the file endings of TIFF."""
    return path.name.lower().endswith((".tif", ".tiff"))


def has_many_pages(file: Path) -> bool:
    """True for a TIFF that is a volume by itself; False for a damaged file, which opening its stack will name."""
    try:
        with tifffile.TiffFile(file, is_ome=False) as tif:
            # ImageJ stores a large stack behind one page
            return full_pages(tif) > 1 or (tif.is_imagej and "Z" in tif.series[0].axes)
    except DAMAGE:
        return False


def tiff_slices(folder: Path) -> list[Path]:
    """The TIFF files of a folder without hidden ones (macOS leaves `._name.tif` behind), in no particular order."""
    return [p for p in folder.iterdir() if is_tiff(p) and not p.name.startswith(".") and p.is_file()]


def is_stack_of_slices(folder: Path, slice_pattern: str | None = None) -> bool:
    """True if the TIFF files of a folder are slices of one stack, False if they are volumes by themselves.

    Slices hold one page each, or equally few, their channels. Most files count, so that opening the stack can name the others; headers are
    read until more than half of the files agree.
    """
    files = tiff_slices(folder)
    planes = _usual_planes(files)
    return planes == 1 or _are_channels(files, planes, slice_pattern)


def slice_channels(folder: Path, slice_pattern: str | None = None) -> int:
    """Number of channels of a folder of slices; 1 for a folder of volumes."""
    files = tiff_slices(folder)
    planes = _usual_planes(files)
    return planes if _are_channels(files, planes, slice_pattern) else 1


def _usual_planes(files: Sequence[Path]) -> int:
    """Number of pages that more than half of the files hold; the largest number where they do not agree."""
    counts: Counter[int] = Counter()
    for file in files:
        try:
            with tifffile.TiffFile(file, is_ome=False) as tif:
                planes = _planes(tif)
        except DAMAGE:
            planes = 1  # opening the stack names the file
        counts[planes] += 1
        if counts[planes] * 2 > len(files):
            return planes
    return max(counts, default=1)


def _are_channels(files: Sequence[Path], planes: int, slice_pattern: str | None) -> bool:
    """True if the pages of numbered files are channels: few, fewer than the files, and not called slices or time points by the first file."""
    if not 1 < planes <= _MOST_CHANNELS or len(files) <= planes:
        return False
    try:
        slice_numbers([file.name for file in files], slice_pattern)
        with tifffile.TiffFile(min(files), _multifile=False) as tif:
            series = tif.series[0]
            stated = dict(zip(series.axes, series.shape, strict=True))
    except SelmaError:
        return False
    except DAMAGE:  # opening the stack names the file
        return True
    return planes not in (stated.get("Z"), stated.get("T"))


def _planes(tif: tifffile.TiffFile) -> int:
    """Number of full pages of a file; ImageJ stores large stacks behind a single page."""
    pages = len(tif.pages)
    if pages == 1:
        return prod(tif.series[0].shape) // prod(tif.pages.first.shape) if tif.is_imagej else 1
    return full_pages(tif) if pages <= _MOST_LEVELS else pages


def _image_page(tif: tifffile.TiffFile) -> tifffile.TiffPage | tifffile.TiffFrame:
    """The largest page of a file, the others being thumbnails."""
    return max(tif.pages, key=lambda page: prod(page.shape)) if len(tif.pages) > 1 else tif.pages.first


class _Header(NamedTuple):
    """The facts in which all slices of a stack agree."""

    planes: int
    height: int
    width: int
    dtype: str

    def __str__(self) -> str:
        pages = f"{self.planes} pages of " if self.planes > 1 else ""
        return f"{pages}{self.height} × {self.width} (y, x) of {np.dtype(self.dtype).name}"


class TiffSlices(Volume):
    """A folder with one slice a file, ordered by number; the headers of all slices are checked at once.

    Files of equally few pages hold a channel on each page.

    Raises:
        SelmaError: names the slice that is missing, damaged, in colour, or of another shape or dtype than the rest; with
            `interpolate` only if more slices are bad than may be interpolated (`most_interpolated`). Also for numbers that give no clear
            order, and for a channel that is not there or was not chosen.
    """

    slices_apart = True
    read_in_threads = True

    def __init__(
        self, path: Path, *, channel: int | None = None, interpolate: bool = False, slice_pattern: str | None = None
    ) -> None:
        self.path, self._interpolate = path, interpolate
        files = sorted(tiff_slices(path))
        try:
            numbering = slice_numbers([file.name for file in files], slice_pattern)
            numbered = dict(zip(numbering.numbers, files, strict=True))
            missing = _missing_numbers(numbering.progression, numbered, interpolate=interpolate)
        except SelmaError as error:
            raise SelmaError(f"{path}: {error}", option=error.option) from error
        self.order = numbering.order
        numbers = sorted([*numbered, *missing])
        self._files: list[Path | None] = [numbered.get(n) for n in numbers]
        self._names = [numbered[n].name if n in numbered else f"number {n} (missing)" for n in numbers]
        self._bad = [file is None for file in self._files]
        usual = self._usual_header()
        if usual.planes > 1 and not _are_channels(files, usual.planes, slice_pattern):
            raise SelmaError(f"{files[0]}: holds {usual.planes} pages, a folder of slices has one a file")
        chosen = chosen_channel(path, channel, usual.planes)
        self._channel = chosen if usual.planes > 1 else None
        self.shape: ShapeZYX = (len(numbers), usual.height, usual.width)
        self.dtype = np.dtype(usual.dtype)
        self.spacing_um_zyx = _slice_spacing(next(file for file in self._files if file is not None))

    @property
    def repaired(self) -> tuple[str, ...]:
        """Names of the slices interpolated so far; damage behind a header is noticed when the slice is read."""
        return tuple(name for name, bad in zip(self._names, self._bad, strict=True) if bad)

    def _usual_header(self) -> _Header:
        """The header of most slices; raises `SelmaError`, or notes as bad, what differs."""
        headers = [None if file is None else _slice_header(file) for file in self._files]
        good = Counter(header for header in headers if isinstance(header, _Header))
        if not good:
            raise SelmaError(
                f"{self.path}: none of the {len(headers)} slices can be read ({next(h for h in headers if h)})"
            )
        usual = good.most_common(1)[0][0]
        different = [index for index, header in enumerate(headers) if header not in (None, usual)]
        for index in different:
            self._bad[index] = True
        bad, few = sum(self._bad), sum(self._bad) <= most_interpolated(len(self._bad))
        if different and not (few and self._interpolate):
            header = headers[different[0]]
            fault = f"is {header}, the other slices are {usual}" if isinstance(header, _Header) else header
            remedy = "replace it" if few else f"replace all bad slices, {bad} of {len(self._bad)}"
            raise SelmaError(
                f"{self._files[different[0]]}: {fault}; {remedy}",
                option="add --on-bad-slice interpolate" if few else "",
            )
        return usual

    def _plane(self, index: int) -> Array | None:
        """One whole slice (y, x), or None if it is bad and may be interpolated."""
        file = self._files[index]
        if file is None or self._bad[index]:
            return None
        try:
            # an OME-TIFF slice may describe its whole stack
            with tifffile.TiffFile(file, is_ome=False) as tif:
                page = _image_page(tif) if self._channel is None else tif.pages[self._channel]
                return np.asarray(page.asarray()).reshape(self.shape[1:])
        except DAMAGE as error:
            if not self._interpolate:
                raise SelmaError(
                    f"{file}: the slice is cut short or damaged; replace it", option="add --on-bad-slice interpolate"
                ) from error
            self._bad[index] = True
            if sum(self._bad) > most_interpolated(len(self._bad)):
                raise SelmaError(
                    f"{file}: is the last of {sum(self._bad)} damaged slices of {len(self._bad)}, too many to interpolate; replace them"
                ) from error
            return None

    def _interpolated(self, index: int) -> Array:
        """The mean of the nearest readable neighbours on both sides."""
        sides = (range(index - 1, -1, -1), range(index + 1, self.shape[0]))
        nearest = [next((plane for i in side if (plane := self._plane(i)) is not None), None) for side in sides]
        planes = [plane.astype(np.float64) for plane in nearest if plane is not None]
        if not planes:
            raise SelmaError(f"{self.path}: no slice can be read")
        mean: Array = np.mean(planes, axis=0)
        if self.dtype.kind in "ui":
            mean = np.rint(mean)
        return mean.astype(self.dtype)

    def _good_plane(self, index: int) -> Array:
        plane = self._plane(index)
        return self._interpolated(index) if plane is None else plane

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        if z.stop - z.start == 1:
            return self._good_plane(z.start)[None, y, x]  # no copy: a slice of a whole brain is tens of megabytes
        box = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        for i, index in enumerate(range(z.start, z.stop)):
            box[i] = self._good_plane(index)[y, x]
        return box


def _missing_numbers(row: Progression, numbered: Mapping[Decimal, Path], *, interpolate: bool) -> list[Decimal]:
    """The slice numbers to interpolate.

    Raises:
        SelmaError: numbers are missing and are not to be interpolated, or too many are.
    """
    if not row.missing_count:
        return []
    gap = max(range(len(row.absent)), key=row.absent.__getitem__)
    if row.missing_count > len(numbered):
        raise SelmaError(
            f"the slice numbers jump after {row.numbers[gap]} ({numbered[row.numbers[gap]].name}); a file of another stack may lie in the "
            "folder, move it out"
        )
    if row.step is None:
        before, after = (numbered[number].name for number in row.numbers[gap : gap + 2])
        raise SelmaError(
            f"the slice numbers are not in equal steps, and {before} and {after} are far apart; add the slices between them, or number "
            "the files again if the number counts something else"
        )
    few = row.missing_count <= most_interpolated(len(numbered) + row.missing_count)
    if interpolate and few:
        return row.missing()
    before = numbered[row.numbers[next(i for i, count in enumerate(row.absent) if count)]].name
    raise SelmaError(
        f"{counted(row.missing_count, 'slice number')} missing, the first after {before} (number {row.missing()[0]}); add what is missing"
        + ("" if few else "; they are too many to interpolate, or the number counts something else"),
        option="add --on-bad-slice interpolate" if few else "",
    )


def _slice_header(file: Path) -> _Header | str:
    """The header of a slice, or the reason why it is none, for a sentence."""
    try:
        with tifffile.TiffFile(file, is_ome=False) as tif:
            planes = _planes(tif)
            page = _image_page(tif) if planes == 1 else tif.pages.first
            few = 1 < planes <= _MOST_CHANNELS
            equal = not few or {(p.shape, p.dtype) for p in tif.pages} == {(page.shape, page.dtype)}
            shape, dtype = tuple(page.shape), page.dtype
    except DAMAGE:
        return "cannot be read, the file is damaged or no TIFF"
    if planes > _MOST_CHANNELS:
        return f"holds {planes} pages, a folder of slices has one a file"
    if getattr(page, "samplesperpixel", 1) != 1 or len(shape) != 2:
        return "is a colour image, grey values are needed"
    if dtype is None:
        return "has a pixel type that cannot be read"
    if not equal:
        return f"holds {planes} pages that differ in size or type"
    return _Header(planes, shape[0], shape[1], np.dtype(dtype).str)


def _slice_spacing(file: Path) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) of a stack from the OME-XML of a slice, as LaVision's microscopes write it; None without it."""
    try:
        with tifffile.TiffFile(file, is_ome=False) as tif:
            xml = tif.pages.first.description
            images = ome_images(xml, file.name, len(tif.pages)) if "<OME" in xml else []
        return images[0].spacing_um_zyx if images else None
    except DAMAGE:
        return None

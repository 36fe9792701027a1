"""TIFF: folders with one slice a file; files with many pages are in `tiff_pages`."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume
from nnunet_selma.volumes.slices import missing_numbers, slice_numbers
from nnunet_selma.volumes.tiff_pages import DAMAGE, full_pages, ome_spacing


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


class TiffSlices(Volume):
    """A folder with one two-dimensional slice a file, ordered by number; the headers of all slices are checked at once.

    Raises:
        SelmaError: names the slice that is missing, damaged, in colour, or of another shape or dtype than the rest; with
            `interpolate` only if fewer than half of the slices are good.
    """

    slices_apart = True

    def __init__(self, path: Path, *, interpolate: bool = False) -> None:
        self.path, self._interpolate = path, interpolate
        files = tiff_slices(path)
        try:
            numbered = dict(sorted(zip(slice_numbers([file.name for file in files]), files, strict=True)))
            missing = missing_numbers(list(numbered))
        except SelmaError as error:
            raise SelmaError(f"{path}: {error}") from error
        if missing and not interpolate:
            before = numbered[max(n for n in numbered if n < missing[0])]
            raise SelmaError(
                f"{path}: {counted(len(missing), 'slice')} missing, the first after {before.name} (number {missing[0]}); "
                "add them",
                option="add --on-bad-slice interpolate",
            )
        numbers = sorted([*numbered, *missing])
        self._files: list[Path | None] = [numbered.get(n) for n in numbers]
        self._names = [numbered[n].name if n in numbered else f"number {n} (missing)" for n in numbers]
        self._bad = [file is None for file in self._files]
        self.shape, self.dtype = self._usual_header()
        self.spacing_um_zyx = _slice_spacing(next(file for file in self._files if file is not None))

    @property
    def repaired(self) -> tuple[str, ...]:
        """Names of the slices interpolated so far; damage behind a header is noticed when the slice is read."""
        return tuple(name for name, bad in zip(self._names, self._bad, strict=True) if bad)

    def _usual_header(self) -> tuple[ShapeZYX, np.dtype[Any]]:
        """Shape and dtype of the volume, those of most slices; raises `SelmaError`, or notes as bad, what differs."""
        headers = [None if file is None else _slice_header(file) for file in self._files]
        good = Counter(header for header in headers if isinstance(header, tuple))
        if not good:
            raise SelmaError(
                f"{self.path}: none of the {len(headers)} slices can be read ({next(h for h in headers if h)})"
            )
        usual = good.most_common(1)[0][0]
        for index, header in enumerate(headers):
            if header is None or header == usual:
                continue
            if not self._interpolate:
                if isinstance(header, str):
                    raise SelmaError(
                        f"{self._files[index]}: {header}; replace it", option="add --on-bad-slice interpolate"
                    )
                raise SelmaError(
                    f"{self._files[index]}: is {_described(header)}, the other slices are {_described(usual)}; "
                    "replace it",
                    option="add --on-bad-slice interpolate",
                )
            self._bad[index] = True
        if sum(self._bad) * 2 > len(self._bad):
            raise SelmaError(
                f"{self.path}: {sum(self._bad)} of {len(self._bad)} slices are bad, too many to interpolate"
            )
        (height, width), dtype = usual
        return (len(self._files), height, width), np.dtype(dtype)

    def _plane(self, index: int) -> Array | None:
        """One whole slice (y, x), or None if it is bad and may be interpolated."""
        file = self._files[index]
        if file is None or self._bad[index]:
            return None
        try:
            # an OME-TIFF slice may describe its whole stack; the slice itself is the first page
            with tifffile.TiffFile(file, is_ome=False) as tif:
                return np.asarray(tif.pages.first.asarray()).reshape(self.shape[1:])
        except DAMAGE as error:
            if not self._interpolate:
                raise SelmaError(
                    f"{file}: the slice is cut short or damaged; replace it", option="add --on-bad-slice interpolate"
                ) from error
            self._bad[index] = True
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


def _slice_header(file: Path) -> tuple[tuple[int, int], str] | str:
    """((height, width), dtype) of a slice, or the reason why it is none, for a sentence; reads the header only."""
    try:
        with tifffile.TiffFile(file, is_ome=False) as tif:
            page, pages = tif.pages.first, full_pages(tif) if len(tif.pages) > 1 else 1
            shape, dtype = tuple(page.shape), page.dtype
    except DAMAGE:
        return "cannot be read, the file is damaged or no TIFF"
    if pages > 1:
        return f"holds {pages} pages, a folder of slices has one a file"
    if getattr(page, "samplesperpixel", 1) != 1 or len(shape) != 2:
        return "is a colour image, grey values are needed"
    if dtype is None:
        return "has a pixel type that cannot be read"
    return (shape[0], shape[1]), np.dtype(dtype).str


def _slice_spacing(file: Path) -> SpacingUm | None:
    """Voxel size in µm (z, y, x) of a stack from the OME-XML of a slice, as LaVision's microscopes write it; None without it."""
    try:
        with tifffile.TiffFile(file, is_ome=False) as tif:
            xml = tif.pages.first.description
        return ome_spacing(xml, file.name) if "<OME" in xml else None
    except DAMAGE:
        return None


def _described(header: tuple[tuple[int, int], str]) -> str:
    (height, width), dtype = header
    return f"{height} × {width} (y, x) of {np.dtype(dtype).name}"


def is_stack_of_slices(folder: Path) -> bool:
    """True for a folder whose TIFF files hold a slice each; the first file decides."""
    return not any(has_many_pages(file) for file in sorted(tiff_slices(folder))[:1])

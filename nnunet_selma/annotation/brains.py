"""The brains that cubes are proposed from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.conversion.checks import MASK_BY_VALUES, check_equal_shapes, check_several_slices, is_mask
from nnunet_selma.conversion.walk import is_cube, passed_by, walk
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.running.fingerprints import fingerprint
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, check_exists, open_volume, parts_of, stem
from nnunet_selma.volumes.base import Array, ShapeZYX, check_finite_voxels


@dataclass(frozen=True, kw_only=True)
class Brain:
    """A whole brain, opened."""

    name: str
    """Name, different for every brain of a proposal."""
    path: Path
    channels: tuple[Volume, ...]
    """The chosen channels, at the chosen level."""
    spacing_um_zyx: SpacingUm
    """Voxel size of the level that is read, µm."""
    placed_by_spacing: bool
    """True if the user gave the voxel size, so that a matrix in the file does not count."""

    @property
    def first(self) -> Volume:
        """The channel that decides about tissue and structure."""
        return self.channels[0]

    @property
    def shape(self) -> ShapeZYX:
        """Shape, voxels."""
        return self.first.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type in which cubes are kept: that of the files if it is an integer of at most 32 bits, else float32."""
        dtype = np.result_type(*(volume.dtype for volume in self.channels))
        if dtype == np.bool_:
            return np.dtype(np.uint8)
        native = dtype.newbyteorder("=")
        return native if native.kind in "ui" and native.itemsize <= 4 else np.dtype(np.float32)

    def read(self, box: Box) -> Array:
        """The voxels of a box, (c, z, y, x); raises `SelmaError` for NaN and infinite values."""
        return self._checked(np.stack([volume.read(*box) for volume in self.channels]))

    def read_boxes(self, boxes: Sequence[Box], *, only_first: bool = False) -> Iterator[tuple[int, Array]]:
        """Yield the number and the voxels (c, z, y, x) of every box; each slice is read once for boxes with the same first and last slice.

        Memory: the boxes of one layer, and a slice.

        Args:
            boxes: the boxes.
            only_first: read the first channel only.
        """
        volumes = self.channels[:1] if only_first else self.channels
        order = sorted(range(len(boxes)), key=lambda number: _bounds(boxes[number]))
        for _, numbers in groupby(order, key=lambda number: _bounds(boxes[number])[:2]):
            layer = list(numbers)
            if len(layer) == 1 or not self.first.plane_wise:
                for number in layer:
                    yield number, self._checked(np.stack([volume.read(*boxes[number]) for volume in volumes]))
                continue
            cubes = {number: np.empty((len(volumes), *_shape(boxes[number])), self.dtype) for number in layer}
            z, y, x = boxes[layer[0]][0], *(_hull([boxes[number][axis] for number in layer]) for axis in (1, 2))
            for channel, volume in enumerate(volumes):
                for plane in range(z.start, z.stop):
                    pixels = volume.read(slice(plane, plane + 1), y, x)[0]
                    for number, cube in cubes.items():
                        _, rows, columns = boxes[number]
                        cube[channel, plane - z.start] = pixels[
                            rows.start - y.start : rows.stop - y.start, columns.start - x.start : columns.stop - x.start
                        ]
            for number in layer:
                yield number, self._checked(cubes.pop(number))

    def _checked(self, voxels: Array) -> Array:
        check_finite_voxels(voxels, str(self.path))
        return voxels.astype(self.dtype, copy=False)


def _bounds(box: Box) -> tuple[int, ...]:
    return tuple(bound for bounds in box for bound in (bounds.start, bounds.stop))


def _shape(box: Box) -> ShapeZYX:
    z, y, x = (bounds.stop - bounds.start for bounds in box)
    return z, y, x


def _hull(bounds: Sequence[slice]) -> slice:
    return slice(min(b.start for b in bounds), max(b.stop for b in bounds))


def open_brains(
    sources: Sequence[Path],
    settings: ProposalSettings,
    *,
    leave_out: Path | None = None,
    progress: Progress[Any] = silent,
) -> tuple[list[Brain], list[str]]:
    """Open the brains of files and folders of brains, and say what was passed by.

    Args:
        sources: files, or folders below which every volume is a brain.
        settings: options.
        leave_out: folder whose content is no brain: that of the proposal.
        progress: shows the brains.

    Returns:
        The brains, and sentences about what is in the folders and is no brain.

    Raises:
        SelmaError: a path does not exist, a folder leaves a question, there is no brain, a file cannot be opened, states no voxel size, or
            holds a mask; or two brains have one name.
    """
    paths: dict[Path, tuple[str, ...]] = {}
    sentences = []
    for source in sources:
        check_exists(source)
        entries = [entry for entry in walk(source, settings.slice_pattern) if not _is_cube(entry.path, leave_out)]
        question = next((entry for entry in entries if entry.fate == "question"), None)
        if question is not None:
            raise SelmaError(question.reason)
        volumes = [entry.path for entry in entries if entry.fate == "volume"]
        if not volumes:
            reasons = "; ".join(map(str, passed_by(entries))) or "give a volume of a format in docs/your-data.md"
            raise SelmaError(f"{source}: holds no brain; {reasons}")
        sentences += [f"passed by: {group}" for group in passed_by(entries)]
        for path in volumes:
            inside = path.relative_to(source).parts[:-1] if path != source else ()
            paths.setdefault(path.resolve(), (*inside, stem(path)))
    names = _names(paths)
    return [_open(path, names[path], settings) for path in progress(list(paths), "opening brains")], sentences


def _is_cube(path: Path, leave_out: Path | None) -> bool:
    """True for a file in a folder of a cube, and for everything below the folder that is left out."""
    within = leave_out is not None and leave_out.resolve() in path.resolve().parents
    return within or is_cube(path.parent)


def _names(paths: dict[Path, tuple[str, ...]]) -> dict[Path, str]:
    """Name of each path: the last part that tells it from the others, or all parts."""
    short = [parts[-1] for parts in paths.values()]
    named = {path: parts[-1] if short.count(parts[-1]) == 1 else "-".join(parts) for path, parts in paths.items()}
    for name in named.values():
        same = [path for path in named if named[path] == name]
        if len(same) > 1:
            raise SelmaError(
                f"{same[0]} and {same[1]} would both be named {name}; rename one, or give the folder above both"
            )
    return named


def _open(path: Path, name: str, settings: ProposalSettings) -> Brain:
    volumes = tuple(
        open_volume(
            path,
            scene=settings.scene,
            channel=channel,
            time=settings.time,
            level=settings.level,
            on_bad_slice=settings.on_bad_slice,
            slice_pattern=settings.slice_pattern,
        )
        for channel in settings.channels or (None,)
    )
    check_several_slices(volumes[0])
    check_equal_shapes(volumes, "choose --channel")
    if is_mask(volumes[0]):
        raise SelmaError(f"{path}: {MASK_BY_VALUES}; give the image")
    given = settings.spacing_um_zyx
    spacing = volumes[0].spacing_um_zyx
    if given is not None:
        z, y, x = (edge * factor for edge, factor in zip(given, volumes[0].level_factor_zyx, strict=True))
        spacing = z, y, x
    if spacing is None:
        raise SelmaError(f"{path}: does not state its voxel size; give it with --spacing Z,Y,X in µm")
    return Brain(name=name, path=path, channels=volumes, spacing_um_zyx=spacing, placed_by_spacing=given is not None)


def brain_fingerprint(path: Path, scene: str | None) -> str:
    """A hash by which a later run notices that the file was changed."""
    return fingerprint(*parts_of(path, scene))

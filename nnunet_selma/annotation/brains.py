"""The brains that cubes are proposed from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.annotation.brain_files import BrainFiles, find_brains
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.conversion.checks import MASK_BY_VALUES, check_equal_shapes, check_several_slices, is_mask
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.running.fingerprints import fingerprint
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, open_volume, parts_of
from nnunet_selma.volumes.base import Array, ShapeZYX, check_finite_voxels
from nnunet_selma.volumes.orientation import placement


@dataclass(frozen=True, kw_only=True)
class Brain:
    """A whole brain, opened."""

    name: str
    """Name, different for every brain of a proposal."""
    files: tuple[Path, ...]
    """The file that holds all channels, or a file for each, in the order of their numbers; also of channels that are not chosen."""
    channels: tuple[Volume, ...]
    """The chosen channels, at the chosen level."""
    spacing_um_zyx: SpacingUm
    """Voxel size of the level that is read, µm."""
    placed_by_spacing: bool
    """True if the user gave the voxel size, so that a matrix in the file does not count."""

    @property
    def path(self) -> Path:
        """The first file, which stands for the brain."""
        return self.files[0]

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
        for volume, channel in zip(self.channels, voxels, strict=False):
            check_finite_voxels(channel, str(volume.path))
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
    """Open the brains of files and folders of brains, and say what was passed by, and which files are channels of one brain.

    Args:
        sources: files, or folders below which every volume is a brain, or a channel of a brain as its name tells.
        settings: options.
        leave_out: folder whose content is no brain: that of the proposal.
        progress: shows the brains.

    Returns:
        The brains, and sentences about what is in the folders and is no brain, and about files that are channels of one brain.

    Raises:
        SelmaError: a path does not exist, a folder leaves a question, there is no brain, a file cannot be opened, states no voxel size, or
            holds a mask; channels do not belong together, or their names do not tell whether they are channels; or two brains have one name.
    """
    brain_files, sentences = find_brains(sources, settings, leave_out)
    brains = [_open(files, settings) for files in progress(brain_files, "opening brains")]
    _check_equal_counts(brains)
    together = (files.sentence(settings.channels) for files in brain_files)
    return brains, [*sentences, *filter(None, together)]


def _check_equal_counts(brains: Sequence[Brain]) -> None:
    """Raise `SelmaError` if brains differ in the number of channels, from which no dataset could be made."""
    first = brains[0]
    for brain in brains:
        if len(brain.channels) != len(first.channels):
            raise SelmaError(
                f"{brain.name} has {counted(len(brain.channels), 'channel')}, and {first.name} {len(first.channels)}; choose those that all brains "
                "have with --channel"
            )


def _open(files: BrainFiles, settings: ProposalSettings) -> Brain:
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
        for path, channel in files.chosen(settings.channels)
    )
    for volume in volumes:
        check_several_slices(volume)
    check_equal_shapes(volumes, "choose --channel" + ", or rename them if they are brains" * (len(files.files) > 1))
    for volume in volumes:
        _check_same_place(volume, volumes[0])
        if is_mask(volume):
            raise SelmaError(f"{volume.path}: {MASK_BY_VALUES}; give the image")
    given = settings.spacing_um_zyx
    spacing = volumes[0].spacing_um_zyx
    if given is not None:
        z, y, x = (edge * factor for edge, factor in zip(given, volumes[0].level_factor_zyx, strict=True))
        spacing = z, y, x
    if spacing is None:
        raise SelmaError(f"{volumes[0].path}: does not state its voxel size; give it with --spacing Z,Y,X in µm")
    return Brain(
        name=files.name,
        files=files.files,
        channels=volumes,
        spacing_um_zyx=spacing,
        placed_by_spacing=given is not None,
    )


def _check_same_place(volume: Volume, first: Volume) -> None:
    """Raise `SelmaError` if a channel lies elsewhere than the first, as their headers say."""
    placed = placement(volume, first)
    if placed.turns or placed.difference:
        lies = f"another orientation ({placed.turns})" if placed.turns else placed.difference
        raise SelmaError(f"{volume.path}: has {lies} than {first.path}; register the channels, or choose --channel")


def brain_fingerprint(brain: Brain, scene: str | None) -> str:
    """A hash by which a later run notices that a file of the brain was changed."""
    return fingerprint(*(part for path in brain.files for part in parts_of(path, scene)))

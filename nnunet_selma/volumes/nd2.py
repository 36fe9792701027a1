"""Nikon ND2, read with nd2 (an extra: `pip install nnunet-selma[microscopes]`)."""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, Volume, cut_short, damaged_file
from nnunet_selma.volumes.choice import (
    Choice,
    Inventory,
    check_level,
    chosen_channel,
    chosen_scene,
    chosen_time,
)
from nnunet_selma.volumes.library_errors import errors_as
from nnunet_selma.volumes.microscope_libraries import MicroscopeLibrary
from nnunet_selma.volumes.stated_names import distinct_names, stated_names
from nnunet_selma.volumes.units import spacing_in_um

ND2_LIBRARY = MicroscopeLibrary("nd2", "Nikon ND2 needs nd2")


def is_nd2(path: Path) -> bool:
    """True for the file ending of ND2."""
    return path.name.lower().endswith(".nd2")


def nd2_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The images in an ND2 file, whose positions are scenes; all have the same channels and time points.

    Raises:
        SelmaError: nd2 is not installed, the file is damaged, or it has no such scene.
    """
    with errors_as(damaged_file(path)), _open(path) as file:
        scenes, channels = _scenes(file), int(file.sizes.get("C", 1))
        if scene is not None:
            chosen_scene(path, scene, scenes)
        names = stated_names([channel.channel.name for channel in file.metadata.channels or ()])
        return Inventory(
            scenes=scenes,
            channels=channels,
            channel_names=names if len(names) == channels else (),
            times=int(file.sizes.get("T", 1)),
        )


def _open(path: Path) -> Any:
    """The file, opened with nd2."""
    ND2_LIBRARY.check(path)
    from nd2 import ND2File

    return ND2File(path)


def _scenes(file: Any) -> tuple[str, ...]:
    """Names of the positions; empty for a single one without a name."""
    points = [point for loop in file.experiment if loop.type == "XYPosLoop" for point in loop.parameters.points]
    if len(points) < 2 and not any(point.name for point in points):
        return ()
    return distinct_names([point.name or f"position {number}" for number, point in enumerate(points)])


def _spacing_um_zyx(file: Any) -> SpacingUm | None:
    """Voxel size, µm; ND2 states for each axis whether it was calibrated."""
    channels = file.metadata.channels
    if not channels:
        return None
    volume = channels[0].volume
    if not all(volume.axesCalibrated) or set(volume.axesInterpretation) != {"distance"}:
        return None
    return spacing_in_um(volume.axesCalibration[::-1], ["µm"] * 3)


class Nd2Volume(Volume):
    """One position, channel and time point of an ND2 file.

    A frame holds the slice of all channels; of an uncompressed file only the part that is asked for is taken from the disk.

    Raises:
        SelmaError: nd2 is not installed, the file is damaged, there is no such scene, channel, time point or level, or it holds several and
            none was chosen; a colour image, a loop without a name, or slices that were not taken.
    """

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008 - it is frozen
        self.path = path
        check_level(path, choice.level, 1)
        with errors_as(damaged_file(path)), _open(path) as file:
            lengths = {axis: int(length) for axis, length in file.sizes.items()}
            self._check_axes(lengths)
            self._channel = chosen_channel(path, choice.channel, lengths.get("C", 1))
            self._channels = lengths.get("C", 1)
            place = {
                "P": chosen_scene(path, choice.scene, _scenes(file)),
                "T": chosen_time(path, choice.time, lengths.get("T", 1)),
            }
            self.shape = (lengths.get("Z", 1), lengths.get("Y", 1), lengths.get("X", 1))
            if min(self.shape) < 1:
                raise damaged_file(path)
            self._frames = [
                number
                for number, indices in enumerate(file.loop_indices)
                if all(indices.get(axis, 0) == entry for axis, entry in place.items())
            ]
            self._check_frames(int(file.attributes.sequenceCount))
            self.dtype = np.dtype(file.dtype)
            self.spacing_um_zyx = _spacing_um_zyx(file)
        self._opened: tuple[int, Any] | None = None

    def _check_axes(self, lengths: dict[str, int]) -> None:
        """Raise `SelmaError` for an image with further axes; nd2 leaves out axes of length 1."""
        for axis, length in lengths.items():
            if axis not in "PTCZYX":
                what = "colours" if axis == "S" else "steps of a loop that is no time, position or z"
                raise SelmaError(
                    f"{self.path}: has {length} {what} (axis {axis}), one three-dimensional grey-value image is needed; save that as a file of its own"
                )

    def _check_frames(self, taken: int) -> None:
        """Raise `SelmaError` if slices were not taken, which nd2 would give as zeros."""
        if len(self._frames) != self.shape[0]:
            raise SelmaError(
                f"{self.path}: has {counted(len(self._frames), 'frame')} for {counted(self.shape[0], 'slice')}; save the image as a file of its own"
            )
        if lacking := sum(number >= taken for number in self._frames):
            raise SelmaError(
                f"{self.path}: {counted(lacking, 'slice')} of {self.shape[0]} were not taken, as when the acquisition was stopped; save the "
                "complete part as a file of its own"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _file(self) -> Any:
        """The file, opened by this process, and closed with the volume."""
        if self._opened is None or self._opened[0] != os.getpid():
            file = _open(self.path)
            weakref.finalize(self, file.close)
            self._opened = (os.getpid(), file)
        return self._opened[1]

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        voxels = np.empty((z.stop - z.start, y.stop - y.start, x.stop - x.start), self.dtype)
        if 0 in voxels.shape:
            return voxels
        with errors_as(cut_short(self.path)):
            file = self._file()
            for plane, number in zip(voxels, self._frames[z], strict=True):
                frame = file.read_frame(number)
                grey = frame if self._channels == 1 else frame[self._channel]
                plane[:] = grey.reshape(self.shape[1:])[y, x]
        return voxels

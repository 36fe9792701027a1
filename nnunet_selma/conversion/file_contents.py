"""The images within a file of several: scenes, channels, time points and resolution levels, with their sizes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Choice, inventory, open_volume
from nnunet_selma.volumes.base import ShapeZYX
from nnunet_selma.volumes.choice import chosen_scene

_MOST_SCENES = 20
"""Number of scenes that are listed with their sizes."""


@dataclass(frozen=True, kw_only=True)
class LevelFacts:
    """A resolution level of an image."""

    shape_zyx: ShapeZYX
    spacing_um_zyx: SpacingUm | None


@dataclass(frozen=True, kw_only=True)
class SceneFacts:
    """An image within a file."""

    number: int = 0
    """Number of the scene in the file, from 0."""
    name: str = ""
    """Name of the scene in the file; empty for a file without scenes."""
    channels: int = 1
    channel_names: tuple[str, ...] = ()
    """Name of each channel; empty unless all have one."""
    times: int = 1
    levels: tuple[LevelFacts, ...] = ()
    problem: str = ""
    """Why the scene cannot be read; empty for one that can."""

    @property
    def is_plain(self) -> bool:
        """True for a single grey-value volume at one resolution."""
        return not self.name and (self.channels, self.times, len(self.levels)) == (1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class FileContents:
    """The images within a file."""

    scenes: tuple[SceneFacts, ...]
    more: int = 0
    """Number of further scenes, which are not listed."""

    @property
    def is_plain(self) -> bool:
        """True for a file of a single grey-value volume at one resolution."""
        return all(scene.is_plain for scene in self.scenes)


def contents_of(path: Path, choice: Choice, slice_pattern: str | None = None) -> FileContents:
    """The scenes of a file, up to 20, or the chosen one; headers only. One of several scenes that cannot be read is listed with the reason.

    Args:
        path: any volume.
        choice: the scene, None for all; the channel and time point whose sizes are listed, None for the first ones; the level is not looked at.
        slice_pattern: as in `open_volume`.

    Raises:
        SelmaError: as `open_volume`, for a file of a single image or the chosen scene.
    """
    names = inventory(path, slice_pattern=slice_pattern).scenes
    if choice.scene is not None or not names:
        number = chosen_scene(path, choice.scene, names)
        name = names[number] if names else ""
        return FileContents(scenes=(_scene(path, number, name, choice, slice_pattern),))
    scenes = []
    for number, name in enumerate(names[:_MOST_SCENES]):
        try:
            scenes.append(_scene(path, number, name, choice, slice_pattern))
        except SelmaError as error:
            scenes.append(SceneFacts(number=number, name=name, problem=str(error)))
    return FileContents(scenes=tuple(scenes), more=len(names) - len(scenes))


def _scene(path: Path, number: int, name: str, choice: Choice, slice_pattern: str | None) -> SceneFacts:
    """Facts about a scene, which is asked for by its name, because names count before numbers."""
    scene = name or None
    held = inventory(path, scene, slice_pattern=slice_pattern)
    channel = 0 if choice.channel is None and held.channels > 1 else choice.channel
    time = 0 if choice.time is None and held.times > 1 else choice.time
    levels = [
        open_volume(path, scene=scene, channel=channel, time=time, level=level, slice_pattern=slice_pattern)
        for level in range(held.levels)
    ]
    return SceneFacts(
        number=number,
        name=name,
        channels=held.channels,
        channel_names=held.channel_names,
        times=held.times,
        levels=tuple(LevelFacts(shape_zyx=level.shape, spacing_um_zyx=level.spacing_um_zyx) for level in levels),
    )


def sentences(contents: FileContents) -> Iterator[str]:
    """A line for each scene: its channels, time points, and levels with shape and voxel size; and one for those that are not listed."""
    for scene in contents.scenes:
        yield (f"scene {scene.number} ({scene.name}): " if scene.name else "") + (scene.problem or _parts(scene))
    if contents.more:
        yield f"… and {counted(contents.more, 'more scene')}"


def _parts(scene: SceneFacts) -> str:
    """Channels, time points and levels of a scene."""
    names = f" ({', '.join(scene.channel_names)})" if scene.channel_names else ""
    parts = [f"{counted(scene.channels, 'channel')}{names}"]
    if scene.times > 1:
        parts.append(counted(scene.times, "time point"))
    levels = "; ".join(
        "×".join(map(str, level.shape_zyx))
        + (f" of {'×'.join(f'{edge:g}' for edge in level.spacing_um_zyx)} µm" if level.spacing_um_zyx else "")
        for level in scene.levels
    )
    return ", ".join([*parts, f"{counted(len(scene.levels), 'level')}: {levels}"])

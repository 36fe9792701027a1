"""The images within a file of several: scenes, channels, time points and resolution levels, with their sizes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.errors import counted
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import inventory, open_volume
from nnunet_selma.volumes.base import ShapeZYX

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

    name: str
    """Name of the scene; empty for a file without scenes."""
    channels: int
    channel_names: tuple[str, ...]
    """Name of each channel; empty unless all have one."""
    times: int
    levels: tuple[LevelFacts, ...]

    @property
    def is_plain(self) -> bool:
        """True for a single grey-value volume at one resolution."""
        return not self.name and (self.channels, self.times, len(self.levels)) == (1, 1, 1)


def scenes_in(path: Path, scene: str | None = None, slice_pattern: str | None = None) -> list[SceneFacts]:
    """The scenes of a file, or the chosen one; headers only.

    Args:
        path: any volume.
        scene: name or number of the scene; None: all, up to 20.
        slice_pattern: as in `open_volume`.

    Raises:
        SelmaError: as `open_volume`.
    """
    names = inventory(path, scene, slice_pattern=slice_pattern).scenes
    if not names or scene is not None:
        return [_scene(path, scene, scene or "", slice_pattern)]
    return [_scene(path, str(number), name, slice_pattern) for number, name in enumerate(names[:_MOST_SCENES])]


def _scene(path: Path, scene: str | None, name: str, slice_pattern: str | None) -> SceneFacts:
    held = inventory(path, scene, slice_pattern=slice_pattern)
    channel = 0 if held.channels > 1 else None
    time = 0 if held.times > 1 else None
    levels = [
        open_volume(path, scene=scene, channel=channel, time=time, level=level, slice_pattern=slice_pattern)
        for level in range(held.levels)
    ]
    return SceneFacts(
        name=name,
        channels=held.channels,
        channel_names=held.channel_names,
        times=held.times,
        levels=tuple(LevelFacts(shape_zyx=level.shape, spacing_um_zyx=level.spacing_um_zyx) for level in levels),
    )


def sentences(scenes: list[SceneFacts]) -> Iterator[str]:
    """A line for each scene: its channels, time points, and levels with shape and voxel size."""
    for number, scene in enumerate(scenes):
        names = f" ({', '.join(scene.channel_names)})" if scene.channel_names else ""
        levels = "; ".join(
            "×".join(map(str, level.shape_zyx))
            + (f" of {'×'.join(f'{edge:g}' for edge in level.spacing_um_zyx)} µm" if level.spacing_um_zyx else "")
            for level in scene.levels
        )
        parts = [f"{counted(scene.channels, 'channel')}{names}"]
        if scene.times > 1:
            parts.append(counted(scene.times, "time point"))
        parts.append(f"{counted(len(scene.levels), 'level')}: {levels}")
        yield (f"scene {number} ({scene.name}): " if scene.name else "") + ", ".join(parts)

"""The images that a file holds, and the choice of one of them: scene, channel, time point and level of resolution."""

from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.errors import SelmaError, counted


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The image to read of a file that may hold several; numbers count from 0."""

    scene: str | None = None
    """Name or number of the scene; None for a file with a single one."""
    channel: int | None = None
    """Number of the channel; None for a file with a single one."""
    time: int | None = None
    """Number of the time point; None for a file with a single one."""
    level: int = 0
    """Resolution level, 0 is the finest."""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The images in a file, from its headers."""

    scenes: tuple[str, ...] = ()
    """Names of the scenes, in their order; empty for a file that has no scenes."""
    channels: int = 1
    """Number of channels of the chosen scene."""
    channel_names: tuple[str, ...] = ()
    """Name of each channel; empty unless all have one."""
    times: int = 1
    """Number of time points of the chosen scene."""
    levels: int = 1
    """Number of resolution levels of the chosen scene."""
    companions: tuple[Path, ...] = ()
    """Other files that hold a part of the image, beside the path that was given."""


def chosen_scene(path: Path, scene: str | None, scenes: tuple[str, ...]) -> int:
    """Number of the scene to read of a file that holds these; a name counts before a number.

    Raises:
        SelmaError: there is no such scene, or there are several and none was chosen.
    """
    names = [name if name == str(number) else f"{number} ({name})" for number, name in enumerate(scenes[:10])]
    listed = ", ".join(names) + ", …" * (len(scenes) > 10)
    if scene is None and len(scenes) > 1:
        raise SelmaError(
            f"{path}: holds {counted(len(scenes), 'image')}: {listed}; save one of them as a file of its own",
            option="choose one with --scene",
        )
    if scene is None or scenes[:1] == (scene,):
        return 0
    if scene in scenes:
        return scenes.index(scene)
    if scene.isdecimal() and int(scene) < max(1, len(scenes)):
        return int(scene)
    raise SelmaError(f"{path}: has no scene {scene}; it holds {listed or 'a single image, choose none'}")


def chosen_channel(path: Path, channel: int | None, channels: int) -> int:
    """Number of the channel to read of a file that holds this many.

    Raises:
        SelmaError: there is no such channel, or there are several and none was chosen.
    """
    if channels == 1 and channel not in (None, 0):
        raise SelmaError(f"{path}: has one channel, there is no channel {channel}; choose none")
    if channels > 1 and channel is None:
        raise SelmaError(
            f"{path}: has {channels} channels; save one of them as a file of its own",
            option=f"choose one of 0 to {channels - 1} with --channel",
        )
    if channels > 1 and channel not in range(channels):
        raise SelmaError(f"{path}: has the channels 0 to {channels - 1}, there is no channel {channel}")
    return channel or 0


def chosen_time(path: Path, time: int | None, times: int) -> int:
    """Number of the time point to read of a file that holds this many.

    Raises:
        SelmaError: there is no such time point, or there are several and none was chosen.
    """
    if times == 1 and time not in (None, 0):
        raise SelmaError(f"{path}: has one time point, there is no time point {time}; choose none")
    if times > 1 and time is None:
        raise SelmaError(
            f"{path}: has {times} time points; save one of them as an image of its own",
            option=f"choose one of 0 to {times - 1} with --time",
        )
    if times > 1 and time not in range(times):
        raise SelmaError(f"{path}: has the time points 0 to {times - 1}, there is no time point {time}")
    return time or 0


def check_level(path: Path, level: int, levels: int) -> None:
    """Raise `SelmaError` if a file with this many resolution levels lacks a level."""
    if not 0 <= level < levels:
        raise SelmaError(f"{path}: has {counted(levels, 'resolution level')}, level {level} is not among them")


def check_only_image(path: Path, choice: Choice, *, channels: bool = False) -> None:
    """Raise `SelmaError` if a choice means anything but the only image of a file; with `channels`, the channel is left to others."""
    chosen_scene(path, choice.scene, ())
    if not channels:
        chosen_channel(path, choice.channel, 1)
    chosen_time(path, choice.time, 1)
    check_level(path, choice.level, 1)

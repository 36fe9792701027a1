"""Channels of one volume that lie in separate folders or files, as their names tell.

Names of microscopes say that they count channels: `brain1/C00`, `brain1_C00.tif`, `brain1_ch1.tif`, and `C1-brain1.tif` as Fiji splits them.
`brain1_0000.nii.gz`, as nnU-Net names channels, and `brain1_C1.tif` may as well be samples that are numbered, and so may `C01` and `C02` without a `C00`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import stem

SELMA3D_CHANNEL = re.compile(r"^C(?P<channel>\d{2})$", re.IGNORECASE)
"""Name of the folder of a channel in SELMA3D's tree."""
NNUNET_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
"""Name of the file of a channel in nnU-Net's datasets, without its ending."""
_FROM_ZERO = re.compile(r"^(?:(?P<case>.+)[-_. ])?C(?P<channel>\d{2})$", re.IGNORECASE)
_CERTAIN = (
    _FROM_ZERO,
    re.compile(r"^(?:(?P<case>.+)[-_. ])?(?:ch|channel)[-_ ]?(?P<channel>\d{1,2})$", re.IGNORECASE),
    re.compile(r"^C(?P<channel>\d)-(?P<case>.+)$", re.IGNORECASE),
)
_DOUBTFUL = (NNUNET_CHANNEL, re.compile(r"^(?:(?P<case>.+)[-_. ])?C(?P<channel>\d)$", re.IGNORECASE))
_PARTS = 3
"""Parts at the end of a path that may name a channel: the last, or a folder above it as a whole."""
_MOST = 10
"""Channels of a microscope at most; higher numbers count samples, or name a strain, as C57."""


@dataclass(frozen=True)
class ChannelName:
    """The meaning of a path that names a channel."""

    volume: Path
    """The path without the number and the ending, which all channels of a volume share."""
    channel: int
    certain: bool
    """False for a number that may as well be that of a sample, whatever lies beside it."""
    from_zero: bool = False
    """True for `C01` and the like, which are numbers of channels where `C00` is there, and else may be those of samples."""


@dataclass(frozen=True)
class Siblings:
    """Files that are channels of one volume, or may be."""

    volume: Path
    """The path without the number and the ending."""
    files: dict[int, Path]
    """Number of the channel to its file, in their order."""
    certain: bool
    """False for numbers that may as well be those of samples."""


def channel_name(path: Path) -> ChannelName | None:
    """Read a file or folder as a channel of a volume; None where its name, or that of a folder right above as a whole, numbers no channel."""
    *above, last = [*path.parts[:-1], stem(path)]
    kept, channels, from_zero = above[: 1 - _PARTS], list[int](), False
    for is_folder, part in [*((True, folder) for folder in above[1 - _PARTS :]), (False, last)]:
        match = _match(_CERTAIN, part)
        if match is None or int(match["channel"]) >= _MOST or (is_folder and match["case"]):
            kept.append(part)
            continue
        kept += [match["case"]] if match["case"] else []
        channels.append(int(match["channel"]))
        from_zero |= match.re is _FROM_ZERO
    if channels:
        return ChannelName(Path(*kept), channels[-1], certain=True, from_zero=from_zero)
    match = _match(_DOUBTFUL, last)
    return match and ChannelName(Path(*above, match["case"] or ""), int(match["channel"]), certain=False)


def _match(patterns: Iterable[re.Pattern[str]], name: str) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.match(name))), None)


def volume_path(path: str) -> str:
    """A path by which channels of one volume are recognised: that of a channel without its number, any other as it is.

    A single path does not tell whether `C01` lies beside `C00`. It counts as a channel here, because two channels of one brain in different
    folds would spoil the validation, and two samples in one fold do not. Names that are doubtful by themselves (`C1`, `0001`) stay as they are.
    """
    name = channel_name(Path(path))
    return str(name.volume) if name is not None and name.certain else path


def siblings(paths: Iterable[Path]) -> Iterator[Siblings]:
    """Yield files that differ in the number of a channel only; samples that are plainly numbered are none, and `C01`, `C02` without `C00` doubtful.

    Raises:
        SelmaError: two files are one channel.
    """
    volumes: dict[Path, list[tuple[ChannelName, Path]]] = {}
    for path in paths:
        name = channel_name(path)
        if name is not None:
            volumes.setdefault(name.volume, []).append((name, path))
    for volume, named in volumes.items():
        files: dict[int, Path] = {}
        for name, path in sorted(named, key=lambda pair: pair[0].channel):
            other = files.setdefault(name.channel, path)
            if other != path:
                raise SelmaError(f"{other} and {path} are one volume and channel; keep one of them")
        certain = all(name.certain and (0 in files or not name.from_zero) for name, _ in named)
        if len(files) > 1 and (certain or _may_be_channels(files)):
            yield Siblings(volume, files, certain)


def _may_be_channels(files: dict[int, Path]) -> bool:
    """True for few files; those that are named as by nnU-Net begin with 0."""
    begins = 0 in files or not any(NNUNET_CHANNEL.match(stem(path)) for path in files.values())
    return begins and max(files) < _MOST

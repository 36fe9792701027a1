"""The input channels of each case: those of SELMA3D's vessels, chosen by `--vessel-channels`, and those that `--stains` names."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.structures import Structure
from nnunet_selma.volumes import inventory

VesselChannels = Literal["wga", "eb", "both", "separate"]
"""Channels of stains that have two: a single channel, both as two input channels, or each as a case."""


def channel_sets(stains: Mapping[int, str], existing: Collection[int], choice: VesselChannels) -> list[tuple[int, ...]]:
    """Channels of each case that a sample becomes; a channel of a set may be missing among the existing ones.

    Args:
        stains: channel to the name of its stain.
        existing: channels of the sample that have a file.
        choice: treatment of two channels.
    """
    if len(stains) == 1 or choice == "both":
        return [tuple(stains)]
    if choice == "separate":
        return [(channel,) for channel in stains if channel in existing]
    return [(channel,) for channel, stain in stains.items() if stain == choice]


def input_channels(structure: Structure | None, count: int) -> list[str]:
    """Names of the input channels of a dataset whose cases have `count` of them."""
    return ["light sheet"] if structure is None or count == 1 else list(structure.channels.values())


def check_equal_counts(cases: Iterable[Collection[Any]]) -> None:
    """Raise `SelmaError` if cases, given by their channels, differ in the number of channels."""
    if len({len(channels) for channels in cases}) > 1:
        raise SelmaError(
            "--vessel-channels both gives vessels two input channels, and other structures have one: choose --structures blood_vessel, or "
            "another --vessel-channels"
        )


_NORMALISATIONS = ("ct", "nonorm", "zscore", "rescale_to_0_1", "rgb_to_0_1")


def check_stains(stains: Sequence[str], channel: int | None) -> None:
    """Raise `SelmaError` for names of channels that nnU-Net would take for a normalisation, for equal ones, and for a channel beside them."""
    if stains and channel is not None:
        raise SelmaError("--stains takes all channels, and --channel a single one; choose one of them")
    for stain in stains:
        if stain.casefold() in _NORMALISATIONS:
            raise SelmaError(f"--stains {stain}: nnU-Net takes this name for a normalisation; choose another name")
    if len(set(stains)) < len(stains):
        raise SelmaError(f"--stains {' '.join(stains)}: names a channel twice")


FROM_HEADER = "header"
"""Name of a stain that stands for the names in the files."""


def stained_files(files: Sequence[Path], stains: Sequence[str], scene: str | None = None) -> tuple[Path, ...]:
    """Files of the channels that `--stains` names; a file that holds all channels stands there for each.

    Raises:
        SelmaError: there are more or fewer channels than names.
    """
    if tuple(stains) == (FROM_HEADER,) and len(files) == 1:
        stains = _names_in(files[0], scene)
    count = inventory(files[0], scene).channels if len(files) == 1 else len(files)
    if count != len(stains):
        raise SelmaError(
            f"{' and '.join(map(str, files))}: {counted(count, 'channel')}, and --stains names {len(stains)}; name each, in their order"
        )
    return tuple(files) * len(stains) if len(files) == 1 else tuple(files)


def stain_names(stains: Sequence[str], files: Iterable[Path], scene: str | None = None) -> list[str]:
    """Names of the input channels of a dataset: those that `--stains` gives, or with `header` those in the files.

    Args:
        stains: the option.
        files: the files that hold all channels of a case.
        scene: scene of files with several.

    Raises:
        SelmaError: a file does not name its channels, or files name them differently.
    """
    if tuple(stains) != (FROM_HEADER,):
        return list(stains)
    names: dict[tuple[str, ...], Path] = {}
    for file in dict.fromkeys(files):
        names.setdefault(_names_in(file, scene), file)
    if len(names) > 1:
        (first, first_file), (other, other_file) = list(names.items())[:2]
        raise SelmaError(
            f"{other_file}: its channels are {', '.join(other)}, those of {first_file} {', '.join(first)}; name them with --stains, in their order"
        )
    chosen = list(next(iter(names), ()))
    check_stains(chosen, None)
    return chosen


def _names_in(file: Path, scene: str | None) -> tuple[str, ...]:
    """Names of the channels that a file states; raises `SelmaError` if it states none."""
    names = inventory(file, scene).channel_names
    if not names:
        raise SelmaError(f"{file}: does not name its channels; name them with --stains, in their order")
    return names


def numbered_within(files: Sequence[Path]) -> list[tuple[Path, int | None]]:
    """Each file and the number of its channel; None for a file that stands there once, which holds a single channel."""
    return [(path, files[:i].count(path) if files.count(path) > 1 else None) for i, path in enumerate(files)]

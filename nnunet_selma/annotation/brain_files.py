"""The files of each brain that cubes are proposed from: a file, or a file or folder for each channel, as their names tell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.conversion.channel_files import Siblings, channel_name, siblings
from nnunet_selma.conversion.walk import is_cube, passed_by, walk
from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import check_exists, inventory, stem


@dataclass(frozen=True, kw_only=True)
class BrainFiles:
    """The files of a brain."""

    name: str
    """Name, different for every brain of a proposal."""
    files: tuple[Path, ...]
    """The file that holds all channels, or a file for each, in the order of their numbers."""
    numbers: tuple[int, ...] | None
    """Number of the channel of each file; None for a file whose name numbers none, which may hold several."""

    def chosen(self, channels: Sequence[int] | None) -> list[tuple[Path, int | None]]:
        """File of each chosen channel, and its number in a file that holds several; all files, or the only channel, where none is chosen.

        Raises:
            SelmaError: no file has the number of a channel.
        """
        if self.numbers is None:
            return [(self.files[0], channel) for channel in channels or (None,)]
        by_number = dict(zip(self.numbers, self.files, strict=True))
        for channel in channels or ():
            if channel not in by_number:
                raise SelmaError(f"{self.name}: has no channel {channel}; its channels are {self._listed()}")
        return [(by_number[channel], None) for channel in channels or by_number]

    def sentence(self, channels: Sequence[int] | None) -> str | None:
        """A sentence about files that are channels of one brain; None for a single file."""
        taken = "" if channels is None else f"; taken: {', '.join(map(str, channels))}"
        return f"channels of {self.name}: {self._listed()}{taken}" if len(self.files) > 1 else None

    def _listed(self) -> str:
        return ", ".join(f"{number} ({file})" for number, file in zip(self.numbers or (), self.files, strict=True))


@dataclass(frozen=True)
class _Group:
    """The files of a brain, before brains have names."""

    volume: Path
    """Path of the brain, without the number of a channel and without ending."""
    files: tuple[Path, ...]
    numbers: tuple[int, ...] | None


def find_brains(
    sources: Sequence[Path], settings: ProposalSettings, leave_out: Path | None = None
) -> tuple[list[BrainFiles], list[str]]:
    """Find the brains of files and folders of brains, and say what was passed by.

    Args:
        sources: files, or folders below which every volume is a brain, or a channel of one.
        settings: options.
        leave_out: folder whose content is no brain: that of the proposal.

    Returns:
        The brains, and sentences about what is in the folders and is no brain.

    Raises:
        SelmaError: a path does not exist, a folder leaves a question, there is no brain, names do not tell whether files are channels or
            brains, or two brains have one name.
    """
    source_of: dict[Path, Path] = {}
    known: set[Path] = set()
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
        source_of |= {path.absolute(): source.absolute() for path in volumes if path.resolve() not in known}
        known |= {path.resolve() for path in volumes}
    groups = list(_groups(list(source_of), settings))
    names = _names({group.files[0]: _parts(group.volume, source_of[group.files[0]]) for group in groups})
    return [
        BrainFiles(name=names[group.files[0]], files=tuple(map(Path.resolve, group.files)), numbers=group.numbers)
        for group in groups
    ], sentences


def _is_cube(path: Path, leave_out: Path | None) -> bool:
    """True for a file in a folder of a cube, and for everything below the folder that is left out."""
    within = leave_out is not None and leave_out.resolve() in path.resolve().parents
    return within or is_cube(path.parent)


def _groups(paths: Sequence[Path], settings: ProposalSettings) -> Iterator[_Group]:
    """Yield the files of each brain, in the order of the first."""
    of_path = {path: group for group in _channels(paths, settings) for path in group.files.values()}
    for path in paths:
        group, name = of_path.get(path), channel_name(path)
        if group is not None:
            files = tuple(group.files.values())
            if path == files[0]:
                yield _Group(group.volume, files, tuple(group.files))
        elif name is not None and name.certain and not _holds_channels(path, settings):
            yield _Group(path.parent / stem(path), (path,), (name.channel,))
        else:
            yield _Group(path.parent / stem(path), (path,), None)


def _channels(paths: Sequence[Path], settings: ProposalSettings) -> Iterator[Siblings]:
    """Yield files that are channels of one brain.

    Raises:
        SelmaError: names do not tell whether files are channels or brains, and no channels are chosen; or files hold several channels each.
    """
    for group in siblings(paths):
        first, second, *_ = group.files.values()
        several = next((path for path in group.files.values() if _holds_channels(path, settings)), None)
        if several is not None and group.certain:
            other = second if several == first else first
            raise SelmaError(
                f"{several}: holds several channels, and is a channel by its name, as {other} is; rename them if they are brains, or give one alone"
            )
        if several is not None:
            continue
        if not group.certain and settings.channels is None:
            raise SelmaError(
                f"{first} and {second}: may be channels of one brain, or two brains, which their names do not tell; if they are channels, choose "
                f"them with --channel {' '.join(map(str, group.files))}; if they are brains, rename the files or folders with the number"
            )
        yield group


def _holds_channels(path: Path, settings: ProposalSettings) -> bool:
    return inventory(path, settings.scene, slice_pattern=settings.slice_pattern).channels > 1


def _parts(volume: Path, source: Path) -> tuple[str, ...]:
    """Folders between the source and a brain, and the name of the brain."""
    return (volume.relative_to(source).parts if volume.is_relative_to(source) else ()) or (volume.name,)


def _names(paths: Mapping[Path, tuple[str, ...]]) -> dict[Path, str]:
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

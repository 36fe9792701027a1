"""Options for a folder of cubes, and the settings that stay as they are while its dataset grows."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_selma.annotation.growing import GrowingDataset
from nnunet_selma.annotation.layout import NOT_ANNOTATED
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.conversion.spacing import Spacing
from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import Structure, chosen_structure, named

_SUITED = ("dataset_id", "name", "structure", "kind", "spacing", "stains", "group", "folds", "seed")
"""Settings of `AnnotatedSettings` that mean something for cubes."""


@dataclass(frozen=True, kw_only=True)
class CubeSettings:
    """Options for a folder of cubes, beside those of annotated patches."""

    classes: tuple[str, ...] = ()
    """Names of the classes in the labels, in the order of their values 1, 2, …; empty: one class, structure."""
    without_unchanged: bool = False
    """Leave out cubes whose label is as it was handed over."""
    without: tuple[str, ...] = ()
    """Cubes to leave out, as in cube_0003; one that is in the dataset is taken out of it."""
    as_is: tuple[str, ...] = ()
    """Cubes whose label is right though it looks unfinished: unchanged, empty, with planes without label, or with strokes not saved beside it."""

    def __post_init__(self) -> None:
        """Raise `SelmaError` for names of classes that cannot be told apart, and for cubes that are both taken and left out."""
        if len({*self.classes, "background", "ignore"}) < len(self.classes) + 2:
            raise SelmaError(
                f"classes {', '.join(self.classes)}: names differ from each other, and from background and ignore"
            )
        if len(self.classes) >= NOT_ANNOTATED:
            raise SelmaError(f"classes: {len(self.classes)}; labels hold {NOT_ANNOTATED - 1} at most")
        if both := sorted({*self.without} & {*self.as_is}):
            raise SelmaError(f"{both[0]}: is both left out and taken as it is; choose one")


@dataclass(frozen=True, kw_only=True)
class LastingSettings:
    """Settings with which a dataset was begun, and which stay the same as it grows."""

    structure: Structure | None
    spacing: Spacing
    stains: tuple[str, ...]
    group: str | None
    folds: int
    seed: int
    classes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        content = {**vars(self), "structure": self.structure.key if self.structure else None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "LastingSettings":
        """Restore from the result of `as_json`; further entries are passed over."""
        stored = {field.name: content[field.name] for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        key = values["structure"]
        values["structure"] = None if key is None else named(key) if ":" in key else chosen_structure(key)
        return cls(**values)


def lasting_settings(
    settings: AnnotatedSettings, cube_settings: CubeSettings, dataset: GrowingDataset, given: Collection[str]
) -> LastingSettings:
    """Settings of a dataset: those that are given for the first version, and those of the version before for a further one.

    Args:
        settings: structure, voxel size, names of channels, groups and folds.
        cube_settings: names of the classes.
        dataset: the dataset, with the version before, if there is one.
        given: names of settings that are meant though they equal their defaults.

    Raises:
        SelmaError: others are given for a further version.
    """
    chosen = LastingSettings(
        structure=settings.chosen_structure,
        spacing=settings.spacing or "physical",
        stains=settings.stains,
        group=settings.group,
        folds=settings.folds,
        seed=settings.seed,
        classes=cube_settings.classes or ("structure",),
    )
    if dataset.manifest is None:
        return chosen
    earlier = LastingSettings.from_json(dataset.manifest["settings"])
    options = {**vars(settings), "classes": cube_settings.classes}
    defaults = {**vars(AnnotatedSettings()), "classes": CubeSettings.classes}
    for field in fields(LastingSettings):
        name = field.name
        is_given = options[name] != defaults[name] or name in given
        if is_given and getattr(chosen, name) != getattr(earlier, name):
            was = earlier.as_json()[name]
            words = " ".join(map(str, was)) if isinstance(was, list) else was
            raise SelmaError(
                f"{dataset.folder} was begun with {name} {words or 'not given'}, which cannot change as it grows; leave it out, or "
                "remove the dataset to convert all cubes anew"
            )
    return earlier


def check_no_cube_settings(settings: CubeSettings, source: Path | None) -> None:
    """Raise `SelmaError` if settings for cubes are given for patches, which have none of it."""
    if option := _changed_option(settings):
        raise SelmaError(
            f"{option}: is for folders that nnunet-selma propose wrote, and {source} is none; leave it out"
        )


def check_suited(settings: AnnotatedSettings, source: Path) -> None:
    """Raise `SelmaError` for settings of patches that mean nothing for cubes."""
    if option := _changed_option(settings, but=_SUITED):
        raise SelmaError(f"{option}: means nothing for {source}, which nnunet-selma propose wrote; leave it out")


def _changed_option(settings: AnnotatedSettings | CubeSettings, but: Collection[str] = ()) -> str | None:
    """The first option whose value is not its default; None if there is none."""
    names = (f.name for f in fields(settings) if f.name not in but and getattr(settings, f.name) != f.default)
    return next((f"--{name.replace('_', '-')}" for name in names), None)

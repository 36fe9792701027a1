"""Cubes that people annotated become a nnU-Net dataset, which grows with them; cases keep their fold, and a brain is never parted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_selma import __version__
from nnunet_selma.annotation.growing import LAYOUT, GrowingDataset
from nnunet_selma.annotation.layout import NOT_ANNOTATED, file_hash, label_hash
from nnunet_selma.annotation.returned import (
    Cube,
    ReturnedLabel,
    doubts,
    read_cubes,
    read_label,
)
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.conversion.channel_files import volume_path
from nnunet_selma.conversion.checks import LabelFacts, check_equal_shapes, facts_as_json, read_image
from nnunet_selma.conversion.groups import given_groups
from nnunet_selma.conversion.raw_dataset import check_free_id, dataset_folder_name
from nnunet_selma.conversion.relatives import find_relations, signature
from nnunet_selma.conversion.spacing import Spacing, SpacingSources, WrittenSpacing, spacing_of
from nnunet_selma.conversion.splits import (
    Split,
    dealt_folds,
    folds_of_splits,
    grown_splits,
    joined_groups,
    splits_of_folds,
)
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.locks import exclusive
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import Structure, chosen_structure, named
from nnunet_selma.volumes import open_volume, to_intensities

_MOST_NAMED = 12
"""Greatest number of questions that an error prints; further ones are counted."""
_SUITED = ("dataset_id", "name", "structure", "kind", "spacing", "stains", "group", "folds", "seed")
"""Settings of `AnnotatedSettings` that mean something for cubes."""
_LASTING = ("structure", "spacing", "stains", "group", "folds", "seed", "classes")
"""Settings that stay as they were when the dataset was begun."""


@dataclass(frozen=True, kw_only=True)
class CubeSettings:
    """Options for a folder of cubes, beside those of annotated patches."""

    classes: tuple[str, ...] = ()
    """Names of the classes in the labels, in the order of their values 1, 2, …; empty: one class, structure."""
    without_unchanged: bool = False
    """Leave out cubes whose label is as it was handed over."""
    without: tuple[str, ...] = ()
    """Cubes to leave out, as in cube_0003."""
    as_is: tuple[str, ...] = ()
    """Cubes whose label is right though it looks unfinished: unchanged, empty, or with planes that hold no label."""

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
class _Lasting:
    """Settings of a dataset that stay the same as it grows."""

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
    def from_json(cls, content: Mapping[str, Any]) -> "_Lasting":
        """Restore from the result of `as_json`."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        key = values["structure"]
        values["structure"] = None if key is None else named(key) if ":" in key else chosen_structure(key)
        return cls(**values)


def check_no_cube_settings(settings: CubeSettings, source: Path | None) -> None:
    """Raise `SelmaError` if settings for cubes are given for patches, which have none of it."""
    for field in fields(settings):
        if getattr(settings, field.name) != field.default:
            option = f"--{field.name.replace('_', '-')}"
            raise SelmaError(
                f"{option}: is for folders that nnunet-selma propose wrote, and {source} is none; leave it out"
            )


def convert_cubes(
    source: Path,
    settings: AnnotatedSettings,
    cube_settings: CubeSettings,
    folders: Folders,
    progress: Progress[Any] = silent,
    *,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Take the annotated cubes of a folder into a dataset in `folders.raw`, and deal the folds in `folders.preprocessed`.

    The first run makes the dataset. Each further one adds cubes that were annotated since, and writes labels that were corrected since anew; a run
    with nothing new changes nothing. The dataset that is there stays whole until the next version takes its place.

    Args:
        source: a folder that `propose` wrote; nothing in it is written.
        settings: structure, voxel size, names of channels, groups and folds; after the first run, those that are not given stay as they were.
        cube_settings: classes, and answers to questions about cubes that may be unfinished.
        folders: nnU-Net's folders.
        progress: shows the cubes.
        given: names of settings that are meant though they equal their defaults, such as folds.

    Returns:
        The manifest; `left_out` holds a sentence for each cube that was left out, and `grown` is True if there is a new version.

    Raises:
        SelmaError: labels leave a question, which the message asks; or source, labels or settings cannot be used. Nothing is changed then.
    """
    _check_suited(settings, source)
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    check_free_id(settings.dataset_id, folder_name, folders)
    folders.raw.mkdir(parents=True, exist_ok=True)
    with exclusive(folders.raw / f".{folder_name}.lock") as held:
        if not held:
            raise SelmaError(f"{folders.raw / folder_name}: another conversion is writing it; wait for its end")
        return _convert(source, settings, cube_settings, folders, folder_name, progress, given)


def _convert(
    source: Path,
    settings: AnnotatedSettings,
    answers: CubeSettings,
    folders: Folders,
    folder_name: str,
    progress: Progress[Any],
    given: Collection[str],
) -> dict[str, Any]:
    dataset = GrowingDataset(folders.raw, folder_name)
    lasting = _lasting(settings, answers, dataset, given)
    before: dict[str, Any] = (dataset.manifest or {}).get("cases", {})
    prefix = f"{lasting.structure.prefix}_" if lasting.structure else ""
    cubes = {f"{prefix}{cube.name}": cube for cube in read_cubes(source)}
    _check_same_folder(source, cubes, before, answers)
    answered: dict[str, Any] = (dataset.manifest or {}).get("left_out_cubes", {})
    labels, left_out = _labels(source, cubes, before, answered, answers, progress)
    _check_classes(labels, cubes, lasting.classes)
    splits_file = folders.preprocessed / folder_name / "splits_final.json"
    manifest = dataset.manifest
    if labels or manifest is None:
        if not labels:
            raise SelmaError(
                f"{source}: no cube is annotated yet; paint the labels, as README.md in that folder says, and run this again"
            )
        manifest = _grown(source, dataset, lasting, cubes, labels, left_out, splits_file, progress)
    elif manifest["left_out_cubes"] != left_out:
        manifest = {**manifest, "left_out_cubes": left_out}
        dataset.note(manifest)
    if labels or not _newer(splits_file, dataset.folder / "dataset.json"):
        _write_splits(splits_file, manifest)
    return manifest | {"left_out": _sentences(left_out), "grown": bool(labels)}


def _newer(file: Path, other: Path) -> bool:
    """True if a file is there and was written after another."""
    return file.is_file() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _write_splits(splits_file: Path, manifest: Mapping[str, Any]) -> None:
    """Write the folds, or take the cases of the last version into those that are there; cases that a user took out of the folds stay out."""
    there = _read_splits(splits_file)
    if not there:
        splits_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(splits_file, splits_of_folds(manifest["folds"], int(manifest["settings"]["folds"])))
        return
    placed = {case for split in there for case in (*split["train"], *split["val"])}
    if new := sorted({*manifest["history"][-1]["added"]} - placed):
        write_json(splits_file, grown_splits(there, new, manifest["groups"], manifest["folds"]))


def _sentences(left_out: Mapping[str, Mapping[str, str]]) -> list[str]:
    return [f"{name}: {cube['reason']}" for name, cube in left_out.items()]


def _check_suited(settings: AnnotatedSettings, source: Path) -> None:
    """Raise `SelmaError` for settings that mean nothing for cubes."""
    for field in fields(settings):
        if field.name not in _SUITED and getattr(settings, field.name) != field.default:
            raise SelmaError(
                f"--{field.name.replace('_', '-')}: means nothing for {source}, which nnunet-selma propose wrote; leave it out"
            )


def _lasting(
    settings: AnnotatedSettings, answers: CubeSettings, dataset: GrowingDataset, given_names: Collection[str]
) -> _Lasting:
    """Settings of the dataset: those given for the first version, afterwards those of the version that is there.

    Raises:
        SelmaError: others are given for a further version.
    """
    given = _Lasting(
        structure=settings.chosen_structure,
        spacing=settings.spacing or "physical",
        stains=settings.stains,
        group=settings.group,
        folds=settings.folds,
        seed=settings.seed,
        classes=answers.classes or ("structure",),
    )
    if dataset.manifest is None:
        return given
    earlier = _Lasting.from_json({name: dataset.manifest["settings"][name] for name in _LASTING})
    unset = {**vars(AnnotatedSettings()), "classes": ()}
    for name in _LASTING:
        chosen = answers.classes if name == "classes" else getattr(settings, name)
        if (chosen != unset[name] or name in given_names) and getattr(given, name) != getattr(earlier, name):
            was = earlier.as_json()[name]
            words = " ".join(map(str, was)) if isinstance(was, list) else was
            raise SelmaError(
                f"{dataset.folder} was begun with {name} {words or 'not given'}, which cannot change as it grows; leave it out, or remove the "
                "dataset to convert all cubes anew"
            )
    return earlier


def _check_same_folder(
    source: Path, cubes: Mapping[str, Cube], before: Mapping[str, Any], answers: CubeSettings
) -> None:
    """Raise `SelmaError` if the dataset has cubes of another folder, or cubes that are to be left out, or options name no cube."""
    names = {cube.name: case for case, cube in cubes.items()}
    if unknown := sorted({*answers.without, *answers.as_is} - names.keys()):
        raise SelmaError(f"{unknown[0]}: is no cube of {source}; its cubes are {', '.join(list(names)[:_MOST_NAMED])}")
    for case, record in before.items():
        if case not in cubes:
            raise SelmaError(
                f"{source}: lacks {record['cube']}, which the dataset holds; put it back, or remove the dataset to convert all cubes anew"
            )
        if [file_hash(image) for image in cubes[case].images] != record["images_sha256"]:
            raise SelmaError(
                f"{cubes[case].images[0]}: is another image than {case} in the dataset; give the folder that the dataset was made from, or choose "
                "another dataset id"
            )
    taken = [name for name in answers.without if names[name] in before]
    if taken:
        raise SelmaError(
            f"{taken[0]}: is in the dataset already; mark what is wrong as {NOT_ANNOTATED} in its label, or remove the dataset to convert all cubes "
            "anew"
        )


def _labels(
    source: Path,
    cubes: Mapping[str, Cube],
    before: Mapping[str, Any],
    answered: Mapping[str, Any],
    answers: CubeSettings,
    progress: Progress[Any],
) -> tuple[dict[str, ReturnedLabel], dict[str, dict[str, str]]]:
    """Case to its label, where it is new or changed; and the cubes that are left out, with the reason and the hash of the label.

    A cube that was left out before stays so until its label changes.

    Raises:
        SelmaError: labels cannot be used, or may be unfinished; the message asks about all of them.
    """
    labels: dict[str, ReturnedLabel] = {}
    reasons: dict[str, str] = {}
    unchanged: list[str] = []
    doubtful: list[str] = []
    hashes: dict[str, str] = {}
    for case, cube in progress(list(cubes.items()), "reading labels"):
        known, digest = before.get(case), label_hash(cube.label)
        hashes[cube.name] = digest
        if cube.name in answers.without:
            reasons[cube.name] = "as asked for"
        elif known is not None and digest == known["label_sha256"]:
            continue
        elif answered.get(cube.name, {}).get("label_sha256") == digest and cube.name not in answers.as_is:
            reasons[cube.name] = answered[cube.name]["reason"]
        elif digest == cube.handed_over and cube.name not in answers.as_is:
            if known is not None:
                doubtful.append(f"{cube.name} is as it was handed over, though an annotation of it is in the dataset")
            elif answers.without_unchanged:
                reasons[cube.name] = "its label is as it was handed over"
            else:
                beside = f" (beside it lies {cube.other_labels[0]}, which is not read)" if cube.other_labels else ""
                unchanged.append(cube.name + beside)
        else:
            label = read_label(cube)
            words = None if cube.name in answers.as_is else doubts(cube, label.values)
            nothing = bool((label.values == NOT_ANNOTATED).all())
            if nothing and known is not None:
                doubtful.append(f"{cube.name} is marked as not annotated, though an annotation of it is in the dataset")
            elif nothing:
                reasons[cube.name] = "all of it is marked as not annotated"
            elif words:
                doubtful.append(f"{cube.name} {words}")
            else:
                labels[case] = label
    if unchanged or doubtful:
        raise SelmaError(_question(source, unchanged, doubtful))
    return labels, {name: {"label_sha256": hashes[name], "reason": reason} for name, reason in reasons.items()}


def _question(source: Path, unchanged: Sequence[str], doubtful: Sequence[str]) -> str:
    """A sentence that asks about all labels that may be unfinished."""
    parts = []
    if unchanged:
        parts.append(
            f"{counted(len(unchanged), 'cube')} as handed over: {_listed(unchanged)}; leave them out for now with --without-unchanged"
        )
    if doubtful:
        parts.append(
            f"{counted(len(doubtful), 'label')} that may be unfinished: {_listed(doubtful, '; ')}. Finish them, fill what nobody annotated with "
            f"{NOT_ANNOTATED}, or leave them out with --without CUBE …"
        )
    return f"{source}: {'. '.join(parts)}. Labels that are right as they are: name their cubes with --as-is CUBE …"


def _listed(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return between.join(names[:_MOST_NAMED]) + more


def _check_classes(labels: Mapping[str, ReturnedLabel], cubes: Mapping[str, Cube], classes: Sequence[str]) -> None:
    """Raise `SelmaError` if a label holds a value of no class."""
    for case, label in labels.items():
        values = np.setdiff1d(np.unique(label.values), [0, NOT_ANNOTATED]).tolist()
        if values and values[-1] > len(classes):
            raise SelmaError(
                f"{cubes[case].label}: holds the values {', '.join(map(str, values))}, and the dataset has {counted(len(classes), 'class', 'classes')} "
                f"({', '.join(classes)}); correct the label, or name all classes with --classes when the dataset is begun"
            )


def _grown(
    source: Path,
    dataset: GrowingDataset,
    lasting: _Lasting,
    cubes: Mapping[str, Cube],
    labels: Mapping[str, ReturnedLabel],
    left_out: Mapping[str, Mapping[str, str]],
    splits_file: Path,
    progress: Progress[Any],
) -> dict[str, Any]:
    """Build the next version of the dataset; returns its manifest."""
    earlier = dataset.manifest or {}
    before: dict[str, Any] = earlier.get("cases", {})
    channels = _channel_names(lasting, [cubes[case] for case in {**before, **labels}])
    dataset.begin()
    cases: dict[str, Any] = dict(before)
    signatures = []
    for case in progress(sorted({*before, *labels}), "cubes"):
        cube = cubes[case]
        if case not in labels:
            dataset.keep(case, len(channels))
            signatures.append(_signature_of_kept(dataset, case))
            continue
        spacing = _spacing(cube, lasting)
        in_um = spacing.unit == "µm"
        if case in before:
            dataset.keep(case, len(channels), label=False)
            signatures.append(_signature_of_kept(dataset, case))
            images = before[case]["images"]
        else:
            volumes = [open_volume(image) for image in cube.images]
            check_equal_shapes(volumes, "restore the images of the cube")
            read = [read_image(volume, None) for volume in volumes]
            dataset.write_images(case, [image for image, _ in read], spacing.size_zyx, in_um=in_um)
            signatures.append(signature(case, read[0][0]))
            images = [facts_as_json(facts) for _, facts in read]
        values = labels[case].values
        ignored = len(lasting.classes) + 1
        dataset.write_label(
            case, np.where(values == NOT_ANNOTATED, np.uint8(ignored), values), spacing.size_zyx, in_um=in_um
        )
        cases[case] = _record(cube, labels[case], images, spacing, lasting)
    groups, related = _groups(cases, earlier.get("groups", {}), lasting.group, signatures)
    there = _read_splits(splits_file)
    known = {**earlier.get("folds", {}), **folds_of_splits(there)}
    folds = dealt_folds(groups, known, len(there) or lasting.folds, lasting.seed)
    entry = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cases": len(cases),
        "added": {case: label.sha256 for case, label in labels.items() if case not in before},
        "changed": {
            case: {"from": before[case]["label_sha256"], "to": label.sha256}
            for case, label in labels.items()
            if case in before
        },
        "left_out": _sentences(left_out),
    }
    manifest = {
        "nnunet_selma": __version__,
        "layout": LAYOUT,
        "settings": {**lasting.as_json(), "source": str(source.resolve())},
        "spacing": sorted({case["spacing"] for case in cases.values()}),
        "passed_by": [],
        "groups": groups,
        "parted": _parted(groups, folds),
        "related_patches": related,
        "folds": folds,
        "cases": {case: {**cases[case], "group": groups[case]} for case in sorted(cases)},
        "left_out_cubes": dict(left_out),
        "history": [*earlier.get("history", []), entry],
    }
    dataset.finish(channels, lasting.classes, manifest)
    return manifest


def _record(
    cube: Cube, label: ReturnedLabel, images: list[dict[str, Any]], spacing: WrittenSpacing, lasting: _Lasting
) -> dict[str, Any]:
    """Entry of a case in the manifest; `images` are the facts about its channels."""
    return {
        "structure": lasting.structure.prefix if lasting.structure else None,
        "cube": cube.name,
        "brain": cube.brain,
        "brain_path": cube.brain_path,
        "round": cube.round,
        "spacing_zyx": list(spacing.size_zyx),
        "spacing": str(spacing),
        "images_sha256": [file_hash(image) for image in cube.images],
        "label_sha256": label.sha256,
        "images": images,
        "label": facts_as_json(_label_facts(cube, label.values)),
    }


def _channel_names(lasting: _Lasting, cubes: Sequence[Cube]) -> list[str]:
    """Names of the input channels; raises `SelmaError` if cubes differ in number, or several have no names."""
    counts = sorted({len(cube.images) for cube in cubes})
    if len(counts) > 1:
        raise SelmaError(
            f"{cubes[0].folder.parent}: cubes have {counts[0]} and {counts[-1]} channels; keep those of one number"
        )
    names = list(lasting.stains) or ["light sheet"]
    if len(names) != counts[0]:
        raise SelmaError(
            f"{cubes[0].folder}: has {counted(counts[0], 'channel')}, and {counted(len(names), 'name')} "
            f"({', '.join(names)}); name all channels with --stains, in their order"
        )
    return names


def _spacing(cube: Cube, lasting: _Lasting) -> WrittenSpacing:
    header = open_volume(cube.images[0]).spacing_um_zyx
    sources = SpacingSources(
        name=str(cube.images[0]), structure=lasting.structure, in_layout=False, header_um_zyx=header
    )
    return spacing_of(sources, lasting.spacing)


def _signature_of_kept(dataset: GrowingDataset, case: str) -> Any:
    path = dataset.image(case)
    return signature(case, to_intensities(open_volume(path).read(), str(path)))


def _label_facts(cube: Cube, values: NDArray[np.uint8]) -> LabelFacts:
    counts = dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
    ignored = counts.get(NOT_ANNOTATED, 0)
    unknown = f"{ignored / values.size:.1%} of the voxels are not annotated"
    z, y, x = values.shape
    return LabelFacts(
        file=str(cube.label),
        shape_zyx=(z, y, x),
        dtype=str(values.dtype),
        values={str(value): count for value, count in counts.items()},
        foreground_share=1 - (counts.get(0, 0) + ignored) / values.size,
        warnings=[unknown] if ignored else [],
    )


def _groups(
    cases: Mapping[str, Any], earlier: Mapping[str, str], group: str | None, signatures: Sequence[Any]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Case to its group: its brain, or as the user gives it; groups that show the same tissue are joined. And the relations between groups.

    Cubes of one path, of one name, or of files that are channels of one volume, are of one brain: it may have been called otherwise, or moved,
    between rounds.
    """
    together: list[tuple[str, str]] = []
    if group is None:
        first: dict[str, str] = {}
        for case, record in cases.items():
            identities = record["brain"], volume_path(record["brain_path"])
            together += [(first.setdefault(identity, case), case) for identity in identities]
        names = {case: record["brain_path"] for case, record in cases.items()}
    else:
        names = given_groups(group, {case: [case, record["cube"], record["brain"]] for case, record in cases.items()})
    names |= {case: earlier[case] for case in cases if case in earlier}
    related = [r for r in find_relations(signatures) if names[r.first] != names[r.second]]
    together += [(r.first, r.second) for r in related]
    return joined_groups(names, together), [vars(relation) for relation in related]


def _parted(groups: Mapping[str, str], folds: Mapping[str, int]) -> list[str]:
    """Sentences about groups whose cases are in several folds, because they were known as related too late."""
    places: dict[str, set[int]] = {}
    for case, group in groups.items():
        places.setdefault(group, set()).add(folds[case])
    return [
        f"{group}: its cubes are in the folds {', '.join(map(str, sorted(of_group)))}, as they were before they were known to show the same tissue; "
        "their validation is too good"
        for group, of_group in places.items()
        if len(of_group) > 1
    ]


def _read_splits(splits_file: Path) -> list[Split]:
    """The folds that are there, which a user may have changed; empty where there are none."""
    content: Any = read_json(splits_file) if splits_file.is_file() else []
    return list(content)

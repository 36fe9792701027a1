"""Cubes that people annotated become a nnU-Net dataset, which grows with them; cases keep their fold, and a brain is never parted."""

from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunet_selma import __version__
from nnunet_selma.annotation.cube_cases import write_cases
from nnunet_selma.annotation.cube_folds import check_folds_without, fold_facts, write_splits
from nnunet_selma.annotation.cube_settings import CubeSettings, LastingSettings, check_suited, lasting_settings
from nnunet_selma.annotation.growing import LAYOUT, GrowingDataset
from nnunet_selma.annotation.layout import file_hash
from nnunet_selma.annotation.questions import Changes, check_classes, listed, read_changes
from nnunet_selma.annotation.returned import Cube, read_cubes
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.conversion.raw_dataset import check_free_id, dataset_folder_name
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.running.locks import exclusive
from nnunet_selma.running.progress import Progress, silent


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

    The first run makes the dataset. Each further one adds cubes that were annotated since, writes labels that were corrected since anew, and takes
    out cubes that are to be left out; a run with nothing new changes nothing. The dataset that is there stays whole until the next version takes its place.

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
    check_suited(settings, source)
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    check_free_id(settings.dataset_id, folder_name, folders)
    folders.raw.mkdir(parents=True, exist_ok=True)
    with exclusive(folders.raw / f".{folder_name}.lock") as held:
        if not held:
            raise SelmaError(f"{folders.raw / folder_name}: another conversion is writing it; wait for its end")
        dataset = GrowingDataset(folders.raw, folder_name)
        lasting = lasting_settings(settings, cube_settings, dataset, given)
        splits_file = folders.preprocessed / folder_name / "splits_final.json"
        return _convert(source, dataset, lasting, cube_settings, splits_file, progress)


def _convert(
    source: Path,
    dataset: GrowingDataset,
    lasting: LastingSettings,
    answers: CubeSettings,
    splits_file: Path,
    progress: Progress[Any],
) -> dict[str, Any]:
    prefix = f"{lasting.structure.prefix}_" if lasting.structure else ""
    cubes = {f"{prefix}{cube.name}": cube for cube in read_cubes(source)}
    manifest = dataset.manifest
    _check_same_folder(source, cubes, manifest["cases"] if manifest else {}, answers)
    changes = read_changes(source, cubes, manifest, answers, progress)
    check_classes(changes.taken, cubes, lasting.classes)
    if changes.need_a_version:
        manifest = _next_version(source, dataset, lasting, cubes, changes, splits_file, progress)
    elif manifest is None:
        raise SelmaError(
            f"{source}: no cube is annotated yet; paint the labels, as README.md in that folder says, and run this again"
        )
    elif manifest["left_out_cubes"] != changes.left_out:
        manifest = {**manifest, "left_out_cubes": changes.left_out}
        dataset.note(manifest)
    if changes.need_a_version or not _newer(splits_file, dataset.folder / "dataset.json"):
        write_splits(splits_file, manifest)
    return manifest | {"left_out": _sentences(changes.left_out), "grown": changes.need_a_version}


def _check_same_folder(
    source: Path, cubes: Mapping[str, Cube], before: Mapping[str, Any], answers: CubeSettings
) -> None:
    """Raise `SelmaError` if the dataset has cubes of another folder, or options name no cube; cubes that are taken out may be gone."""
    names = [cube.name for cube in cubes.values()]
    if unknown := sorted(
        {*answers.without, *answers.as_is} - {*names, *(record["cube"] for record in before.values())}
    ):
        raise SelmaError(f"{unknown[0]}: is no cube of {source}; its cubes are {listed(names)}")
    for case, record in before.items():
        if record["cube"] in answers.without:
            continue
        if case not in cubes:
            raise SelmaError(
                f"{source}: lacks {record['cube']}, which the dataset holds; put it back, or take it out with --without {record['cube']}"
            )
        if [file_hash(image) for image in cubes[case].images] != record["images_sha256"]:
            raise SelmaError(
                f"{cubes[case].images[0]}: is another image than {case} in the dataset; give the folder that the dataset was made from, or choose "
                "another dataset id"
            )


def _next_version(
    source: Path,
    dataset: GrowingDataset,
    lasting: LastingSettings,
    cubes: Mapping[str, Cube],
    changes: Changes,
    splits_file: Path,
    progress: Progress[Any],
) -> dict[str, Any]:
    """Build the next version of the dataset; returns its manifest."""
    earlier = dataset.manifest or {}
    before: dict[str, Any] = earlier.get("cases", {})
    removed = {case: before[case] for case in changes.removed}
    kept = {case: record for case, record in before.items() if case not in removed}
    if not kept and not changes.taken:
        raise SelmaError(f"{dataset.folder}: would hold no cube any more; remove the folder instead")
    check_folds_without(splits_file, changes.removed, changes.taken.keys() - before.keys())
    channels, cases, signatures = write_cases(dataset, lasting, cubes, kept, changes.taken, progress)
    settings = {**lasting.as_json(), "source": str(source.resolve())}
    folds = fold_facts(cases, signatures, settings, earlier, splits_file)
    entry = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cases": len(cases),
        "added": {case: label.sha256 for case, label in changes.taken.items() if case not in before},
        "changed": {
            case: {"from": before[case]["label_sha256"], "to": label.sha256}
            for case, label in changes.taken.items()
            if case in before
        },
        "removed": {case: {name: removed[case][name] for name in ("brain", "label_sha256")} for case in removed},
        "left_out": _sentences(changes.left_out),
    }
    manifest = {
        "nnunet_selma": __version__,
        "layout": LAYOUT,
        "settings": settings,
        "spacing": sorted({case["spacing"] for case in cases.values()}),
        "passed_by": [],
        **folds,
        "cases": {case: {**cases[case], "group": folds["groups"][case]} for case in sorted(cases)},
        "left_out_cubes": changes.left_out,
        "history": [*earlier.get("history", []), entry],
    }
    dataset.finish(channels, lasting.classes, manifest)
    return manifest


def _sentences(left_out: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name}: {cube['reason']}" for name, cube in left_out.items()]


def _newer(file: Path, other: Path) -> bool:
    """True if a file is there and was written after another."""
    return file.is_file() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns

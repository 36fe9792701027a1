"""Annotated patches become a nnU-Net dataset with manifest and folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_selma.conversion.channels import VesselChannels, channel_sets, check_equal_counts, input_channels
from nnunet_selma.conversion.checks import check_equal_shapes, facts_as_json, read_image, read_label
from nnunet_selma.conversion.layouts import FoundPatches, Patch, find_patches
from nnunet_selma.conversion.raw_dataset import RawDataset, check_free_id, dataset_folder_name
from nnunet_selma.conversion.relatives import Relation, Signature, find_relations, signature
from nnunet_selma.conversion.spacing import Spacing, default_spacing, spacing_of
from nnunet_selma.conversion.splits import joined_groups, make_splits
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.running.json_files import write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm, Structure
from nnunet_selma.volumes import open_volume


@dataclass(frozen=True, kw_only=True)
class AnnotatedSettings:
    """Options for converting annotated patches."""

    dataset_id: int = 510
    """Dataset id of nnU-Net."""
    name: str = "SELMA3D"
    """Name of the dataset, after its id."""
    structures: tuple[str, ...] = ()
    """Structures to take; empty: all."""
    spacing: Spacing | None = None
    """Voxel size to write: that of the structure table, 1 voxel, or µm; None: physical for one structure, voxel for several."""
    vessel_channels: VesselChannels = "separate"
    """Channels of stains that have two: only one, both as two input channels, or each as a case."""
    layout: Literal["bioimage_archive", "challenge_zip", "delivr"] | None = None
    """Layout of the source; None: detected."""
    foreground: int | None = None
    """Value of the objects in the ground truths; None: every value above 0."""
    leave_out_unpaired: bool = False
    """Leave out raw files without ground truth, and ground truths without raw file, and list them, instead of stopping."""
    folds: int = 5
    """Number of cross-validation folds."""
    seed: int = 0
    """Seed of the folds."""

    def __post_init__(self) -> None:
        """Raise `SelmaError` for folds that give no cross-validation."""
        if self.folds < 2:
            raise SelmaError(f"--folds {self.folds}: cross-validation needs at least 2")


@dataclass(frozen=True, kw_only=True)
class AnnotatedCase:
    """A case of the dataset and its files."""

    name: str
    structure: Structure
    group: str
    """Name of the group whose cases must share a fold."""
    images: tuple[Path, ...]
    """Files of the channels, in order."""
    label: Path
    spacing_zyx: SpacingUm
    """Voxel size to write."""


def plan_cases(patches: Sequence[Patch], settings: AnnotatedSettings) -> tuple[list[AnnotatedCase], list[str]]:
    """The cases that patches become, and the names of the input channels.

    Raises:
        SelmaError: a chosen channel is missing, or cases would differ in their number of channels.
    """
    spacing = settings.spacing or default_spacing([patch.structure for patch in patches])
    cases: list[AnnotatedCase] = []
    for patch in patches:
        stains = patch.structure.channels
        separate = len(stains) > 1 and settings.vessel_channels == "separate"
        for channels in channel_sets(stains, patch.images, settings.vessel_channels):
            for channel in channels:
                if channel not in patch.images:
                    raise SelmaError(
                        f"{patch.label}: the raw image of channel {stains[channel]} (_{channel:04d}) is missing; "
                        "add it, or choose --vessel-channels separate"
                    )
            cases.append(
                AnnotatedCase(
                    name=f"{patch.name}_{stains[channels[0]]}" if separate else patch.name,
                    structure=patch.structure,
                    group=patch.group,
                    images=tuple(patch.images[channel] for channel in channels),
                    label=patch.label,
                    spacing_zyx=spacing_of(patch.structure, spacing),
                )
            )
    check_equal_counts(case.images for case in cases)
    return cases, input_channels(cases[0].structure, len(cases[0].images)) if cases else ["light sheet"]


def check_no_problems(source: Path, files: FoundPatches, *, leave_out_unpaired: bool = False) -> None:
    """Raise `SelmaError` with the first problem of a source, and the number of further ones."""
    problems = files.problems + ([] if leave_out_unpaired else files.unpaired)
    if problems:
        more = f" ({len(problems) - 1} more; see: nnunet-selma inspect {source})" if len(problems) > 1 else ""
        remedy = "" if files.problems else "; add it, or leave such files out with --leave-out-unpaired"
        raise SelmaError(problems[0] + remedy + more)


def convert_annotated(
    source: Path, settings: AnnotatedSettings, folders: Folders, progress: Progress[Any] = silent
) -> dict[str, Any]:
    """Write a dataset of annotated patches into `folders.raw` and its folds into `folders.preprocessed`; returns the manifest.

    The next run continues one that was killed, and leaves a complete dataset as it is.

    Raises:
        SelmaError: the source or the settings cannot be used; no dataset remains that nnU-Net would take for whole.
    """
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    check_free_id(settings.dataset_id, folder_name, folders)
    source_files = find_patches(source, settings.layout, settings.structures)
    check_no_problems(source, source_files, leave_out_unpaired=settings.leave_out_unpaired)
    if not source_files.patches:
        raise SelmaError(f"{source}: no raw image has a ground truth")
    cases, channels = plan_cases(source_files.patches, settings)
    for case in cases:
        check_equal_shapes([open_volume(path) for path in (*case.images, case.label)])
    files = sorted({path for case in cases for path in (*case.images, case.label)})
    choices = {name: value for name, value in vars(settings).items() if (name, value) != ("foreground", None)}
    identity = {
        **choices,
        "source": source.resolve(),
        "files": {str(p.relative_to(source)): p.stat().st_size for p in files},
    }
    dataset = RawDataset(folders.raw, folder_name, identity)
    fresh = not dataset.staged.complete
    if fresh:
        signatures = [
            of_image
            for case in progress(cases, "patches")
            for of_image in _write_case(dataset, case, settings.foreground)
        ]
        groups = _groups(cases, find_relations(signatures))
        facts = {"layout": source_files.layout, "left_out": source_files.unpaired, **groups}
        dataset.finish(
            channels=channels,
            foreground="structure",
            description="annotated light-sheet patches, foreground > 0",
            facts=facts,
        )
    manifest = dataset.staged.manifest()
    splits_file = folders.preprocessed / folder_name / "splits_final.json"
    if fresh or not splits_file.is_file():  # folds that a user has changed since are left alone
        splits_file.parent.mkdir(parents=True, exist_ok=True)
        structures = {case.name: case.structure.prefix for case in cases}
        write_json(splits_file, make_splits(structures, manifest["groups"], settings.folds, settings.seed))
    return manifest


def _write_case(dataset: RawDataset, case: AnnotatedCase, foreground: int | None) -> list[Signature]:
    """Write a case unless an earlier run has written it; returns the signatures of its images."""
    read = [read_image(open_volume(path), case.structure) for path in case.images]
    if not dataset.staged.has(case.name):
        mask, label_facts = read_label(open_volume(case.label), foreground)
        record = {
            "structure": case.structure.prefix,
            "group": case.group,
            "spacing_zyx": list(case.spacing_zyx),
            "images": [facts_as_json(facts) for _, facts in read],
            "label": facts_as_json(label_facts),
        }
        dataset.write(case.name, [image for image, _ in read], mask, case.spacing_zyx, record)
    return [signature(case.name, image) for image, _ in read]


def _groups(cases: Sequence[AnnotatedCase], relations: Sequence[Relation]) -> dict[str, Any]:
    """Entries of the manifest: case to group after related patches were joined, and the relations between groups of different names."""
    named = {case.name: case.group for case in cases}
    unexpected = [r for r in relations if named[r.first] != named[r.second]]
    return {
        "groups": joined_groups(named, [(r.first, r.second) for r in unexpected]),
        "related_patches": [vars(relation) for relation in unexpected],
    }

"""Annotated patches to a nnU-Net dataset with manifest and folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.checks import as_json, check_equal_shapes, read_image, read_label
from nnunet_selma.conversion.layouts import FoundPatches, Patch, VesselChannels, find_patches
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
    layout: str | None = None
    """Layout of the source: bioimage_archive, challenge_zip or delivr; None: detected."""
    leave_out_unpaired: bool = False
    """Leave out raw files without ground truth and the reverse, and list them, instead of stopping."""
    folds: int = 5
    """Number of cross-validation folds."""
    seed: int = 0
    """Seed of the folds."""

    def __post_init__(self) -> None:
        """Refuse what gives no cross-validation."""
        if self.folds < 2:
            raise SelmaError(f"--folds {self.folds}: cross-validation needs at least 2")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of the dataset: its files in channel order, and the group that must share a fold."""

    name: str
    structure: Structure
    group: str
    images: tuple[Path, ...]
    label: Path
    spacing_zyx: SpacingUm


def plan_cases(patches: Sequence[Patch], settings: AnnotatedSettings) -> tuple[list[Case], list[str]]:
    """The cases that patches become, and the names of the input channels.

    Raises:
        SelmaError: a channel that was asked for is not there, or cases would differ in their number of channels.
    """
    spacing = settings.spacing or default_spacing([patch.structure for patch in patches])
    cases: list[Case] = []
    for patch in patches:
        stains = patch.structure.channels
        size = spacing_of(patch.structure, spacing)
        for suffix, channels in _channel_sets(patch, settings.vessel_channels):
            for channel in channels:
                if channel not in patch.images:
                    raise SelmaError(
                        f"{patch.label}: the raw image of channel {stains[channel]} (_{channel:04d}) is missing; "
                        "add it, or choose --vessel-channels separate"
                    )
            cases.append(
                Case(
                    name=patch.name + suffix,
                    structure=patch.structure,
                    group=patch.group,
                    images=tuple(patch.images[channel] for channel in channels),
                    label=patch.label,
                    spacing_zyx=size,
                )
            )
    counts = {len(case.images): case for case in cases}
    if len(counts) > 1:
        raise SelmaError(
            "--vessel-channels both gives vessels two input channels, "
            f"but {counts[min(counts)].structure.title} has one: choose --structures blood_vessel, or another --vessel-channels"
        )
    if max(counts, default=1) == 1:
        return cases, ["light sheet"]
    return cases, [cases[0].structure.channels[i] for i in range(max(counts))]


def _channel_sets(patch: Patch, mode: VesselChannels) -> list[tuple[str, tuple[int, ...]]]:
    """(suffix of the case name, channels) of each case a patch becomes."""
    stains = patch.structure.channels
    if len(stains) == 1:
        return [("", (0,))]
    if mode == "separate":
        return [(f"_{stains[channel]}", (channel,)) for channel in patch.images]
    if mode == "both":
        return [("", tuple(stains))]
    return [("", tuple(channel for channel, stain in stains.items() if stain == mode))]


def check_no_problems(source: Path, found: FoundPatches, *, leave_out_unpaired: bool = False) -> None:
    """Raise the first problem of a source as `SelmaError`, and say how many more there are."""
    stopping = found.problems + ([] if leave_out_unpaired else found.unpaired)
    if stopping:
        more = f" ({len(stopping) - 1} more; see: nnunet-selma inspect {source})" if len(stopping) > 1 else ""
        remedy = "" if found.problems else "; add it, or leave such files out with --leave-out-unpaired"
        raise SelmaError(stopping[0] + remedy + more)


def convert_annotated(
    source: Path, settings: AnnotatedSettings, folders: Folders, progress: Progress[Any] = silent
) -> dict[str, Any]:
    """Write a dataset of annotated patches into `folders.raw` and its folds into `folders.preprocessed`; returns the manifest.

    A run that was killed goes on where it stopped; a dataset that is complete is left as it is.

    Raises:
        SelmaError: anything that makes the source or the request unusable; nothing is left that nnU-Net would take for whole.
    """
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    check_free_id(settings.dataset_id, folder_name, (folders.raw, folders.preprocessed, folders.results))
    found = find_patches(source, settings.layout, settings.structures)
    check_no_problems(source, found, leave_out_unpaired=settings.leave_out_unpaired)
    if not found.patches:
        raise SelmaError(f"{source}: no raw image has a ground truth")
    cases, channels = plan_cases(found.patches, settings)
    for case in cases:
        check_equal_shapes({str(path): open_volume(path) for path in (*case.images, case.label)})
    files = sorted({path for case in cases for path in (*case.images, case.label)})
    identity = {
        **vars(settings),
        "source": source.resolve(),
        "files": {str(p.relative_to(source)): p.stat().st_size for p in files},
    }
    dataset = RawDataset(folders.raw, folder_name, identity)
    fresh = not dataset.staged.complete
    if fresh:
        signatures = [_write_case(dataset, case) for case in progress(cases, "patches")]
        together = find_relations([one for ones in signatures for one in ones])
        facts = {"layout": found.layout, "left_out": found.unpaired, **_groups(cases, together)}
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


def _write_case(dataset: RawDataset, case: Case) -> list[Signature]:
    """Convert one case unless it is there already; returns the signatures of its images."""
    read = [read_image(open_volume(path), case.structure) for path in case.images]
    if not dataset.staged.has(case.name):
        mask, label_facts = read_label(open_volume(case.label))
        record = {
            "structure": case.structure.prefix,
            "group": case.group,
            "spacing_zyx": list(case.spacing_zyx),
            "images": [as_json(facts) for _, facts in read],
            "label": as_json(label_facts),
        }
        dataset.write(case.name, [image for image, _ in read], mask, case.spacing_zyx, record)
    return [signature(case.name, image) for image, _ in read]


def _groups(cases: Sequence[Case], relations: Sequence[Relation]) -> dict[str, Any]:
    """Case to group after related patches were joined, and the relations that no name had told."""
    named = {case.name: case.group for case in cases}
    unexpected = [r for r in relations if named[r.first] != named[r.second]]
    return {
        "groups": joined_groups(named, [(r.first, r.second) for r in unexpected]),
        "related_patches": [vars(relation) for relation in unexpected],
    }

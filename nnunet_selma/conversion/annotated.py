"""Annotated patches become a nnU-Net dataset with manifest and folds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nnunet_selma.conversion.annotated_sources import find_patches, patches_of_folders
from nnunet_selma.conversion.channels import (
    VesselChannels,
    channel_sets,
    check_equal_counts,
    check_stains,
    input_channels,
    numbered_within,
    stain_names,
    stained_files,
)
from nnunet_selma.conversion.checks import check_belonging, check_several_slices, facts_as_json, open_label, read_patch
from nnunet_selma.conversion.groups import given_groups
from nnunet_selma.conversion.layouts import FoundPatches, Patch
from nnunet_selma.conversion.raw_dataset import RawDataset, check_free_id, dataset_folder_name
from nnunet_selma.conversion.relatives import Relation, Signature, find_relations, signature
from nnunet_selma.conversion.spacing import Spacing, SpacingSources, WrittenSpacing, default_spacing, spacing_of
from nnunet_selma.conversion.splits import joined_groups, make_splits
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.running.fingerprints import fingerprint
from nnunet_selma.running.json_files import write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import Structure, chosen_structure
from nnunet_selma.volumes import Volume, open_volume, parts_of, stem


@dataclass(frozen=True, kw_only=True)
class AnnotatedSettings:
    """Options for converting annotated patches."""

    dataset_id: int = 510
    """Dataset id of nnU-Net."""
    name: str = "SELMA3D"
    """Name of the dataset, after its id."""
    images: Path | None = None
    """Folder of the images of your own patches, instead of a download; each has the name of its label."""
    labels: Path | None = None
    """Folder of their labels: mouse07_left.tif or mouse07_left_mask.tif labels mouse07_left.tif or mouse07_left_0000.tif."""
    structures: tuple[str, ...] = ()
    """Structures to take; empty: all."""
    structure: str | None = None
    """Structure of all patches, one of SELMA3D's or a new name; None: that which their folders name."""
    kind: Literal["spot", "tree"] | None = None
    """Shape of a new structure, which decides the metrics."""
    spacing: Spacing | None = None
    """Voxel size to write: the header's, the true one (of the structure table for a download of SELMA3D, else the header's), 1 voxel, or µm; None: physical, but voxel for several structures of SELMA3D."""
    vessel_channels: VesselChannels = "separate"
    """Channels of stains that have two: only one, both as two input channels, or each as a case."""
    stains: tuple[str, ...] = ()
    """Names of the input channels, in files that end in _0000, _0001, … or inside one file; `header` takes the names in the files; empty: one channel."""
    scene: str | None = None
    """Name or number of the image in files with several, as tiles, positions or series. None: the only one."""
    channel: int | None = None
    """Channel of images with several, from 0, that is taken alone."""
    time: int | None = None
    """Time point of files with several, from 0. None: the only one."""
    layout: Literal["bioimage_archive", "challenge_zip", "delivr"] | None = None
    """Layout of a download of SELMA3D or DELiVR; None: detected."""
    foreground: int | None = None
    """Value of the objects in the ground truths; None: every value above 0."""
    group: str | None = None
    """Patches that share a fold: a CSV file with the columns case and group, or a regular expression that finds the group in the name of a case, as in 'mouse[0-9]+'; None: patches that show the same tissue."""
    leave_out_unpaired: bool = False
    """Leave out raw files without ground truth, and ground truths without raw file, and list them, instead of stopping."""
    folds: int = 5
    """Number of cross-validation folds."""
    seed: int = 0
    """Seed of the folds."""

    def __post_init__(self) -> None:
        """Raise `SelmaError` for options that contradict each other, and for folds that give no cross-validation."""
        if self.folds < 2:
            raise SelmaError(f"folds: {self.folds}; cross-validation needs at least 2")
        if (self.images is None) != (self.labels is None):
            raise SelmaError("images and labels belong together; give both folders")
        if self.kind is not None and self.structure is None:
            raise SelmaError("a kind says what shape a structure has; name the structure, too")
        check_stains(self.stains, self.channel)

    @property
    def chosen_structure(self) -> Structure | None:
        """The structure of all patches; None takes it from their folders."""
        return None if self.structure is None else chosen_structure(self.structure, self.kind)

    def open_image(self, path: Path, channel: int | None = None) -> Volume:
        """Open a file of images, with its channel; raises `SelmaError` for a single slice."""
        channel = self.channel if channel is None else channel
        volume = open_volume(path, scene=self.scene, channel=channel, time=self.time)
        check_several_slices(volume)
        return volume


@dataclass(frozen=True, kw_only=True)
class AnnotatedCase:
    """A case of the dataset and its files."""

    name: str
    structure: Structure | None
    group: str
    """Name of the group whose cases must share a fold."""
    images: tuple[Path, ...]
    """Files of the channels, in order; a file that holds all channels stands there for each."""
    label: Path
    spacing: WrittenSpacing
    """Voxel size to write."""
    tabled: Structure | None = None
    """The structure, if the structure table knows the voxel size."""


def find_annotated(source: Path | None, settings: AnnotatedSettings) -> FoundPatches:
    """Find the patches of a source, or of the folders of images and labels in the settings; raises `SelmaError` as `find_patches`."""
    structure = settings.chosen_structure
    if settings.images is not None and settings.labels is not None:
        if source is not None:
            raise SelmaError(f"{source}: give this folder, or those of images and labels, not both")
        return patches_of_folders(settings.images, settings.labels, structure=structure)
    if source is None:
        raise SelmaError("give a folder with patches", option="your own with --images DIR --labels DIR")
    return find_patches(source, layout=settings.layout, structures=settings.structures, structure=structure)


def plan_cases(patches: Sequence[Patch], settings: AnnotatedSettings) -> tuple[list[AnnotatedCase], list[str]]:
    """The cases that patches become, and the names of the input channels; opens the images, and reads no voxels.

    Raises:
        SelmaError: a channel is missing or has no name, cases would differ in their number of channels, or no source states a voxel size.
    """
    sources = [_spacing_sources(patch, settings) for patch in patches]
    spacing = settings.spacing or default_spacing(sources)
    cases: list[AnnotatedCase] = []
    for patch, sizes in zip(patches, sources, strict=True):
        for suffix, images in _images_of_cases(patch, settings):
            cases.append(
                AnnotatedCase(
                    name=patch.name + suffix,
                    structure=patch.structure,
                    group=patch.group,
                    images=images,
                    label=patch.label,
                    spacing=spacing_of(sizes, spacing),
                    tabled=patch.tabled,
                )
            )
    if settings.stains:
        return cases, stain_names(settings.stains, [case.images[0] for case in cases], settings.scene)
    check_equal_counts(case.images for case in cases)
    return cases, input_channels(cases[0].tabled, len(cases[0].images)) if cases else ["light sheet"]


def _spacing_sources(patch: Patch, settings: AnnotatedSettings) -> SpacingSources:
    path, channel = numbered_within(channel_files(patch, settings))[0]
    volume = settings.open_image(path, channel)
    return SpacingSources(
        name=str(path), structure=patch.structure, in_layout=patch.in_layout, header_um_zyx=volume.spacing_um_zyx
    )


def channel_files(patch: Patch, settings: AnnotatedSettings) -> tuple[Path, ...]:
    """Files of the channels of a patch; a file that holds all channels stands there for each."""
    files = tuple(patch.images.values())
    return stained_files(files, settings.stains, settings.scene) if settings.stains else files


def _images_of_cases(patch: Patch, settings: AnnotatedSettings) -> list[tuple[str, tuple[Path, ...]]]:
    """For each case of a patch the end of its name, and the files of its channels."""
    if settings.stains:
        return [("", channel_files(patch, settings))]
    stains = patch.tabled.channels if patch.tabled else {0: "signal"}
    if nameless := sorted(patch.images.keys() - stains.keys()):
        raise SelmaError(
            f"{patch.images[nameless[0]]}: is channel {nameless[0]}; name all channels with --stains, in their order"
        )
    separate = len(stains) > 1 and settings.vessel_channels == "separate"
    cases = []
    for channels in channel_sets(stains, patch.images, settings.vessel_channels):
        for channel in channels:
            if channel not in patch.images:
                raise SelmaError(
                    f"{patch.label}: the raw image of channel {stains[channel]} (_{channel:04d}) is missing; add it",
                    option="choose --vessel-channels separate",
                )
        suffix = f"_{stains[channels[0]]}" if separate else ""
        cases.append((suffix, tuple(patch.images[channel] for channel in channels)))
    return cases


def check_no_problems(source: Path, files: FoundPatches, *, leave_out_unpaired: bool = False) -> None:
    """Raise `SelmaError` with the first problem of a source, and the number of further ones."""
    problems = files.problems + ([] if leave_out_unpaired else files.unpaired)
    if problems:
        more = f" ({len(problems) - 1} more; see: nnunet-selma inspect {source})" if len(problems) > 1 else ""
        if files.problems:
            raise SelmaError(problems[0] + more)
        raise SelmaError(f"{problems[0]}; add it{more}", option="leave such files out with --leave-out-unpaired")


def convert_annotated(
    source: Path | None, settings: AnnotatedSettings, folders: Folders, progress: Progress[Any] = silent
) -> dict[str, Any]:
    """Write a dataset of annotated patches into `folders.raw` and its folds into `folders.preprocessed`; returns the manifest.

    The next run continues one that was killed, and leaves a complete dataset as it is.

    Args:
        source: a download, or any folder with images and labels in folders that are recognised; None for those in the settings.
        settings: choice of patches, channels and voxel size.
        folders: nnU-Net's folders.
        progress: shows the patches.

    Raises:
        SelmaError: the source or the settings cannot be used; no dataset remains that nnU-Net would take for whole.
    """
    folder_name = dataset_folder_name(settings.dataset_id, settings.name)
    check_free_id(settings.dataset_id, folder_name, folders)
    source_files = find_annotated(source, settings)
    place = source or settings.images or Path()
    check_no_problems(place, source_files, leave_out_unpaired=settings.leave_out_unpaired)
    if not source_files.patches:
        raise SelmaError(f"{place}: no raw image has a ground truth")
    patches = _grouped(source_files.patches, settings.group)
    if settings.group is not None and len({patch.group for patch in patches}) == 1:
        raise SelmaError(
            f"{place}: all {counted(len(patches), 'patch', 'patches')} are one group, which no fold may part"
        )
    cases, channels = plan_cases(patches, settings)
    for case in cases:
        images = [settings.open_image(*image) for image in numbered_within(case.images)]
        check_belonging([*images, open_label(case.label)])
    files = sorted({path for case in cases for path in (*case.images, case.label)})
    identity = {
        **vars(settings),
        "source": place.resolve(),
        "files": {str(path): fingerprint(*parts_of(path, settings.scene)) for path in files},
    }
    dataset = RawDataset(folders.raw, folder_name, identity, in_um=cases[0].spacing.unit == "µm")
    fresh = not dataset.staged.complete
    if fresh:
        signatures = [
            of_image for case in progress(cases, "patches") for of_image in _write_case(dataset, case, settings)
        ]
        groups = _groups(cases, find_relations(signatures))
        facts = {
            "layout": source_files.layout,
            "left_out": source_files.unpaired,
            "passed_by": [vars(group) for group in source_files.passed_by],
            "spacing": sorted({str(case.spacing) for case in cases}),
            **groups,
        }
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
        structures = {case.name: case.structure.prefix if case.structure else "" for case in cases}
        write_json(splits_file, make_splits(structures, manifest["groups"], settings.folds, settings.seed))
    return manifest


def _grouped(patches: Sequence[Patch], group: str | None) -> list[Patch]:
    """The patches with the groups that the user gives."""
    if group is None:
        return list(patches)
    names = {
        patch.name: [patch.name, *(stem(path) for path in (patch.label, *patch.images.values()))] for patch in patches
    }
    groups = given_groups(group, names)
    return [replace(patch, group=groups[patch.name]) for patch in patches]


def _write_case(dataset: RawDataset, case: AnnotatedCase, settings: AnnotatedSettings) -> list[Signature]:
    """Write a case unless an earlier run has written it; returns the signatures of its images."""
    images = [settings.open_image(*image) for image in numbered_within(case.images)]
    read, (mask, label_facts) = read_patch(images, open_label(case.label), case.tabled, settings.foreground)
    if not dataset.staged.has(case.name):
        record = {
            "structure": case.structure.prefix if case.structure else None,
            "group": case.group,
            "spacing_zyx": list(case.spacing.size_zyx),
            "images": [facts_as_json(facts) for _, facts in read],
            "label": facts_as_json(label_facts),
        }
        dataset.write(case.name, [image for image, _ in read], mask, case.spacing.size_zyx, record)
    return [signature(case.name, image) for image, _ in read]


def _groups(cases: Sequence[AnnotatedCase], relations: Sequence[Relation]) -> dict[str, Any]:
    """Entries of the manifest: case to group after related patches were joined, and the relations between groups of different names."""
    named = {case.name: case.group for case in cases}
    unexpected = [r for r in relations if named[r.first] != named[r.second]]
    return {
        "groups": joined_groups(named, [(r.first, r.second) for r in unexpected]),
        "related_patches": [vars(relation) for relation in unexpected],
    }

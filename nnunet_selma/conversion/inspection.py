"""Looking at a folder before anything is written: what it holds, which command takes it, and what would stop a conversion."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.conversion.annotated import AnnotatedSettings, channel_files, plan_cases
from nnunet_selma.conversion.annotated_sources import find_patches
from nnunet_selma.conversion.channels import numbered_within
from nnunet_selma.conversion.checks import (
    MASK_BY_VALUES,
    ImageFacts,
    LabelFacts,
    image_facts,
    is_mask,
    open_label,
    read_patch,
)
from nnunet_selma.conversion.file_contents import FileContents, contents_of, sentences
from nnunet_selma.conversion.layouts import Patch
from nnunet_selma.conversion.relatives import Relation, Signature, find_relations, signature
from nnunet_selma.conversion.spacing import SpacingSources, default_spacing, spacing_of
from nnunet_selma.conversion.unannotated import UnannotatedSettings
from nnunet_selma.conversion.volume_tree import NothingFoundError, UnlabelledVolume
from nnunet_selma.conversion.walk import Entry, PassedBy, passed_by, walk
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import Structure
from nnunet_selma.volumes import Choice, Volume, check_exists
from nnunet_selma.volumes.lost_chunks import lost_chunks

_SAMPLED_SLICES = 8
_OPTIONS = (
    "--structure",
    "--spacing",
    "--stains",
    "--scene",
    "--channel",
    "--time",
    "--level",
    "--slice-pattern",
    "--on-bad-slice",
)
"""Options of `inspect` that an error may recommend."""


@dataclass(kw_only=True)
class Inspection:
    """Findings in a folder."""

    source: str
    layout: str | None = None
    """Layout of the annotated patches; None where there are none."""
    patches: dict[str, tuple[list[ImageFacts], LabelFacts]] = field(default_factory=dict)
    """Annotated patch to the facts about its images and its label."""
    volumes: dict[str, list[ImageFacts]] = field(default_factory=dict)
    """Unannotated volume to the facts about its channels."""
    contents: dict[str, FileContents] = field(default_factory=dict)
    """File to the images within it, where they are several or have levels."""
    orders: dict[str, str] = field(default_factory=dict)
    """Unannotated volume of slices to the rule that orders them."""
    sampled: bool = True
    """True if the intensities of volumes are those of a few slices."""
    relations: list[Relation] = field(default_factory=list)
    """Related patches whose names do not tell that they are."""
    passed_by: list[PassedBy] = field(default_factory=list)
    """Entries that no conversion takes."""
    problems: list[str] = field(default_factory=list)
    """Sentences; each would stop a conversion."""
    warnings: list[str] = field(default_factory=list)
    """Sentences; none would stop a conversion."""
    plans: list[str] = field(default_factory=list)
    """Sentences about the commands that would take what is there."""

    def as_json(self) -> dict[str, Any]:
        """The whole inspection as plain values."""
        return asdict(self)


def inspect(
    source: Path,
    settings: UnannotatedSettings | None = None,
    progress: Progress[Any] = silent,
    *,
    full: bool = False,
) -> Inspection:
    """Read every annotated patch, and a sample of every unannotated volume, below a folder; writes nothing.

    Args:
        source: the download, or any folder or file of it.
        settings: structure, voxel size, channel and level of unannotated volumes.
        progress: shows patches and volumes.
        full: read unannotated volumes whole.

    Raises:
        SelmaError: there is no such file or folder.
    """
    settings = settings or UnannotatedSettings()
    result = Inspection(source=str(source), sampled=not full)
    check_exists(source)
    entries = walk(source, settings.slice_pattern)
    patches = _inspect_patches(result, source, settings, entries, progress)
    used = {path for patch in patches for path in (*patch.images.values(), patch.label)}
    try:
        volumes = settings.find(source, entries)
    except NothingFoundError as error:
        volumes = []
        if not result.patches and not result.problems:
            result.problems.append(error.for_command(_OPTIONS))
    except SelmaError as error:
        volumes = []
        result.problems.append(error.for_command(_OPTIONS))
    masks = _inspect_volumes(result, volumes, settings, progress, full=full)
    if any(entry.fate == "mask" and entry.path not in used for entry in entries):
        result.warnings.append(
            "some masks or labels belong to no image by their names; if they label images, give both folders: nnunet-selma convert annotated "
            "--images DIR --labels DIR"
        )
    result.passed_by = passed_by([*(entry for entry in entries if entry.path not in used), *masks])
    return result


def _inspect_patches(
    result: Inspection, source: Path, settings: UnannotatedSettings, entries: Sequence[Entry], progress: Progress[Any]
) -> list[Patch]:
    """Add findings about annotated patches to the result; returns the patches."""
    chosen = {name: getattr(settings, name) for name in ("structure", "spacing", "stains", "scene", "channel", "time")}
    annotated = AnnotatedSettings(**chosen)
    if not any(entry.fate in ("annotated", "mask") for entry in entries):
        return []
    try:
        files = find_patches(source, structure=annotated.chosen_structure, entries=entries)
    except SelmaError:  # masks that belong to no patches
        return []
    result.layout = files.layout
    result.problems += files.problems + files.unpaired
    signatures: list[Signature] = []
    whole = []
    for patch in progress(files.patches, "patches"):
        try:
            _add_contents(result, next(iter(patch.images.values())), settings)
            signatures += _inspect_patch(result, patch, annotated)
            whole.append(patch)
        except SelmaError as error:
            result.problems.append(error.for_command(_OPTIONS))
    datasets = {d for patch in whole if (d := _nnunet_dataset(patch)) is not None}
    result.plans += [
        f"use {d.name} as it is: a dataset that nnU-Net has already needs no conversion" for d in sorted(datasets)
    ]
    groups = {patch.name: patch.group for patch in whole}
    result.relations = [r for r in find_relations(signatures) if groups[r.first] != groups[r.second]]
    result.warnings += [f"{r.first} and {r.second}: {r.reason}; they will share a fold" for r in result.relations]
    try:
        cases, channels = plan_cases([patch for patch in whole if _nnunet_dataset(patch) is None], annotated)
        if not cases:
            return files.patches
        kinds = sorted({case.structure.title if case.structure else "an unnamed structure" for case in cases})
        sizes = "; ".join(sorted({str(case.spacing) for case in cases}))
        result.plans.append(
            f"convert annotated: {counted(len(cases), 'case')} of {', '.join(kinds)}, {counted(len(channels), 'input channel')}, "
            f"voxel size {sizes}, {counted(len({case.group for case in cases}), 'group')} that no fold parts"
        )
    except SelmaError as error:
        result.problems.append(error.for_command(_OPTIONS))
    return files.patches


def _nnunet_dataset(patch: Patch) -> Path | None:
    """Folder of the raw nnU-Net dataset that a patch belongs to; None for other patches."""
    folder = patch.label.parent.parent
    return folder if patch.label.parent.name == "labelsTr" and (folder / "dataset.json").is_file() else None


def _add_contents(result: Inspection, path: Path, settings: UnannotatedSettings) -> None:
    """Add the images within a file to the result, unless it is a plain volume."""
    if str(path) in result.contents:
        return
    choice = Choice(scene=settings.scene, channel=settings.channel, time=settings.time)
    contents = contents_of(path, choice, settings.slice_pattern)
    if not contents.is_plain:
        result.contents[str(path)] = contents


def _inspect_patch(result: Inspection, patch: Patch, settings: AnnotatedSettings) -> list[Signature]:
    """Add the facts about a patch to the result; returns the signatures of its images."""
    images = [settings.open_image(*image) for image in numbered_within(channel_files(patch, settings))]
    read, (_, label_facts) = read_patch(images, open_label(patch.label), patch.tabled)
    result.patches[patch.name] = ([facts for _, facts in read], label_facts)
    result.warnings += [f"{facts.file}: {warning}" for _, facts in read for warning in facts.warnings]
    result.warnings += [f"{label_facts.file}: {warning}" for warning in label_facts.warnings]
    return [signature(patch.name, image) for image, _ in read]


def _inspect_volumes(
    result: Inspection,
    volumes: list[UnlabelledVolume],
    settings: UnannotatedSettings,
    progress: Progress[Any],
    *,
    full: bool,
) -> list[Entry]:
    """Add findings about unannotated volumes to the result; returns those that are masks."""
    masks: list[Entry] = []
    sources: list[SpacingSources] = []
    for volume in progress(volumes, "volumes"):
        try:
            _add_contents(result, volume.channels[0], settings)
            channels = [settings.open(*channel) for channel in numbered_within(volume.channels)]
            if is_mask(channels[0]):
                masks.append(Entry(volume.channels[0], "mask", MASK_BY_VALUES))
                continue
            if channels[0].order:
                result.orders[volume.name] = channels[0].order
            sources.append(settings.spacing_sources(volume, channels[0]))
            result.volumes[volume.name] = [
                _facts(channel, volume.tabled, channel.shape[0] if full else _SAMPLED_SLICES) for channel in channels
            ]
            result.warnings += [lost for channel in channels if (lost := lost_chunks(channel))]
            for facts in result.volumes[volume.name]:
                result.warnings += [f"{facts.file}: {warning}" for warning in facts.warnings]
        except SelmaError as error:
            result.problems.append(error.for_command(_OPTIONS))
    if result.volumes:
        voxels = sum(int(np.prod(facts[0].shape_zyx)) for facts in result.volumes.values())
        sizes = _voxel_sizes(result, sources, settings)
        result.plans.append(
            f"convert unannotated: tiles from {counted(len(result.volumes), 'volume')}, {voxels:,} voxels, voxel size {sizes}"
        )
        if any(volume.structure is None for volume in volumes):
            result.warnings.append("no folder name tells the structure of some volumes; say it with --structure")
    return masks


def _voxel_sizes(result: Inspection, sources: Sequence[SpacingSources], settings: UnannotatedSettings) -> str:
    """The voxel sizes to write, for a sentence; those that are not known become problems."""
    spacing = settings.spacing or default_spacing(sources)
    sizes, problems = set(), []
    for of_volume in sources:
        try:
            sizes.add(str(spacing_of(of_volume, spacing)))
        except SelmaError as error:
            problems.append(error.for_command(_OPTIONS))
            sizes.add("not known")
    if problems:
        more = f" ({counted(len(problems) - 1, 'more volume')} likewise)" if len(problems) > 1 else ""
        result.problems.append(problems[0] + more)
    return "; ".join(sorted(sizes))


def _facts(volume: Volume, structure: Structure | None, count: int) -> ImageFacts:
    """Facts about a number of slices, one in memory at a time; the range of the whole volume may be wider."""
    rows = np.unique(np.linspace(0, volume.shape[0] - 1, count).astype(int))
    slices = [image_facts(volume.read(slice(z, z + 1)), volume, structure) for z in rows]
    lowest, highest = min(facts.lowest for facts in slices), max(facts.highest for facts in slices)
    warnings = {warning for facts in slices for warning in facts.warnings}
    return replace(
        slices[0],
        lowest=lowest,
        highest=highest,
        saturated_share=float(np.mean([facts.saturated_share for facts in slices])),
        # a slice of a single value is usual, a volume is not
        warnings=sorted(w for w in warnings if lowest == highest or not w.startswith("all voxels")),
    )


def as_text(result: Inspection) -> str:
    """The inspection as a page to read: a row for each file, then plans, warnings and problems."""
    lines = [result.source + (f" (layout {result.layout})" if result.layout else "")]
    width = max([len(name) for name in (*result.patches, *result.volumes)], default=0) + 2
    header = f"{'':<{width}}{'shape z,y,x':>18}  {'dtype':<9}{'intensities':>16}{'saturated':>11}  spacing, µm (z, y, x): header | table"
    if result.patches:
        lines.append(header + "   label values, foreground")
    for name, (images, label) in result.patches.items():
        of_label = f"   {','.join(label.values)}, {label.foreground_share:.3%}"
        lines += [_row(name, facts, width) + of_label for facts in images]
    if result.volumes:
        lines.append(header)
    for name, images in result.volumes.items():
        lines += [_row(name, facts, width) for facts in images]
        if name in result.orders:
            lines.append(f"{'':<{width}}{result.orders[name]}")
    if result.volumes and result.sampled:
        lines.append(f"intensities are those of {_SAMPLED_SLICES} slices of each volume; --full reads all")
    for file, contents in result.contents.items():
        lines += [f"{file}: {sentence}" for sentence in sentences(contents)]
    lines += [f"would {plan}" for plan in result.plans]
    lines += [f"passed by: {sentence}" for sentence in result.passed_by]
    lines += [f"warning: {sentence}" for sentence in result.warnings]
    lines += [f"PROBLEM: {sentence}" for sentence in result.problems]
    return "\n".join(
        [
            *lines,
            f"{counted(len(result.problems), 'problem')}, {counted(len(result.warnings), 'warning')}, "
            f"{counted(sum(group.files for group in result.passed_by), 'file')} passed by",
        ]
    )


def _row(name: str, facts: ImageFacts, width: int) -> str:
    shape = "×".join(map(str, facts.shape_zyx))
    header, table = (
        " × ".join(f"{size:g}" for size in spacing) if spacing else "–"
        for spacing in (facts.header_spacing_um_zyx, facts.table_spacing_um_zyx)
    )
    intensities = f"{facts.lowest:g}..{facts.highest:g}"
    return f"{name:<{width}}{shape:>18}  {facts.dtype:<9}{intensities:>16}{facts.saturated_share:>11.3%}  {header} | {table}"

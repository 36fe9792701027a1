"""The doctor: the content of a folder, and the conversion it would allow; nothing is written."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.conversion.annotated import AnnotatedSettings, plan_cases
from nnunet_selma.conversion.checks import (
    ImageFacts,
    LabelFacts,
    check_equal_shapes,
    image_facts,
    read_image,
    read_label,
)
from nnunet_selma.conversion.layouts import Patch, find_patches
from nnunet_selma.conversion.relatives import Relation, Signature, find_relations, signature
from nnunet_selma.conversion.unannotated import UnannotatedSettings
from nnunet_selma.conversion.volume_tree import NothingFoundError, UnlabelledVolume, find_volumes, is_raw_of_patches
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import Structure
from nnunet_selma.volumes import Volume, check_exists, open_volume

_SAMPLED_SLICES = 8


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
    relations: list[Relation] = field(default_factory=list)
    """Related patches whose names do not tell that they are."""
    problems: list[str] = field(default_factory=list)
    """Sentences; each would stop a conversion."""
    warnings: list[str] = field(default_factory=list)
    """Sentences; none would stop a conversion."""
    plans: list[str] = field(default_factory=list)
    """Sentences about the datasets that the converters would write."""

    def as_json(self) -> dict[str, Any]:
        """The whole inspection as plain values."""
        return asdict(self)


def inspect(source: Path, settings: UnannotatedSettings | None = None, progress: Progress[Any] = silent) -> Inspection:
    """Read every annotated patch, and a sample of every unannotated volume, below a folder; writes nothing.

    Args:
        source: the download, or any folder or file of it.
        settings: structure, channel and level of unannotated volumes.
        progress: shows patches and volumes.

    Raises:
        SelmaError: there is no such file or folder.
    """
    settings = settings or UnannotatedSettings()
    result = Inspection(source=str(source))
    check_exists(source)
    folders = [p for p in [source, *source.rglob("*")] if p.is_dir()] if source.is_dir() else []
    has_patches = any(folder.name.lower() == "gt" or is_raw_of_patches(folder) for folder in folders)
    paired = _inspect_patches(result, source, progress) if has_patches else set()
    try:
        volumes = [v for v in find_volumes(source, structure=settings.structure) if not paired & set(v.channels)]
    except NothingFoundError as error:
        volumes = []
        if not has_patches:
            result.problems.append(str(error))
    except SelmaError as error:
        volumes = []
        result.problems.append(str(error))
    _inspect_volumes(result, volumes, settings, progress)
    return result


def _inspect_patches(result: Inspection, source: Path, progress: Progress[Any]) -> set[Path]:
    """Add findings about annotated patches to the result; returns the images that have a label."""
    try:
        files = find_patches(source)
    except SelmaError as error:
        result.problems.append(str(error))
        return set()
    result.layout = files.layout
    result.problems += files.problems + files.unpaired
    signatures: list[Signature] = []
    groups = {}
    for patch in progress(files.patches, "patches"):
        try:
            signatures += _inspect_patch(result, patch)
            groups[patch.name] = patch.group
        except SelmaError as error:
            result.problems.append(str(error))
    result.relations = [r for r in find_relations(signatures) if groups[r.first] != groups[r.second]]
    result.warnings += [f"{r.first} and {r.second}: {r.reason}; they will share a fold" for r in result.relations]
    try:
        cases, channels = plan_cases(files.patches, AnnotatedSettings())
        kinds = sorted({case.structure.title for case in cases})
        unit = "the table's spacing in µm" if len(kinds) == 1 else "voxel units, because structures differ in spacing"
        result.plans.append(
            f"convert annotated: {len(cases)} cases of {', '.join(kinds)}, {len(channels)} input channel(s), {unit}, "
            f"{len(set(groups.values()))} groups that no fold parts"
        )
    except SelmaError as error:
        result.problems.append(str(error))
    return {path for patch in files.patches for path in patch.images.values()}


def _inspect_patch(result: Inspection, patch: Patch) -> list[Signature]:
    """Add the facts about a patch to the result; returns the signatures of its images."""
    *images, label = (open_volume(path) for path in (*patch.images.values(), patch.label))
    check_equal_shapes([*images, label])
    read = [read_image(volume, patch.structure) for volume in images]
    _, label_facts = read_label(label)
    result.patches[patch.name] = ([facts for _, facts in read], label_facts)
    result.warnings += [f"{facts.file}: {warning}" for _, facts in read for warning in facts.warnings]
    result.warnings += [f"{label_facts.file}: {warning}" for warning in label_facts.warnings]
    return [signature(patch.name, image) for image, _ in read]


def _inspect_volumes(
    result: Inspection, volumes: list[UnlabelledVolume], settings: UnannotatedSettings, progress: Progress[Any]
) -> None:
    """Add findings about unannotated volumes to the result."""
    for volume in progress(volumes, "volumes"):
        try:
            channels = [settings.open(path) for path in volume.channels]
            result.volumes[volume.name] = [_sampled_facts(channel, volume.structure) for channel in channels]
            for facts in result.volumes[volume.name]:
                result.warnings += [f"{facts.file}: {warning}" for warning in facts.warnings]
        except SelmaError as error:
            result.problems.append(str(error))
    if result.volumes:
        voxels = sum(int(np.prod(facts[0].shape_zyx)) for facts in result.volumes.values())
        result.plans.append(
            f"convert unannotated: tiles from {len(result.volumes)} volumes, {voxels / 1e9:.2f} billion voxels"
        )
        if any(volume.structure is None for volume in volumes):
            result.warnings.append("no folder name tells the structure of some volumes; say it with --structure")


def _sampled_facts(volume: Volume, structure: Structure | None) -> ImageFacts:
    """Facts about a few slices, one in memory at a time; the range of the whole volume may be wider."""
    rows = np.unique(np.linspace(0, volume.shape[0] - 1, _SAMPLED_SLICES).astype(int))
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
    lines += [_row(name, facts, width) for name, images in result.volumes.items() for facts in images]
    lines += [f"would {plan}" for plan in result.plans]
    lines += [f"warning: {sentence}" for sentence in result.warnings]
    lines += [f"PROBLEM: {sentence}" for sentence in result.problems]
    return "\n".join([*lines, f"{len(result.problems)} problems, {len(result.warnings)} warnings"])


def _row(name: str, facts: ImageFacts, width: int) -> str:
    shape = "×".join(map(str, facts.shape_zyx))
    header, table = (
        " × ".join(f"{size:g}" for size in spacing) if spacing else "–"
        for spacing in (facts.header_spacing_um_zyx, facts.table_spacing_um_zyx)
    )
    intensities = f"{facts.lowest:g}..{facts.highest:g}"
    return f"{name:<{width}}{shape:>18}  {facts.dtype:<9}{intensities:>16}{facts.saturated_share:>11.3%}  {header} | {table}"

"""The data of a challenge in miniature: what is annotated, what is unlabelled, and what is tested, in trees that the converters take.

As in SELMA3D 2024: c-Fos+ cells are fine-tuned on and tested, microglia are tested and never fine-tuned on. Cubes are never parted: every
second one of these two structures is a test cube, and no voxel of it is trained on, not even without its label.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from nnunet_selma.conversion.annotated import check_no_problems
from nnunet_selma.conversion.annotated_sources import find_patches
from nnunet_selma.conversion.checks import read_patch
from nnunet_selma.conversion.layouts import Patch
from nnunet_selma.conversion.raw_dataset import write_nifti
from nnunet_selma.conversion.relatives import Signature, find_relations, signature
from nnunet_selma.conversion.volume_tree import find_volumes
from nnunet_selma.demo.drawing import Drawing, draw_data
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.running.json_files import write_json
from nnunet_selma.structures import Structure, find_structure, named
from nnunet_selma.volumes import is_volume, open_volume

SEEN, UNSEEN = "cfos_neuron", "microglia"
_NUMBER = re.compile(r"^patchvolume_(\d+)")
_ORIGINS = "origins.json"
_PATCH_SIZED = 300**3


@dataclass(frozen=True, kw_only=True)
class ChallengeData:
    """Folders of a challenge, and the size and number of tiles."""

    annotated: Path
    """Annotated patches, a source for `convert annotated`."""
    unlabelled: Path
    """Unlabelled volumes, a source for `convert unannotated`."""
    images: Path
    """Test images, `<case>_0000.nii.gz`."""
    references: Path
    """Ground truths of the test images, `<case>.nii.gz`."""
    tile: int
    """Edge of a tile, voxels."""
    tiles_per_volume: int
    """Tiles to choose from one volume."""

    @classmethod
    def below(cls, root: Path, *, tile: int, tiles_per_volume: int) -> "ChallengeData":
        """The folders that `arrange` and `draw` make below a folder."""
        return cls(
            annotated=root / "annotated",
            unlabelled=root / "unlabelled",
            images=root / "test" / "images",
            references=root / "test" / "references",
            tile=tile,
            tiles_per_volume=tiles_per_volume,
        )


def arrange(
    sources: Sequence[Path],
    unlabelled: Sequence[Path],
    root: Path,
    *,
    test_patches: int | None,
    tile: int = 96,
    test_groups: Sequence[str] = (),
) -> ChallengeData:
    """Arrange downloads into trees of links, and write the test cases as the converters write theirs.

    Args:
        sources: downloads with annotated patches, each of one layout.
        unlabelled: further volumes, without labels.
        root: where the trees are made, anew.
        test_patches: number of test patches of each structure, the first of each cube in turn; None takes all.
        tile: edge of a tile.
        test_groups: names of the test cubes, as in "microglia_3941"; empty holds out every second one of the two structures.

    Raises:
        SelmaError: no test cubes, unknown ones, a source that holds nothing, or a folder at `root` that is none of ours.
    """
    patches = [patch for source in sources for patch in _patches(source)]
    held_out = set(test_groups) or held_out_groups(patches)
    unknown = held_out - {patch.group for patch in patches}
    if unknown:
        raise SelmaError(f"{', '.join(sorted(unknown))}: no such cube is annotated in {', '.join(map(str, sources))}")
    volumes = [volume for source in unlabelled for volume in find_volumes(source)]
    _make_room(root, [*sources, *unlabelled])
    data = ChallengeData.below(root, tile=tile, tiles_per_volume=1)
    seen = [
        _write_test_case(patch, data)
        for prefix in (SEEN, UNSEEN)
        for patch in _dealt([p for p in patches if p.prefix == prefix and p.group in held_out])[:test_patches]
    ]
    links: dict[Path, Path] = {}
    for number, patch in enumerate(p for p in patches if p.prefix != UNSEEN and p.group not in held_out):
        folder = data.annotated / str((patch.structure and patch.structure.annotated_folder) or patch.prefix)
        for channel, image in patch.images.items():
            links[folder / "raw" / f"patchvolume_{number:04d}_{channel:04d}{_ending(image)}"] = image
        links[folder / "gt" / f"patchvolume_{number:04d}{_ending(patch.label)}"] = patch.label
    for number, source in enumerate(sources):
        for image, structure, group in _raw_images(source):
            if group not in held_out:
                links[data.unlabelled / structure.prefix / f"{number}-{group}-{image.name}"] = image
    for number, volume in enumerate(volumes):
        for channel, path in enumerate(volume.channels):
            folder = data.unlabelled / (volume.structure.prefix if volume.structure else "other")
            links[folder / f"volume-{number}-{channel}-{path.name}"] = path
    _check_unseen(seen, links)
    for link, path in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    write_json(root / _ORIGINS, {str(link): str(path) for link, path in links.items()})
    return data


def _patches(source: Path) -> list[Patch]:
    download = find_patches(source)
    check_no_problems(source, download, leave_out_unpaired=True)
    for patch in download.patches:
        if not patch.in_layout:
            raise SelmaError(f"{patch.label}: the challenge takes patches in the layouts of SELMA3D and DELiVR only")
    return download.patches


def _make_room(root: Path, sources: Sequence[Path]) -> None:
    """Remove what an earlier challenge arranged there; raise `SelmaError` rather than touch anything else."""
    inside = [source for source in sources if source.resolve().is_relative_to(root.resolve())]
    if inside or (root.exists() and any(root.iterdir()) and not (root / _ORIGINS).is_file()):
        raise SelmaError(
            f"{root}: holds something else than what a challenge arranges there; choose another folder with -o"
        )
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("test/images", "test/references"):
        (root / folder).mkdir(parents=True)
    write_json(root / _ORIGINS, {})


def _write_test_case(patch: Patch, data: ChallengeData) -> tuple[str, Signature]:
    """Write image and truth in voxel units, as the training cases are; returns the case and the image's signature."""
    [(image, _)], (mask, _) = read_patch([open_volume(patch.images[0])], open_volume(patch.label), patch.tabled)
    write_nifti(data.images / f"{patch.name}_0000.nii.gz", image, (1.0, 1.0, 1.0))
    write_nifti(data.references / f"{patch.name}.nii.gz", mask, (1.0, 1.0, 1.0))
    return patch.name, signature(patch.name, image)


def _check_unseen(tested: Sequence[tuple[str, Signature]], links: Mapping[Path, Path]) -> None:
    """Raise `SelmaError` if a test image, or a part of one, is also trained on under another name (patch-sized volumes only)."""
    images = {path for link, path in links.items() if link.parent.name != "gt"}
    for path in sorted(images):
        volume = open_volume(path)
        if prod(volume.shape) > _PATCH_SIZED:
            continue
        trained = signature(str(path), volume.read())
        for case, test_image in tested:
            for relation in find_relations([test_image, trained]):
                if "touch" not in relation.reason:
                    raise SelmaError(
                        f"{path}: shows the same tissue as the test case {case} ({relation.reason}); leave that source out"
                    )


def held_out_groups(patches: Sequence[Patch]) -> set[str]:
    """Every second cube (or patch without cube) of the two test structures, by number.

    Raises:
        SelmaError: c-Fos+ cells in fewer than two cubes, or no microglia.
    """
    held_out = set()
    for prefix, least in ((SEEN, 2), (UNSEEN, 1)):
        groups = sorted({p.group for p in patches if p.prefix == prefix}, key=_number)
        if len(groups) < least:
            raise SelmaError(
                f"the challenge needs annotated {named(prefix).title} patches of at least {counted(least, 'cube')}, and found {len(groups)}; "
                "give all downloads that hold them with --data, or leave it out for synthetic ones"
            )
        held_out |= {*(groups[1::2] or groups)}
    return held_out


def _number(group: str) -> int:
    """The number of a cube, at the end of its name."""
    return int(group.rsplit("_", 1)[1])


def _dealt(patches: Sequence[Patch]) -> list[Patch]:
    """The first patch of each cube, then the second of each, and so on."""
    by_group: dict[str, list[Patch]] = {}
    for patch in patches:
        by_group.setdefault(patch.group, []).append(patch)
    turns = range(max(map(len, by_group.values()), default=0))
    return [cube[turn] for turn in turns for cube in by_group.values() if turn < len(cube)]


def _raw_images(source: Path) -> Iterator[tuple[Path, Structure, str]]:
    """Every raw image with its structure and group, annotated or not."""
    for folder in sorted(path for path in source.rglob("*") if path.is_dir() and path.name.lower() == "raw"):
        structure = find_structure(folder.resolve().parent.name)
        for image in sorted(folder.iterdir()):
            match = _NUMBER.match(image.name)
            if structure is not None and match is not None and is_volume(image):
                yield image, structure, f"{structure.prefix}_{int(match[1]):03d}"


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


DRAWING = Drawing(
    annotated={SEEN: 4, "cell_nuclei": 2, "AD_plaques": 2, "blood_vessel": 2},
    tested=(SEEN, UNSEEN),
    brain_shape=(96, 128, 128),
    test_patches=4,
)
"""The synthetic challenge of the command line."""


def draw(
    root: Path, *, seed: int, drawing: Drawing = DRAWING, tile: int = 64, tiles_per_volume: int = 4
) -> ChallengeData:
    """Draw a synthetic challenge, unless it is there already; raises `SelmaError` if the folder holds something else."""
    data = ChallengeData.below(root, tile=tile, tiles_per_volume=tiles_per_volume)
    if not (root / _ORIGINS).is_file():
        _make_room(root, [])
    write_json(root / _ORIGINS, {})  # links that an arranged challenge has left are replaced
    draw_data(data.annotated, data.unlabelled, data.images.parent, drawing, seed)
    return data

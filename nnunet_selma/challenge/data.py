"""The data of a challenge in miniature: what is annotated, what is unlabelled, and what is tested, in trees that the converters take.

As in SELMA3D 2024: c-Fos+ cells are fine-tuned on and tested, microglia are tested and never fine-tuned on. Cubes are never parted: every
second one of these two structures is a test cube, and no voxel of it is trained on, not even without its label.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_selma.conversion.layouts import Patch, find_patches
from nnunet_selma.conversion.volume_tree import find_volumes
from nnunet_selma.errors import SelmaError
from nnunet_selma.json_files import read_json, write_json
from nnunet_selma.structures import Structure, from_name, named
from nnunet_selma.volumes import is_volume

SEEN, UNSEEN = "cfos_neuron", "microglia"
_NUMBER = re.compile(r"^patchvolume_(\d+)")


@dataclass(frozen=True, kw_only=True)
class ChallengeData:
    """Where everything lies, and how tiles are cut."""

    annotated: Path
    """For `convert annotated`."""
    unlabelled: Path
    """For `convert unannotated`."""
    images: Path
    """Test images, `<case>_0000.nii.gz`."""
    references: Path
    """Their truth, `<case>.nii.gz`."""
    tile: int
    tiles_per_volume: int

    @classmethod
    def below(cls, root: Path, *, tile: int, tiles_per_volume: int) -> "ChallengeData":
        """The usual places below a folder."""
        return cls(
            annotated=root / "annotated", unlabelled=root / "unlabelled", images=root / "test" / "images",
            references=root / "test" / "references", tile=tile, tiles_per_volume=tiles_per_volume,
        )  # fmt: skip


def arrange(
    sources: Sequence[Path], unlabelled: Sequence[Path], root: Path, *, test_patches: int | None, tile: int = 96
) -> ChallengeData:
    """Arrange downloads into trees of links.

    Args:
        sources: downloads with annotated patches, each of one layout.
        unlabelled: further volumes, without labels.
        root: where the trees are made, anew.
        test_patches: of each test structure, the first of each cube in turn; None takes all.
        tile: edge of a tile.

    Raises:
        SelmaError: no test cubes, or a source that holds nothing.
    """
    shutil.rmtree(root, ignore_errors=True)
    data = ChallengeData.below(root, tile=tile, tiles_per_volume=1)
    patches = [patch for source in sources for patch in find_patches(source).patches]
    test_groups = held_out_groups(patches)
    origins: dict[str, str] = {}
    for number, patch in enumerate(p for p in patches if p.structure.prefix != UNSEEN and p.group not in test_groups):
        folder = data.annotated / str(patch.structure.annotated_folder or patch.structure.prefix)
        for channel, image in patch.images.items():
            _link(image, folder / "raw" / f"patchvolume_{number:04d}_{channel:04d}{_ending(image)}", origins)
        _link(patch.label, folder / "gt" / f"patchvolume_{number:04d}{_ending(patch.label)}", origins)
    for prefix in (SEEN, UNSEEN):
        tested = [p for p in patches if p.structure.prefix == prefix and p.group in test_groups]
        for patch in _dealt(tested)[:test_patches]:
            _link(patch.images[0], data.images / f"{patch.name}_0000.nii.gz", origins)
            _link(patch.label, data.references / f"{patch.name}.nii.gz", origins)
    for source in sources:
        for image, structure, group in _raw_images(source):
            if group not in test_groups:
                _link(image, data.unlabelled / structure.prefix / f"{group}-{image.name}", origins)
    for source in unlabelled:
        for volume in find_volumes(source):
            for path in volume.channels:
                shown = volume.structure.prefix if volume.structure else "other"
                _link(path, data.unlabelled / shown / f"{source.name}-{path.name}", origins)
    write_json(root / "origins.json", origins)
    return data


def held_out_groups(patches: Sequence[Patch]) -> set[str]:
    """Every second cube (or patch without cube) of the two test structures, by number.

    Raises:
        SelmaError: c-Fos+ cells in fewer than two cubes, or no microglia.
    """
    held_out = set()
    for prefix, least in ((SEEN, 2), (UNSEEN, 1)):
        groups = sorted({(p.number, p.group) for p in patches if p.structure.prefix == prefix})
        if len(groups) < least:
            raise SelmaError(
                f"the challenge needs annotated {named(prefix).title} patches of at least {least} cube(s), and found {len(groups)}; "
                "give all downloads that hold them with --data, or leave it out for synthetic ones"
            )
        held_out |= {group for _, group in groups[1::2] or groups}
    return held_out


def _dealt(patches: Sequence[Patch]) -> list[Patch]:
    """The first patch of each cube, then the second of each, and so on."""
    by_group: dict[str, list[Patch]] = {}
    for patch in patches:
        by_group.setdefault(patch.group, []).append(patch)
    turns = range(max((len(of) for of in by_group.values()), default=0))
    return [of[turn] for turn in turns for of in by_group.values() if turn < len(of)]


def _raw_images(source: Path) -> Iterator[tuple[Path, Structure, str]]:
    """Every raw image with its structure and group, annotated or not."""
    for folder in sorted(path for path in source.rglob("*") if path.is_dir() and path.name.lower() == "raw"):
        structure = from_name(folder.resolve().parent.name)
        for image in sorted(folder.iterdir()):
            match = _NUMBER.match(image.name)
            if structure is not None and match is not None and is_volume(image):
                yield image, structure, f"{structure.prefix}_{int(match[1]):03d}"


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def _link(path: Path, link: Path, origins: dict[str, str]) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path.resolve())
    origins[str(link)] = str(path)


@dataclass(frozen=True, kw_only=True)
class PhantomSize:
    """How much is drawn."""

    annotated: Mapping[str, int]
    """Structure to patches."""
    patch_edge: int = 64
    brain_shape: tuple[int, int, int] = (96, 128, 128)
    test_patches: int = 4
    """Of c-Fos+ cells, and of microglia."""
    tile: int = 64
    tiles_per_volume: int = 4


PHANTOM = PhantomSize(annotated={"cfos_neuron": 4, "cell_nuclei": 2, "AD_plaques": 2, "blood_vessel": 2})


def draw(root: Path, *, seed: int, size: PhantomSize = PHANTOM) -> ChallengeData:
    """Draw a synthetic challenge, unless it is there already."""
    from nnunet_selma.conversion.raw_dataset import write_nifti
    from nnunet_selma.phantom import draw as draw_phantom
    from nnunet_selma.phantom.download import write_annotated, write_unannotated

    data = ChallengeData.below(root, tile=size.tile, tiles_per_volume=size.tiles_per_volume)
    done, wanted = root / "drawn.json", {"seed": seed, "size": repr(size)}
    if done.is_file() and read_json(done) == wanted:
        return data
    shutil.rmtree(root, ignore_errors=True)
    rng = np.random.default_rng(seed)
    shape = (size.patch_edge,) * 3
    write_annotated(data.annotated, dict(size.annotated), rng, shape_zyx=shape)
    write_unannotated(data.unlabelled, dict.fromkeys(size.annotated, 1), rng, shape_zyx=size.brain_shape)
    for folder in (data.images, data.references):
        folder.mkdir(parents=True)
    for prefix in (SEEN, UNSEEN):
        for number in range(size.test_patches):
            phantom, case = draw_phantom(prefix, shape, rng), f"{prefix}_{900 + number}"
            write_nifti(data.images / f"{case}_0000.nii.gz", phantom.image, (1.0, 1.0, 1.0))
            write_nifti(data.references / f"{case}.nii.gz", phantom.label, (1.0, 1.0, 1.0))
    write_json(done, wanted)
    return data
